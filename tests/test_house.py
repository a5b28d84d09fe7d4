"""The house rules that no linter knows; the arrows between the rooms are import-linter's."""

import ast
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import qnerf_nerfstudio
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.field.model import QNerfModelConfig
from qnerf_nerfstudio.run.settings import RunSettings
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig

PACKAGE = Path(qnerf_nerfstudio.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = (RunSettings, EditorConfig, QNerfModelConfig, CaptureConfig, TrainEditorConfig)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert "unittest" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 80, node.name


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_is_explained_in_one_line(config: type) -> None:
    (tree,) = (
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == config.__name__
    )
    stated = {
        field.target.id: below.value.value
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
    own = {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for field in fields(config):
        if field.name in own and field.name != "_target":
            assert field.default is not MISSING or field.default_factory is not MISSING
            assert "\n" not in str(stated[field.name]), field.name


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import sys, qnerf_nerfstudio\n"
        "assert not {'torch', 'nerfstudio', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert qnerf_nerfstudio.Edit.__name__ == 'Edit' and 'ControlNetEditor' in dir(qnerf_nerfstudio)\n"
        "assert not {'nerfstudio', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names_are_there() -> None:
    for names in qnerf_nerfstudio._PUBLIC.values():
        assert all(getattr(qnerf_nerfstudio, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qnerf_nerfstudio.nothing


def _pages() -> list[Path]:
    root = PACKAGE.parent
    return sorted(page for folder in (".", "docs", "benchmarks", "examples") for page in root.glob(f"{folder}/*.md"))


@pytest.mark.parametrize("page", _pages(), ids=lambda path: path.name)
def test_links_of_the_manual_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith(("https://", "http://")) or (page.parent / target).exists(), target


def test_the_front_door_is_short() -> None:
    assert len((PACKAGE.parent / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
