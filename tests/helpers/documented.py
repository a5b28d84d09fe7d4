"""Commands as documents state them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commands_of(document: Path) -> list[str]:
    """The commands of a page's shell blocks, or of a script's docstring, without comments and leading prompts."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".py":
        lines = re.findall(r"^    (.+)$", ast.get_docstring(ast.parse(text)) or "", re.MULTILINE)
    else:
        blocks = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = (re.sub(r"\s#.*|^#.*|^\$ ", "", line).strip() for line in lines)
    return [command for command in commands if command]
