"""The renderer against analytic ground truth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera, sample_edit
from qnerf_nerfstudio.toy.figure import Body, Capsules, Pose, capsules, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.render import intersect_capsules, render


def distance_to(points: torch.Tensor, shape: Capsules) -> torch.Tensor:
    """Signed distance of points to the nearest capsule, by definition."""
    ba = shape.end - shape.start
    pa = points[:, None] - shape.start
    h = ((pa * ba).sum(-1) / (ba * ba).sum(-1).clamp_min(1e-12)).clamp(0, 1)
    return ((pa - ba * h[..., None]).norm(dim=-1) - shape.radius).min(-1).values


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_hits_lie_on_the_surface_and_nothing_lies_before_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = capsules(sample_body(generator), sample_pose(generator))
    origins = torch.tensor([[3.0, 1.0, 1.2]]).expand(200, 3)
    aims = torch.rand(200, 3, generator=generator) * torch.tensor([1.6, 0.6, 2.0]) - torch.tensor([0.8, 0.3, 0.0])
    directions = torch.nn.functional.normalize(aims - origins, dim=-1)
    hits = intersect_capsules(origins, directions, shape).min(-1).values
    met = hits.isfinite()
    assert met.any()
    surface = distance_to((origins + directions * hits[:, None])[met], shape)
    assert surface.abs().max() < 2e-3
    for share in (0.5, 0.9, 0.98):
        assert (distance_to((origins + directions * share * hits[:, None])[met], shape) > 0).all()
    for along in torch.linspace(1.0, 5.0, 40):
        assert (distance_to((origins + directions * along)[~met], shape) > -2e-3).all()


def test_depth_of_the_floor_and_the_head_is_exact() -> None:
    size, body = (65, 65), Body()
    c2w = orbit_camera(0.0, 90.0 - 1e-3, 5.0, 0.0)
    frame = render(body, Pose(), c2w, focal_length(65), size)
    floor = (~frame.mask) & frame.depth.isfinite()
    torch.testing.assert_close(frame.depth[floor], torch.full_like(frame.depth[floor], 5.0), atol=2e-3, rtol=0)
    top = joints(body, Pose())["nose"][2] + 0.06 + 0.12
    assert frame.depth[32, 32].item() == pytest.approx(5.0 - top.item(), abs=2e-3)


def test_projected_joints_lie_inside_the_silhouette() -> None:
    body, source, target = sample_edit(3)
    focal = focal_length(128)
    c2w = orbit_camera(25.0, 20.0, 3.9, 1.0)
    views = Views(c2w[None], torch.tensor([[focal, focal, 64.0, 64.0]]), torch.zeros(1, 6), (128, 128))
    for pose in (source, target):
        frame = render(body, pose, c2w, focal, (128, 128))
        pixels, visible = views.project(torch.stack(list(joints(body, pose).values())))
        assert visible.all()
        for x, y in pixels[0].tolist():
            assert frame.mask[int(y), int(x)]
