"""A few of many."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qnerf_nerfstudio.common.spread import evenly_spread


@given(st.integers(2, 50), st.integers(2, 5000))
def test_indices_go_from_the_first_to_the_last_in_equal_steps(count: int, length: int) -> None:
    chosen = evenly_spread(count, length)
    assert len(chosen) == min(count, length)
    assert (chosen[0], chosen[-1]) == (0, length - 1)
    steps = [after - before for before, after in pairwise(chosen)]
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1


def test_one_is_the_first_and_none_are_none() -> None:
    assert evenly_spread(1, 9) == [0]
    assert evenly_spread(3, 0) == []
