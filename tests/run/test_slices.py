"""Slices of an edit: numbers that go wrong, and what is done already."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import make_editor

from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.text import Prompts
from qnerf_nerfstudio.run import slices
from qnerf_nerfstudio.run.artifacts import SOURCE, EditArtifacts
from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Task


def runner(editor: ControlNetEditor, folder: Path) -> slices.SliceRunner:
    text = editor.prompts.encode("a figure")
    controls = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return slices.SliceRunner(
        editor=editor,
        plan=Plan(PlanConfig(num_views=2, num_steps=8, chunk=2)),
        artifacts=EditArtifacts(folder),
        prompts=Prompts(text, text, text),
        carried_prompt=text,
        source_controls=controls,
        target_controls=controls,
        names=["first.png", "second.png"],
        num_train=2,
        code_width=4,
        masks=None,
    )


@pytest.mark.parametrize("broken_in", [("bfloat16",), ("bfloat16", "float32")])
def test_numbers_that_go_wrong_are_computed_once_more_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_in: tuple[str, ...]
) -> None:
    editor = make_editor(tmp_path, dtype="bfloat16")
    run = runner(editor, tmp_path / "edit")
    predict, seen = editor._predict, []

    def broken(latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen.append(str(editor.dtype).removeprefix("torch."))
        prediction = predict(latents, *arguments)
        if seen[-1] in broken_in:
            prediction[1, 0, 0, 0] = float("inf")
        return prediction

    monkeypatch.setattr(editor, "_predict", broken)
    run.encode(0, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    item = run.plan.at(0)
    assert item.task == Task.INVERT
    if len(broken_in) == 1:
        run.invert(item)
        assert run.artifacts.latents(SOURCE, 7, 0).load()["latents"].isfinite().all()
    else:
        with pytest.raises(FloatingPointError, match="latents of second"):
            run.invert(item)
        assert not run.artifacts.latents(SOURCE, 7, 0).exists
    assert seen == ["bfloat16", "float32"]
    assert editor.dtype == editor.unet.dtype == editor.vae.dtype == torch.bfloat16


def test_a_run_that_goes_on_passes_over_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make_editor(tmp_path)
    run = runner(editor, tmp_path / "edit")
    run.encode(0, torch.rand(2, 3, 16, 16))
    item = run.plan.at(0)
    run.invert(item)
    monkeypatch.setattr(editor, "invert_step", lambda *_: pytest.fail("done again"))
    run.invert(item)
