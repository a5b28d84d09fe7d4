"""Write docs/edit_json_reference.md from the schema of edit.json: `python docs/tools/edit_reference.py`."""

import ast
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from qnerf_nerfstudio.edit import schema

PAGE = Path(__file__).parents[1] / "edit_json_reference.md"
HEAD = """# edit.json: every key

Written by `docs/tools/edit_reference.py` from `qnerf_nerfstudio/edit/schema.py`. [edit.json](edit_json.md) explains how
the keys work together. Unknown keys are refused.
"""
TREE = ast.parse(inspect.getsource(schema))
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
COUNTED = {"string": "characters", "array": "entries", "object": "entries"}
"""What the length of a value counts."""


def reference() -> str:
    """The page."""
    document = schema.Edit.model_json_schema()
    models = document.pop("$defs")
    parts = [HEAD, *(_section(name, models.get(name, document)) for name in _in_order(document, models))]
    limits = {name: text for name, text in _documented(TREE.body).items() if name.isupper()}
    rows = [f"| `{name}` | {_number(getattr(schema, name))} | {text} |" for name, text in limits.items()]
    return "\n".join([*parts, "## Limits", "", "| name | value | of what |", "|---|---|---|", *rows, ""])


def _in_order(document: dict[str, Any], models: dict[str, Any]) -> list[str]:
    """Names of the models, each after those that name it."""
    names = ["Edit"]
    for name in names:
        found = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(models.get(name, document)["properties"]))
        names += [each for each in dict.fromkeys(found) if each not in names]
    return names


def _section(name: str, model: dict[str, Any]) -> str:
    """What is said of one object of the document."""
    described: dict[str, str] = {}
    for base in reversed(getattr(schema, name).__mro__):
        if base.__name__ in CLASSES:
            described |= _documented(CLASSES[base.__name__].body)
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, node in model["properties"].items():
        default = "required" if key in model.get("required", ()) else _default(node["default"])
        rows.append(f"| `{key}` | {_kind(node)} | {default} | {described.get(key, '')} |")
    return "\n".join([f"## {_words(name)}", "", model["description"], "", *rows, ""])


def _documented(body: list[ast.stmt]) -> dict[str, str]:
    """The docstrings below assignments in the body of a module or class, as cells of a table."""
    found = {}
    for stated, below in pairwise(body):
        if isinstance(stated, ast.Assign | ast.AnnAssign) and isinstance(below, ast.Expr):
            target = stated.target if isinstance(stated, ast.AnnAssign) else stated.targets[0]
            text = " ".join(ast.literal_eval(below.value).split())
            found[ast.unparse(target)] = text.replace("|", "\\|")
    return found


def _words(name: str) -> str:
    """The name of a model as a heading: MeshControl is a mesh control."""
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: f" {found[1].lower()}", name)


def _default(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if each is not None}
    return "none" if value is None else f"`{json.dumps(value)}`"


def _kind(node: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in node:
        words = _words(node["$ref"].rpartition("/")[2])
        return f"[{words}](#{words.lower().replace(' ', '-')})"
    if "const" in node:
        return f'`"{node["const"]}"`'
    if "enum" in node:
        return " or ".join(f'`"{each}"`' for each in node["enum"])
    for union in ("anyOf", "oneOf"):
        if union in node:
            return " or ".join(_kind(each) for each in node[union] if each.get("type") != "null")
    name = f"{node['type']}{_range(node)}".replace("array", "list")
    if node["type"] == "object":
        return f"{name}, each a name with a {_kind(node['additionalProperties'])}"
    # A list of coordinates has as many kinds as entries, all of them alike.
    entries = node.get("items") or node.get("prefixItems", [None])[0]
    return name if entries is None else f"{name} of {_kind(entries)}"


def _range(node: dict[str, Any]) -> str:
    """The limits of a number, or of a length, in brackets."""
    least, most = (
        next((_number(value) for key, value in node.items() if key.startswith(side)), None) for side in ("min", "max")
    )
    if least is None and most is None:
        return ""
    span = f"at least {least}" if most is None else f"at most {most}" if least is None else f"{least} to {most}"
    if least == most:
        span = f"{least}"
    return f" ({' '.join([span, COUNTED.get(node['type'], '')]).strip()})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
