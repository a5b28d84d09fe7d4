"""Options of a run that no other test sets: each does what its line says."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.captures import small_capture
from helpers.commands import train
from safetensors.torch import load_file

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.field.model import QNerfModelConfig
from qnerf_nerfstudio.studio.options import check_compiler

OPTIONS = {
    "pipeline.lift-controls": "False",
    "pipeline.warm-start": "False",
    "pipeline.region": "False",
    "pipeline.composite": "False",
    "pipeline.feather": "0.2",
    "pipeline.stop": "0.2",
    "pipeline.chunk": "3",
    "pipeline.outside-paths": "True",
    "pipeline.model.feature-dim": "20",
    "pipeline.model.query-width": "30",
    "pipeline.model.query-loss-mult": "0.01",
    "pipeline.model.robust": "False",
    "pipeline.editor.controlnet-scale": "0.5",
}


def test_options_reach_the_run(tiny_editor: Path, tmp_path: Path) -> None:
    capture = small_capture(tmp_path, num_views=4)
    # edit.json lies in another folder than the mesh that it names.
    (tmp_path / "edits").mkdir()
    edit = json.loads((capture / "edit-mesh.json").read_text())
    for side in ("source", "target"):
        edit["control"][side]["mesh"] = str(capture / edit["control"][side]["mesh"])
    (tmp_path / "edits/edit.json").write_text(json.dumps(edit))
    stated = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    run = train(capture, tmp_path, tiny_editor, "--pipeline.edit", tmp_path / "edits/edit.json", *stated)
    manifest = json.loads((run / "edit/manifest.json").read_text())
    for name, value in OPTIONS.items():
        assert manifest["settings"][f"--{name}"].strip("(,)") == value
    # Four views in chunks of three, one interval that starts within a fifth of six timesteps.
    assert len(list((run / "edit/latents/source").glob("0000-*"))) == 2
    (interval,) = (run / "edit/previews").iterdir()
    codes = load_file(run / f"edit/queries/{interval.name}/codes-000.safetensors")
    assert len(codes) == 6 and all(code.shape[-1] == 5 for code in codes.values())
    (checkpoint,) = (run / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, weights_only=True)["pipeline"]
    assert state["_model.field.query_head.weight"].shape == (30, 20 + 68)
    # Without region and compositing nothing of the photos is kept.
    edited, photo = load_images([run / "edit/images/frame_00001.png", capture / "images/frame_00001.png"])
    assert (edited != photo).any(-1).float().mean() > 0.9


@pytest.mark.parametrize("option", ["compile", "compile-encodings"])
def test_nothing_is_compiled_without_a_compiler(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = EditorConfig(compile=option == "compile")
    model = QNerfModelConfig(compile_encodings=option != "compile")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", f"'{sys.executable}' -flag")
    check_compiler(editor, model)
    monkeypatch.delenv("CXX")
    check_compiler(EditorConfig(), QNerfModelConfig())
    with pytest.raises(UserError, match=rf"--pipeline\.\w+\.{option} is True, but there is no C\+\+ compiler.*CXX"):
        check_compiler(editor, model)
