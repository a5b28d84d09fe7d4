"""Which ControlNet reads which control."""

import re

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED, BUNDLED_KINDS
from qnerf_nerfstudio.diffusion.config import EditorConfig

AUTO = "auto"
PUBLISHED = {
    "openpose": "lllyasviel/control_v11p_sd15_openpose",
    "depth": "lllyasviel/control_v11f1p_sd15_depth",
    "normal": "lllyasviel/control_v11p_sd15_normalbae",
}
"""ControlNets for Stable Diffusion 1.5 on the hub, by what the control images show."""
_NAMED = {
    "openpose": "openpose",
    "pose": "openpose",
    "depth": "depth",
    "normal": "normal",
    "normalbae": "normal",
    "canny": "canny",
    "scribble": "scribble",
    "softedge": "softedge",
    "hed": "softedge",
    "lineart": "lineart",
    "seg": "seg",
    "mlsd": "mlsd",
}
"""Words of ControlNets' names, and what such a ControlNet reads."""


def controlnet_kind(name: str) -> str | None:
    """What a ControlNet reads, as far as its hub id or folder tells; None where it does not."""
    words = re.split(r"[^a-z0-9]+", name.rstrip("/").rsplit("/", 1)[-1].lower())
    return next((_NAMED[word] for word in words if word in _NAMED), None)


def choose_controlnet(config: EditorConfig, kind: str | None) -> str:
    """The ControlNet that a run loads: the configured one, or for "auto" the one that reads the edit's control.

    Args:
        config: Settings.
        kind: What the control images show; None where it is not known.

    Raises:
        UserError: The configured ControlNet does not read such control images, or none can be chosen.
    """
    name = config.controlnet
    if name == AUTO:
        if config.model == BUNDLED:
            name = BUNDLED
        elif kind is None:
            raise UserError(
                'edit.json: control: "images" do not say what they show; add "kind" ("openpose", "depth" or "normal"), '
                "or name a ControlNet by --pipeline.editor.controlnet"
            )
        else:
            return PUBLISHED[kind]
    if kind is None:
        return name
    if name == BUNDLED:
        if kind not in BUNDLED_KINDS:
            raise UserError(
                f"the bundled editor reads {' and '.join(BUNDLED_KINDS)} controls, but edit.json's control is drawn as "
                f"{kind}; use the method qnerf-edit with Stable Diffusion"
            )
        return name
    reads = controlnet_kind(name)
    if reads is not None and reads != kind:
        raise UserError(
            f"--pipeline.editor.controlnet {name} reads {reads} controls, but edit.json's control is drawn as {kind}; "
            f"use {PUBLISHED[kind]} or leave the option out"
        )
    return name
