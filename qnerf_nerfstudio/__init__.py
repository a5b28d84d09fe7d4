"""3D-consistent geometric editing of captured scenes, as a nerfstudio method.

The names below are the public ones. They load on first use, so that importing the package stays quick.
"""

import importlib
from typing import Any

from qnerf_nerfstudio.common.version import __version__ as __version__

_PUBLIC = {
    "capture.cameras": ("Views",),
    "capture.capture": ("Capture", "read_capture"),
    "common.errors": ("UserError",),
    "controls.draw": ("control_images",),
    "diffusion.conditions": ("QueryTargets", "SourceBranch"),
    "diffusion.config": ("EditorConfig",),
    "diffusion.editor": ("ControlNetEditor",),
    "diffusion.loading": ("load_editor",),
    "diffusion.text": ("Prompts", "TextStates"),
    "diffusion.queries": ("CodecFit", "Extraction", "QueryCodec"),
    "edit.reading": ("load_edit",),
    "edit.schema": ("Edit", "SkeletonControl", "control_kinds"),
    "field.field": ("QNerfField",),
    "field.model": ("QNerfModel", "QNerfModelConfig"),
    "run.plan": ("Plan", "PlanConfig"),
    "run.settings": ("RunSettings",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for names in _PUBLIC.values() for name in names)]
