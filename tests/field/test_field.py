"""The field: its query heads, and what depends on the view."""

import pytest
import torch
from helpers.fields import build, rays
from nerfstudio.field_components.field_heads import FieldHeadNames

from qnerf_nerfstudio.field.field import QNerfHeadNames
from qnerf_nerfstudio.field.model import QNerfModel


@torch.no_grad()
def test_heads_after_compositing_equal_heads_per_sample(model: QNerfModel) -> None:
    model.eval()
    samples, _, _ = model.proposal_sampler(rays(), density_fns=model.density_fns)
    outputs: dict = dict(model.field.forward(samples))
    weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
    features = outputs[QNerfHeadNames.FEATURES]
    head = model.field.query_head.weight[:, : features.shape[-1]]
    torch.testing.assert_close((weights * features).sum(-2) @ head.T, (weights * (features @ head.T)).sum(-2))


def test_query_features_are_of_where_rays_end_and_zero_where_they_gather_nothing(model: QNerfModel) -> None:
    features, places = torch.rand(2, 20), torch.tensor([[0.2, 0.3, 0.4], [0.0, 0.0, 0.0]])
    accumulation = torch.tensor([[1.0], [0.0]])
    whole, nothing = model.field.query_features(features[:, :0], places, accumulation)
    half = model.field.query_features(features[:1, :0], 0.5 * places[:1], 0.5 * accumulation[:1])[0]
    assert whole[0] == 1 and torch.equal(whole[-3:], places[0])
    torch.testing.assert_close(half, 0.5 * whole)
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("view_dependent", [False, True])
def test_queries_have_no_view_direction_and_colours_only_where_asked(view_dependent: bool) -> None:
    model = build(view_dependent=view_dependent)
    model.eval()
    bundle = rays()
    samples, _, _ = model.proposal_sampler(bundle, density_fns=model.density_fns)
    before: dict = dict(model.field.forward(samples))
    # The same positions, seen from the other side.
    frustums = samples.frustums
    middle = (frustums.starts + frustums.ends) / 2
    frustums.origins = frustums.origins + 2 * frustums.directions * middle
    frustums.directions = -frustums.directions
    after: dict = dict(model.field.forward(samples))
    torch.testing.assert_close(after[QNerfHeadNames.FEATURES], before[QNerfHeadNames.FEATURES], atol=1e-4, rtol=1e-3)
    change = (after[FieldHeadNames.RGB] - before[FieldHeadNames.RGB]).abs().max()
    assert (change > 1e-3) == view_dependent
