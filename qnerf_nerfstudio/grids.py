"""The field on a grid of cells over each view: query codes to guide by."""

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.controls import Views
from qnerf_nerfstudio.model import QNerfModel
from qnerf_nerfstudio.queries import QueryCodec


@torch.no_grad()
def render_grid(
    model: QNerfModel, views: Views, indices: range, size: tuple[int, int], output: str
) -> Float[Tensor, "V h w C"]:
    """Render an output of the model at the centres of `size` (rows, columns) cells over each of the views."""
    views = views[indices.start : indices.stop]
    fx, fy, cx, cy = views.intrinsics.split(1, dim=-1)
    cameras = Cameras(
        camera_to_worlds=views.c2w,
        fx=fx,
        fy=fy,
        cx=cx,
        cy=cy,
        width=views.size[1],
        height=views.size[0],
        distortion_params=views.distortion,
    ).to(model.device)
    rows = (torch.arange(size[0]) + 0.5) * views.size[0] / size[0]
    columns = (torch.arange(size[1]) + 0.5) * views.size[1] / size[1]
    coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).to(model.device)
    was_training = model.training
    model.eval()
    images = []
    for index in range(len(indices)):
        bundle = cameras.generate_rays(camera_indices=index, coords=coords)
        images.append(model.get_outputs_for_camera_ray_bundle(bundle)[output].cpu())
    model.train(was_training)
    return torch.stack(images)


def render_codes(model: QNerfModel, views: Views, indices: range, codec: QueryCodec) -> dict[str, Tensor]:
    """Query codes [V, H, W, K] of every layer at its own resolution, averages of renders at the finest one."""
    finest = max(layer.size for layer in codec.layers.values())
    rendered = render_grid(model, views, indices, finest, "queries")
    return {
        name: F.adaptive_avg_pool2d(code.movedim(-1, 1), codec.layers[name].size).movedim(1, -1)
        for name, code in codec.split(rendered[..., : codec.width]).items()
    }


def relative_errors(rendered: dict[str, Tensor], extracted: dict[str, Tensor]) -> Float[Tensor, "V"]:
    """Distance of rendered codes from extracted ones, relative to the norm of the extracted ones, view by view."""
    squared = [(rendered[name] - code).square().mean(dim=(1, 2)).sum(-1) for name, code in extracted.items()]
    norms = [code.square().mean(dim=(1, 2)).sum(-1) for code in extracted.values()]
    return (torch.stack(squared).sum(0) / torch.stack(norms).sum(0)).sqrt()
