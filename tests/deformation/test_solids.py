"""Boxes that move, turn and stretch."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.deformation.solids import BoxesDeformation
from qnerf_nerfstudio.edit.schema import BoxControl, BoxPlacement

TO_SCENE = torch.tensor([[0.5, 0, 0, 0.1], [0, 0.5, 0, -0.2], [0, 0, 0.5, 0.3]])


def boxes(*pairs: tuple[dict, dict]) -> BoxesDeformation:
    """A deformation of boxes before and after."""
    controls = [BoxControl(type="box", source=BoxPlacement(**a), target=BoxPlacement(**b)) for a, b in pairs]
    return BoxesDeformation.of(controls, TO_SCENE)


def scene(*point: float) -> torch.Tensor:
    """A point of the dataset in the scene."""
    return TO_SCENE[:, :3] @ torch.tensor(point).float() + TO_SCENE[:, 3]


SIDES = (0.4, 0.6, 1.0)


@settings(deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.integers(0, 2**31 - 1))
def test_a_box_moved_by_a_shift_shows_what_was_there(shift: tuple[float, float, float], seed: int) -> None:
    place = tuple(a + b for a, b in zip((1, 2, 3), shift, strict=True))
    moved = boxes(({"position": (1, 2, 3), "size": SIDES}, {"position": place, "size": SIDES}))
    inside = (torch.rand(50, 3, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.98 * torch.tensor(SIDES)
    inside = inside + torch.tensor([1.0, 2.0, 3.0])
    before, after = (each @ TO_SCENE[:, :3].T + TO_SCENE[:, 3] for each in (inside, inside + torch.tensor(shift)))
    origins = moved(after)
    assert origins.kept.all()
    torch.testing.assert_close(origins.points, before, atol=1e-4, rtol=0)


def test_nothing_is_left_where_a_box_was_and_all_else_stays() -> None:
    moved = boxes(({"position": (0, 0, 0), "size": SIDES}, {"position": (5, 0, 0), "size": SIDES}))
    points = torch.stack([scene(0, 0, 0), scene(0.1, 0.2, -0.4), scene(0.3, 0, 0), scene(2, 0, 0)])
    origins = moved(points)
    assert origins.kept.tolist() == [False, False, True, True]
    assert torch.equal(origins.points[2:], points[2:])


def test_a_box_turns_and_stretches_what_is_in_it() -> None:
    turned = boxes(
        (
            {"position": (0, 0, 0), "size": (1, 1, 1)},
            {"position": (0, 0, 0), "rotation": (0, 0, 90), "size": (2, 1, 1)},
        )
    )
    # The target's own x axis, twice as long, points along the scene's y.
    torch.testing.assert_close(turned(scene(0, 0.8, 0)).points, scene(0.4, 0, 0), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(scene(0.4, 0, 0)).points, scene(0, -0.4, 0), atol=1e-5, rtol=0)
    assert math.isclose(float(turned(scene(0, 0.8, 0)).certainty), 1)


def test_where_boxes_overlap_the_one_in_which_a_point_lies_deepest_carries_it() -> None:
    overlapping = boxes(
        ({"position": (0, 0, 0), "size": (2, 2, 2)}, {"position": (10, 0, 0), "size": (2, 2, 2)}),
        ({"position": (0, 5, 0), "size": (2, 2, 2)}, {"position": (11.5, 0, 0), "size": (2, 2, 2)}),
    )
    torch.testing.assert_close(overlapping(scene(10.6, 0, 0)).points, scene(0.6, 0, 0), atol=1e-4, rtol=0)
    torch.testing.assert_close(overlapping(scene(10.9, 0, 0)).points, scene(-0.6, 5, 0), atol=1e-4, rtol=0)
