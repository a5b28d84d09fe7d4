"""What the manual says of the package is so."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from edit_reference import PAGE, reference

import qnerf_nerfstudio

PACKAGE = Path(qnerf_nerfstudio.__file__).parent
ROOT = PACKAGE.parent
MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_key_of_an_edit_is_listed() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "write it again: python docs/tools/edit_reference.py"


def test_every_public_name_is_listed() -> None:
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = [f"{module}.{name}" for module, names in qnerf_nerfstudio._PUBLIC.items() for name in names]
    assert listed == [f"qnerf_nerfstudio.{name}" for name in public]


@cache
def _strings() -> list[str]:
    """All strings of the package but docstrings, with … for what is filled in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for parent in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(parent, ast.Expr):
                found += [text for node in ast.iter_child_nodes(parent) if (text := _text(node))]
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_that_are_explained_exist(message: str) -> None:
    assert any(message.rstrip("…") in text for text in _strings())
