"""The trainer's own parts."""

from pathlib import Path

import pytest
from helpers.edits import short_edit

from qnerf_nerfstudio.studio.trainer import resume_command


def test_the_resume_command_names_the_run_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = short_edit(tmp_path, tmp_path / "out put", 4)
    words = [
        "ns-train",
        "qnerf-edit-tiny",
        "--data",
        "scene",
        "--timestamp=old",
        "--output_dir",
        "elsewhere",
        "--pipeline.tau",
    ]
    monkeypatch.setattr("sys.argv", [*words, "2", "nerfstudio-data", "--scene-scale", "2"])
    text = resume_command(config)
    assert text.startswith(
        f"ns-train qnerf-edit-tiny --output-dir '{tmp_path}/out put' --experiment-name e --timestamp t"
    )
    assert text.endswith("--data scene --pipeline.tau 2 nerfstudio-data --scene-scale 2")
    assert "old" not in text and "elsewhere" not in text
