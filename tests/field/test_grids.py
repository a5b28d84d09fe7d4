"""The field on grids over views."""

import torch
from helpers.cameras import ring
from nerfstudio.cameras.rays import RayBundle

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.deformation.deformation import Origins
from qnerf_nerfstudio.field.grids import render_carried, render_grid, render_over, translucency
from qnerf_nerfstudio.field.model import QNerfModel


def test_renders_fill_masks_and_leave_the_rest(model: QNerfModel) -> None:
    views = ring(3)
    size = (6, 8)
    photos = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    whole = render_grid(model, views, range(1, 3), size, "rgb").movedim(-1, 1)
    filled = render_over(model, views, range(1, 3), photos, masks)
    expected = torch.where(masks[:, None], whole, photos)
    torch.testing.assert_close(filled, expected)
    assert torch.equal(filled[1], photos[1])
    torch.testing.assert_close(render_over(model, views, range(1, 3), photos, None), whole)


class Lifted:
    """What lies right of the middle moves up by a tenth; nothing else moves."""

    def __init__(self, shift: float = 0.1) -> None:
        self.shift = torch.tensor([0.0, 0.0, shift])

    def __call__(self, points: torch.Tensor) -> Origins:
        right = points[..., 0] > 0
        origins = torch.where(right[..., None], points - self.shift, points)
        return Origins(origins, torch.ones_like(right), torch.ones_like(points[..., 0]))

    def to(self, device: str) -> "Lifted":
        return self


def test_carried_views_keep_the_photos_pixels_where_nothing_moves(model: QNerfModel) -> None:
    views, size = ring(3), (16, 16)
    photos = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    still = render_carried(model, Lifted(0.0), views, range(1), photos, None)
    assert torch.equal(still, photos)
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[:, 4:12, 2:14] = True
    moved = render_carried(model, Lifted(), views, range(1), photos, masks)
    differs = (moved != photos).any(1)
    assert differs.any() and not (differs & ~masks).any()
    with model.seen_through(Lifted()):
        whole = render_over(model, views, range(1), photos, None)
    seen = differs[:, None].expand_as(moved)
    torch.testing.assert_close(moved[seen], whole[seen])


class Slab:
    """A model that shows matter which stops a share of the light."""

    device, training, scene_box = torch.device("cpu"), False, None

    def __init__(self, accumulation: float) -> None:
        self.accumulation = accumulation

    def seen_through(self, deformation: object) -> "Slab":
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def get_outputs_for_camera_ray_bundle(self, bundle: RayBundle) -> dict[str, torch.Tensor]:
        half = torch.arange(bundle.origins.shape[1]) % 2 == 0
        return {"accumulation": self.accumulation * half.float()[None, :, None].expand(*bundle.origins.shape[:2], 1)}


def test_fog_lets_light_through_and_matter_does_not(model: QNerfModel) -> None:
    views: Views = ring(5)
    for accumulation, expected in ((1.0, 0.0), (0.7, 0.3), (0.0, 1.0)):
        assert abs(translucency(Slab(accumulation), views, Lifted()) - expected) < 1e-5
    assert 0 < translucency(model, views, Lifted()) < 1
