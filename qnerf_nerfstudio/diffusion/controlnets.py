"""Which ControlNet reads which control."""

import re
from collections.abc import Mapping, Sequence

from qnerf_nerfstudio.common.console import CONSOLE
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
PUBLISHED_XL = {
    "openpose": "xinsir/controlnet-openpose-sdxl-1.0",
    "depth": "diffusers/controlnet-depth-sdxl-1.0",
}
"""The same for Stable Diffusion XL."""
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
    **dict.fromkeys(("tile", "ip2p", "shuffle", "inpaint", "qrcode", "qr", "brightness", "recolor", "illumination")),
}
"""Words of ControlNets' names, and what such a ControlNet reads; None: no drawing of a scene, but pictures."""


UNKNOWN = "unknown"


def controlnet_kind(name: str) -> str | None:
    """What a ControlNet reads, as far as its hub id or folder tells: UNKNOWN where it does not, None for pictures."""
    words = re.split(r"[^a-z0-9]+", name.rstrip("/").rsplit("/", 1)[-1].lower())
    return next((_NAMED[word] for word in words if word in _NAMED), UNKNOWN)


def choose_controlnets(config: EditorConfig, kinds: Sequence[str] | None, xl: bool = False) -> list[str]:
    """The ControlNets that a run loads: the configured ones, or for "auto" those that read the edit's control.

    Args:
        config: Settings.
        kinds: What the control images show; None where it is not known.
        xl: Whether the model is Stable Diffusion XL.

    Raises:
        UserError: A configured ControlNet does not read such control images, none can be chosen, or there are more or
            fewer than kinds of control images, or than weights.
    """
    names, wanted = config.controlnet, [None] if kinds is None else list(kinds)
    if names in ((AUTO,), (BUNDLED,)):
        names = names * len(wanted)
    if len(names) != len(wanted):
        shown = "one kind of images" if kinds is None else " and ".join(kinds)
        raise UserError(
            f"--pipeline.editor.controlnet names {len(names)} ControlNets, but edit.json's control is drawn as "
            f"{shown}; name one for each, in this order, or leave the option out"
        )
    if len(config.controlnet_scale) not in (1, len(names)):
        raise UserError(
            f"--pipeline.editor.controlnet-scale has {len(config.controlnet_scale)} weights for {len(names)} "
            f"ControlNets; give one for all, or one for each"
        )
    return [
        _choose(config, name, kind, PUBLISHED_XL if xl else PUBLISHED) for name, kind in zip(names, wanted, strict=True)
    ]


def _choose(config: EditorConfig, name: str, kind: str | None, published: Mapping[str, str]) -> str:
    """The ControlNet that reads one kind of control images."""
    if name == AUTO:
        if config.model == BUNDLED:
            name = BUNDLED
        elif kind is None:
            raise UserError(
                'edit.json: control: no ControlNet is known for it, as "images" do not say what they show, or a '
                'skeleton has joints of its own; add "kind" ("openpose", "depth" or "normal") to images, name a '
                "ControlNet by --pipeline.editor.controlnet, or move a skeleton by --pipeline.editing carried"
            )
        elif kind not in published:
            raise UserError(
                f"edit.json: control: no ControlNet of Stable Diffusion XL is known for {kind} controls; let it be "
                f"drawn as depth, or name a ControlNet by --pipeline.editor.controlnet"
            )
        else:
            return published[kind]
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
    if reads is UNKNOWN:
        CONSOLE.print(
            f"--pipeline.editor.controlnet {name}: its name does not say what it reads; edit.json's control is drawn "
            f"as {kind}.",
            style="yellow",
            soft_wrap=True,
            markup=False,
        )
        return name
    remedy = f"use {published[kind]} or leave the option out" if kind in published else "name another one"
    if reads is None:
        raise UserError(
            f"--pipeline.editor.controlnet {name} reads pictures, no drawings of a scene, but edit.json's control is "
            f"drawn as {kind}; {remedy}"
        )
    if reads != kind:
        raise UserError(
            f"--pipeline.editor.controlnet {name} reads {reads} controls, but edit.json's control is drawn as {kind}; "
            f"{remedy}"
        )
    return name
