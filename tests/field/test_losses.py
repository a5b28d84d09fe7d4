"""The model's losses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.field.losses import query_loss, view_weights


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=30), st.floats(3, 50))
@settings(deadline=None, max_examples=50)
def test_views_that_the_others_contradict_count_less(errors: list[float], outlier: float) -> None:
    errors_ = torch.tensor([*errors, float("nan"), outlier])
    weights = view_weights(errors_)
    assert ((weights >= 0) & (weights <= 1)).all() and weights[-2] == 1
    assert (weights[:-2][errors_[:-2] <= errors_[:-2].median()] > 0.9).all()
    # With errors within 0.2 of each other an outlier of 3 lies at least 2.1 tolerances out, one of 6 at least 5.5.
    assert weights[-1] < (0.01 if outlier >= 6 else 0.15)
    # Scaling all errors changes nothing; the tolerance is where a view counts half.
    torch.testing.assert_close(view_weights(8 * errors_), weights, atol=1e-3, rtol=1e-3)
    tolerated = torch.tensor([0.0, 1, 2, 3, 4, 2 + 3 * 1.4826])
    assert view_weights(tolerated)[-1].item() == pytest.approx(0.5, abs=1e-4)


@given(st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_query_loss_is_the_sum_over_layers_of_squared_errors(first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(first * 7 + second)
    a, b = (torch.randn(4, first + second, generator=generator) for _ in range(2))
    expected = (a - b)[:, :first].square().mean() + (a - b)[:, first:].square().mean()
    torch.testing.assert_close(query_loss(a, b, [first, second]), expected, atol=1e-4, rtol=1e-4)


@given(st.floats(0.001, 1), st.floats(0.001, 1))
@settings(deadline=None, max_examples=20)
def test_two_views_do_not_contradict_each_other(first: float, second: float) -> None:
    assert view_weights(torch.tensor([first, second, float("nan")])).tolist() == [1, 1, 1]
