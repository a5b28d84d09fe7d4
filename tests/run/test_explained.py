"""What a field explains of queries, against variances computed from the queries themselves."""

from pathlib import Path

import pytest
import torch

from qnerf_nerfstudio.diffusion.queries import CodecFit
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.explained import explained, mean_row, summary


def test_shares_of_the_variance_are_those_of_the_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(4, 6, 5, generator=generator)
    queries = {"a": place + 0.5 * torch.randn(9, 4, 6, 5, generator=generator)}
    fit = CodecFit(5)
    fit.add({"a": queries["a"][:7]})
    codec = fit.codec()
    layer, own = codec.layers["a"], codec.encode(queries)
    rendered = {"a": 0.6 * own["a"]}
    (row,) = explained(codec, own, rendered, 7)
    standard = queries["a"] / layer.std
    total = (standard[:7] - standard[:7].mean((0, 1, 2))).square().sum((1, 2, 3)).mean()

    def share(difference: torch.Tensor) -> float:
        return float(1 - difference.square().sum((1, 2, 3)).mean() / total)

    others = torch.stack([standard[:7].sum(0) - standard[view] for view in range(7)]) / 6
    shown = layer.decode(rendered["a"]) / layer.std
    assert row.others == pytest.approx(share(standard[:7] - others), abs=1e-4)
    assert row.others_held_out == pytest.approx(share(standard[7:] - standard[:7].mean(0)), abs=1e-4)
    assert row.field == pytest.approx(share((standard - shown)[:7]), abs=1e-4)
    assert row.field_held_out == pytest.approx(share((standard - shown)[7:]), abs=1e-4)
    assert row.field > row.others
    assert mean_row([row, row]).field == pytest.approx(row.field)


def test_runs_without_held_out_views_have_no_figure_for_them() -> None:
    queries = {"a": torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(1))}
    fit = CodecFit(4)
    fit.add(queries)
    codec = fit.codec()
    own = codec.encode(queries)
    (row,) = explained(codec, own, own, 3)
    assert row.others_held_out is None and row.field_held_out is None and mean_row([row]).field_held_out is None
    assert row.field == pytest.approx(1, abs=1e-5)


def test_the_latest_fit_whose_renders_are_complete_is_summed_up(tmp_path: Path) -> None:
    artifacts, generator = EditArtifacts(tmp_path), torch.Generator().manual_seed(2)
    assert summary(artifacts, 3) is None
    queries = torch.randn(3, 2, 2, 3, generator=generator)
    for interval, rendered in ((0, (0, 1, 2)), (1, (0,))):
        fit = CodecFit(3)
        fit.add({"a": queries[:2]})
        codec = fit.codec()
        artifacts.codec(interval).save(codec.tensors())
        for chunk in range(3):
            own = codec.encode({"a": queries[chunk : chunk + 1]})
            artifacts.codes(interval, chunk).save(own)
            if chunk in rendered:
                artifacts.rendered(interval, chunk).save({**own, "errors": torch.zeros(1)})
    # One training view is the mean over all of them: nothing varies that could be explained.
    assert summary(artifacts, 1) is None
    told = summary(artifacts, 2)
    assert told is not None and told.startswith("The field of interval 1 explains 100% (100% in held-out views)")
