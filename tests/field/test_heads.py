"""Query heads by least squares, on features of any kind, and on those of a field that was trained on photos."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.diffusion.queries import CodecFit
from qnerf_nerfstudio.field.grids import fit_heads, render_codes
from qnerf_nerfstudio.field.heads import HeadFit
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.studio.plain import train_plain
from qnerf_nerfstudio.toy.capture import sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.render import pinhole_rays, render

SEED, NUM_VIEWS, HELD_OUT, CHANNELS, NOISE = 1, 14, 3, 12, 0.3
GRID = (16, 16)


@given(st.integers(0, 1000), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_codes_that_are_linear_in_the_features_are_found(seed: int, chunks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(6, 8, 8, 7, generator=generator) * torch.tensor([1, 20, 0.01, 3, 1, 1, 0])
    truth = {"a": torch.randn(4, 7, generator=generator), "b": torch.randn(2, 7, generator=generator)}
    fit = HeadFit()
    pooled = {"a": features, "b": F.avg_pool2d(features.movedim(-1, 1), 2).movedim(1, -1)}
    codes = {name: pooled[name] @ truth[name].T for name in truth}
    for part in torch.arange(6).chunk(chunks):
        fit.add(features[part], {name: code[part] for name, code in codes.items()})
    weights = fit.weights()
    assert weights.shape == (6, 7) and bool((weights[:, 6] == 0).all())
    for name, found in zip(truth, weights.split([4, 2]), strict=True):
        assert float((pooled[name] @ found.T - codes[name]).norm() / codes[name].norm()) < 0.01


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[QNerfModel, Views, torch.Tensor]:
    """A field of photos, the photos' cameras, and where the cells of a grid over them truly look (NaN: nowhere)."""
    folder = tmp_path_factory.mktemp("known")
    write_capture(folder / "scene", CaptureConfig(seed=SEED, num_views=NUM_VIEWS, num_novel_views=1, size=64))
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    # As many steps as the features need, each with less than the method's.
    config.pipeline.datamanager.train_num_rays_per_batch = 256
    model = config.pipeline.model
    model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray, model.log2_hashmap_size = (16,), 12, 15
    pipeline = train_plain(folder / "scene", folder, config, iterations=150)
    field, capture = pipeline.model, pipeline.datamanager.capture  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(field, QNerfModel)
    views, (body, source, _) = capture.dataset_views(), sample_edit(SEED)
    focal = float(views.intrinsics[0, 0]) * GRID[0] / 64
    points = []
    for c2w in views.c2w:
        depth = render(body, source, c2w, focal, GRID, supersampling=1).depth
        origins, directions, cosines = pinhole_rays(c2w, focal, GRID, samples=1)
        points.append((origins + (depth.flatten() / cosines)[:, None] * directions).view(*GRID, 3))
    return field, capture.views(), torch.stack(points)


def test_a_function_of_space_is_found_under_the_screen_and_noise(
    captured: tuple[QNerfModel, Views, torch.Tensor],
) -> None:
    model, views, points = captured
    generator = torch.Generator().manual_seed(0)
    seen, num_train = points.isfinite().all(-1), NUM_VIEWS - HELD_OUT
    maps, true = {}, {}
    for name, factor in (("coarse", 2), ("fine", 1)):
        waves = points.nan_to_num(0, 0, 0) @ torch.randn(3, CHANNELS, generator=generator)
        shown = torch.where(seen[..., None], torch.sin(waves), 0)
        shown = F.avg_pool2d(shown.movedim(-1, 1), factor).movedim(1, -1)
        screen = torch.randn(shown.shape[1:], generator=generator)
        true[name] = shown + screen
        maps[name] = true[name] + NOISE * torch.randn(shown.shape, generator=generator)
    fit = CodecFit(CHANNELS)
    fit.add({name: queries[:num_train] for name, queries in maps.items()})
    codec = fit.codec()
    chunk = (range(num_train), {name: code[:num_train] for name, code in codec.encode(maps).items()})
    weight = fit_heads(model, views, [chunk], codec)
    model.field.query_head.weight.data[: len(weight)] = weight
    rendered = render_codes(model, views, range(NUM_VIEWS), codec)
    for name, layer in codec.layers.items():
        # The function without its mean over the training views at each place, and without noise.
        function = layer.encode(true[name])
        missed = (rendered[name] - function).square()
        training, held_out = (
            1 - float(missed[part].mean() / function[part].square().mean())
            for part in (slice(num_train), slice(num_train, None))
        )
        assert training > 0.5 and held_out > 0.4
