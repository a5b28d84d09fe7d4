"""What a run costs, told before it starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.models import make_editor

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.run import costs
from qnerf_nerfstudio.run.costs import check_disk, disk_bytes, estimate
from qnerf_nerfstudio.run.plan import Plan, PlanConfig


def test_disk_grows_with_views_and_timesteps(tmp_path: Path) -> None:
    editor = make_editor(tmp_path)

    def needed(views: int = 6, steps: int = 8, size: int = 64) -> int:
        plan = Plan(PlanConfig(num_views=views, num_steps=steps, tau=2, chunk=3))
        return disk_bytes(editor, plan, (size, size), (size, size), 4)

    assert needed(views=12) == 2 * needed()
    assert needed(size=128) == pytest.approx(4 * needed(), rel=0.01)
    assert needed(steps=16) > 1.5 * needed()
    # 300 views of Stable Diffusion's size: 4 channels at an eighth of 512 pixels, two trajectories of 50 timesteps.
    assert needed(views=300, steps=50, size=512) > 300 * 4 * (512 // 2) ** 2 * 4 * 100


def test_time_counts_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_pass_seconds", lambda editor, views, size: 1.0)
    editor = make_editor(tmp_path, guidance_strength=0.0, guidance_scale=3.0)
    plan = Plan(PlanConfig(num_views=6, num_steps=8, tau=2, chunk=3, consolidation="none"))
    # Two chunks, eight timesteps: a pass each for inversion, and three branches for sampling.
    assert estimate(editor, plan, (64, 64), (64, 64), 4, guided=False).seconds == 2 * 8 * (1 + 3)
    guided = make_editor(tmp_path, guidance_strength=0.05, guidance_scale=3.0)
    assert estimate(guided, plan, (64, 64), (64, 64), 4, guided=True).seconds == 2 * 8 * (1 + 3 + 3)


def test_passes_are_timed(tmp_path: Path) -> None:
    editor = make_editor(tmp_path)
    plan = Plan(PlanConfig(num_views=6, num_steps=8, tau=2, chunk=3))
    told = estimate(editor, plan, (64, 64), (64, 64), 4, guided=True)
    assert told.seconds > 0 and "of memory beside the models" in str(told)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    check_disk(tmp_path / "new/edit", 1000)
    with pytest.raises(UserError, match=r"--output-dir: the edit needs about 0.0 GiB .*make room by qnerf clean"):
        check_disk(tmp_path / "new/edit", 1001)
    (tmp_path / "new/edit").mkdir(parents=True)
    (tmp_path / "new/edit/file").write_bytes(b"x" * 500)
    check_disk(tmp_path / "new/edit", 1500)
