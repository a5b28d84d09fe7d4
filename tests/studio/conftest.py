"""An editor for short runs, and a case for every mistake of a user."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.captures import small_capture
from helpers.mistakes import SIZE, VIEWS, Case
from helpers.models import save_tiny_set

from qnerf_nerfstudio.methods import qnerf_edit_tiny


@pytest.fixture(scope="session")
def tiny_editor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model set for 64 pixels, where the weights do not matter. Nothing may be written to it."""
    return save_tiny_set(tmp_path_factory.mktemp("editor"))


@pytest.fixture(scope="session")
def mistaken_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What cases are copied from."""
    return small_capture(tmp_path_factory.mktemp("mistakes"), num_views=VIEWS, size=SIZE)


@pytest.fixture
def case(mistaken_capture: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A capture of its own and settings, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Coarse cells make visual hulls fast.
    monkeypatch.setattr("qnerf_nerfstudio.controls.region.RESOLUTION", 8)
    # A run before in this process would have its times printed after the sentence.
    monkeypatch.setattr("nerfstudio.utils.profiler.PROFILER", [])
    data = tmp_path / "scene"
    shutil.copytree(mistaken_capture, data, ignore=shutil.ignore_patterns("truth"))
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = data, tmp_path / "out", "tensorboard"
    config.machine.device_type = "cpu"
    config.pipeline.editor.num_steps, config.pipeline.editor.resolution = 6, SIZE
    return Case(data, config, tiny_editor)
