"""The region of an edit against analytic ground truth: a ball seen changed by cameras around it."""

import torch
from helpers.cameras import SCENE_BOX, ball_masks, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qnerf_nerfstudio.controls.region import RESOLUTION, VoxelRegion, visual_hull


@settings(deadline=None, max_examples=4)
@given(st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=3), st.floats(0.06, 0.15), st.integers(9, 24))
def test_hull_of_a_ball_holds_the_ball_and_little_else(at: list[float], radius: float, count: int) -> None:
    views, centre = ring(count), torch.tensor(at)
    region = visual_hull(views, ball_masks(views, centre, radius), SCENE_BOX)
    assert region is not None
    directions = F.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    # A pixel is 0.01 wide at this distance, and masks are only known to a pixel.
    assert region.contains(centre + (radius - 0.02) * directions).float().mean() > 0.99
    # Two thirds of the views see these points beside the ball.
    assert region.contains(centre + (2.5 * radius + 0.05) * directions).float().mean() < 0.2
    assert not region.contains(torch.tensor([[5.0, 0, 0], [0, 0, -1.01]])).any()


def test_changes_that_most_views_do_not_see_are_left_out() -> None:
    views = ring(24)
    masks = ball_masks(views, torch.zeros(3), 0.1)
    stray = masks.clone()
    stray[::4] = True
    region, expected = visual_hull(views, stray, SCENE_BOX), visual_hull(views, masks, SCENE_BOX)
    assert region is not None and expected is not None
    far = torch.tensor([[0.6, 0.0, 0.0], [0, -0.6, 0.1], [0.5, 0.5, 0.4]])
    assert not region.contains(far).any() and not expected.contains(far).any()
    # Views without the change do not cut the region away either.
    masks[::4] = False
    assert region.contains(torch.zeros(1, 3)).all()
    partial = visual_hull(views, masks, SCENE_BOX)
    assert partial is not None and partial.contains(torch.zeros(1, 3)).all()


def test_no_region_where_views_agree_on_nothing() -> None:
    views = ring(12)
    masks = torch.zeros(12, 64, 64, dtype=torch.bool)
    assert visual_hull(views, masks, SCENE_BOX) is None
    masks[0, :20, :20] = True
    masks[6, 40:, 40:] = True
    assert visual_hull(views, masks, SCENE_BOX) is None


def test_seen_pixels_cover_the_regions_silhouette() -> None:
    views = ring(6, size=96, focal=120.0)
    axis = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    centre = torch.tensor([0.1, 0.0, -0.05])
    cells = (torch.stack([x, y, z], -1) - centre).norm(dim=-1) < 0.2
    seen = VoxelRegion(SCENE_BOX, cells).seen(views)
    inner, outer = ball_masks(views, centre, 0.18), ball_masks(views, centre, 0.35)
    assert (seen | ~inner).all()
    assert (~seen | outer).all()


def test_random_points_of_a_region_fill_its_cells() -> None:
    cells = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.1
    region = VoxelRegion(torch.tensor([[-1.0, 0.0, 2.0], [1.0, 3.0, 4.0]]), cells)
    points = region.sample(20_000, torch.Generator().manual_seed(0))
    assert region.contains(points).all()
    index = ((points - region.box[0]) / (region.box[1] - region.box[0]) * 8).long()
    counts = torch.zeros(8, 8, 8).index_put_(tuple(index.T), torch.ones(len(points)), accumulate=True)
    assert torch.equal(counts > 0, cells)
    assert float(counts[cells].std() / counts[cells].mean()) < 0.1
    assert region.sample(20_000, torch.Generator().manual_seed(0)).equal(points)
    nothing = VoxelRegion(region.box, torch.zeros_like(cells))
    assert nothing.sample(10, torch.Generator()).shape == (0, 3)
