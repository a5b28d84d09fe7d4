"""The field on a grid of cells over each view: query codes to guide by, renders, and points on surfaces."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views, invert_affine, transform_points
from qnerf_nerfstudio.common.images import dilate
from qnerf_nerfstudio.common.spread import evenly_spread
from qnerf_nerfstudio.deformation.deformation import Deformation
from qnerf_nerfstudio.diffusion.queries import QueryCodec
from qnerf_nerfstudio.field.carried import Changes
from qnerf_nerfstudio.field.heads import HeadFit
from qnerf_nerfstudio.field.model import QNerfModel

JUDGED_VIEWS, JUDGED_ROWS = 4, 64
"""Views by which it is judged whether matter is fog, and rays along their shorter side."""
CHANGED = 0.05
"""A pixel changes where this share of what it shows does."""


def render_grid(
    model: QNerfModel, views: Views, indices: range, size: tuple[int, int], output: str
) -> Float[Tensor, "V h w C"]:
    """Render an output of the model at the centres of `size` (rows, columns) cells over each of the views."""
    return torch.stack([outputs[output] for _, outputs in _render(model, views, indices, size)])


def render_over(
    model: QNerfModel,
    views: Views,
    indices: range,
    images: Float[Tensor, "V 3 h w"],
    masks: Bool[Tensor, "V h w"] | None,
) -> Float[Tensor, "V 3 h w"]:
    """Images of the views with the pixels inside of masks rendered by the model; None renders all of them."""
    rendered, size = images.clone(), (images.shape[-2], images.shape[-1])
    for number, view, inside in _parts(indices, size, masks):
        ((_, outputs),) = _render(model, views, view, size, inside)
        rendered[number][:, inside] = outputs["rgb"][0].T
    return rendered


def _parts(
    indices: range, size: tuple[int, int], masks: Bool[Tensor, "V h w"] | None
) -> Iterator[tuple[int, range, Bool[Tensor, "h w"]]]:
    """The number, the index and the mask of each view whose mask holds a pixel; without masks they hold all."""
    for number, index in enumerate(indices):
        inside = torch.ones(size, dtype=torch.bool) if masks is None else masks[number]
        if inside.any():
            yield number, range(index, index + 1), inside


def render_carried(
    model: QNerfModel,
    deformation: Deformation,
    views: Views,
    indices: range,
    photos: Float[Tensor, "V 3 h w"],
    masks: Bool[Tensor, "V h w"] | None,
) -> Float[Tensor, "V 3 h w"]:
    """Photos of the views, with what a deformation changes in them rendered by the carried field.

    Args:
        model: The field of the photos.
        deformation: The deformation.
        views: Cameras in scene coordinates.
        indices: The views.
        photos: Their photos.
        masks: Pixels that may change; None: all.
    """
    size = (photos.shape[-2], photos.shape[-1])
    half = (max(1, size[0] // 2), max(1, size[1] // 2))
    images = photos.clone()
    for number, view, inside in _parts(indices, size, masks):
        with model.seen_through(Changes(deformation, carried=True)):
            ((_, after),) = _render(model, views, view, size, inside)
        with model.seen_through(Changes(deformation, carried=False)):
            ((_, before),) = _render(model, views, view, half)
        left = (before["accumulation"] - before["certainty"])[None, None, ..., 0]
        left = F.interpolate(left, size, mode="bilinear")[0, 0]
        come = torch.zeros(size)
        come[inside] = (after["accumulation"] - after["certainty"])[0, :, 0]
        changed = dilate((torch.maximum(left, come) > CHANGED)[None], 1)[0] & inside
        images[number][:, changed] = after["rgb"][0][changed[inside]].T
    return images


def translucency(model: QNerfModel, views: Views, alone: Deformation) -> float:
    """Share of the light behind what is shown alone that comes through it: near 0 for matter, near 1 for fog.

    Args:
        model: The field.
        views: Cameras in scene coordinates, of which a few are looked through.
        alone: Shows that part of the scene and nothing else.
    """
    chosen = evenly_spread(JUDGED_VIEWS, len(views))
    size = tuple(max(1, round(side * JUDGED_ROWS / min(views.size))) for side in views.size)
    with model.seen_through(alone):
        rendered = [render_grid(model, views, range(i, i + 1), (size[0], size[1]), "accumulation") for i in chosen]
    shown = torch.cat(rendered)
    return 1 - float(shown.square().sum() / shown.sum().clamp_min(1e-6))


def surface_points(
    model: QNerfModel, views: Views, size: tuple[int, int], opaque: float = 0.9
) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
    """Points where rays through a grid of cells over each view end, and their colours in [0, 1].

    Args:
        model: The field.
        views: Cameras in scene coordinates.
        size: Rows and columns of cells.
        opaque: Rays that gather less matter than this end nowhere.
    """
    points, colours = [], []
    for bundle, outputs in _render(model, views, range(len(views)), size):
        ends = (bundle.origins + bundle.directions * outputs["depth"].to(bundle.origins)).cpu()
        # The scene box holds what was captured; further out are only backgrounds.
        low, high = model.scene_box.aabb
        kept = (outputs["accumulation"][..., 0] > opaque) & ((ends > low) & (ends < high)).all(-1)
        points.append(ends[kept])
        colours.append(outputs["rgb"][kept])
    return torch.cat(points), torch.cat(colours)


def stated_points(
    model: QNerfModel, views: Views, to_scene: Float[Tensor, "3 4"], rows: int
) -> tuple[Float[NDArray, "P 3"], UInt8[NDArray, "P 3"]]:
    """`surface_points` of `rows` rows of rays a view, in the dataset's coordinates, with colours from 0 to 255."""
    height, width = views.size
    points, colours = surface_points(model, views, (rows, max(1, round(rows * width / height))))
    return transform_points(points, invert_affine(to_scene)).numpy(), (colours * 255).round().byte().numpy()


@torch.no_grad()
def _render(
    model: QNerfModel,
    views: Views,
    indices: range,
    size: tuple[int, int],
    mask: Bool[Tensor, "h w"] | None = None,
) -> Iterator[tuple[RayBundle, dict[str, Tensor]]]:
    """The rays through a grid of cells over each view, and what the model renders there, on the CPU; with a mask, those
    of the cells inside of it as one row."""
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
    if mask is not None:
        coords = coords[mask][None]
    was_training = model.training
    model.eval()
    for index in range(len(indices)):
        bundle = cameras.generate_rays(camera_indices=index, coords=coords)
        rendered = model.get_outputs_for_camera_ray_bundle(bundle)
        yield bundle, {name: value.cpu() for name, value in rendered.items()}
    model.train(was_training)


def render_codes(model: QNerfModel, views: Views, indices: range, codec: QueryCodec) -> dict[str, Tensor]:
    """Query codes [V, H, W, K] of every layer at its own resolution, averages of renders at the finest one."""
    finest = codec.finest
    rendered = render_grid(model, views, indices, finest, "queries")
    return {
        name: F.adaptive_avg_pool2d(code.movedim(-1, 1), codec.layers[name].size).movedim(1, -1)
        for name, code in codec.split(rendered[..., : codec.width]).items()
    }


def fit_heads(
    model: QNerfModel, views: Views, codes: Iterable[tuple[range, dict[str, Tensor]]], codec: QueryCodec
) -> Float[Tensor, "W F"]:
    """The weights of the query heads that fit codes best with the field as it is.

    Args:
        model: The field.
        views: Cameras in scene coordinates.
        codes: Indices of views, and their codes [V, H, W, K] by layer, chunk by chunk.
        codec: The code.
    """
    fit = HeadFit()
    for indices, layers in codes:
        with model.showing_query_features():
            features = render_grid(model, views, indices, codec.finest, "query_features")
        fit.add(features, layers)
    return fit.weights()


def relative_errors(rendered: dict[str, Tensor], extracted: dict[str, Tensor]) -> Float[Tensor, "V"]:
    """Distance of rendered codes from extracted ones, relative to the norm of the extracted ones, view by view."""
    squared = [(rendered[name] - code).square().mean(dim=(1, 2)).sum(-1) for name, code in extracted.items()]
    norms = [code.square().mean(dim=(1, 2)).sum(-1) for code in extracted.values()]
    return (torch.stack(squared).sum(0) / torch.stack(norms).sum(0)).sqrt()
