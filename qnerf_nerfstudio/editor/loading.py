"""Loads a model set from the hub, from a local folder, or from the package; safetensors only."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.editor.config import BUNDLED, BUNDLED_FOLDER, EditorConfig
from qnerf_nerfstudio.editor.controlnets import choose_controlnet
from qnerf_nerfstudio.editor.editor import ControlNetEditor
from qnerf_nerfstudio.errors import UserError


def load_editor(config: EditorConfig, device: torch.device | str, kind: str | None = None) -> ControlNetEditor:
    """Build the editor that `config` names.

    Args:
        config: Settings; `config.device` wins over `device`.
        device: Where the field is, and by default the editor.
        kind: What the control images show: "openpose", "depth" or "normal"; None where it is not known.

    Raises:
        UserError: A model cannot be found, reached or read, its parts do not fit each other, or the ControlNet does not
            read such control images.
    """
    model = str(BUNDLED_FOLDER) if config.model == BUNDLED else config.model
    control = choose_controlnet(config, kind)
    control = str(BUNDLED_FOLDER / "controlnet") if control == BUNDLED else control
    common = {"revision": config.revision}
    dtype = {"torch_dtype": getattr(torch, config.dtype)}
    weights = {**common, **dtype, "variant": config.variant, "use_safetensors": True}
    tokenizer = _load(CLIPTokenizer, "editor.model", model, subfolder="tokenizer", **common)
    text_encoder = _load(CLIPTextModel, "editor.model", model, subfolder="text_encoder", **weights)
    unet = _load(UNet2DConditionModel, "editor.model", model, subfolder="unet", **weights)
    vae = _load(AutoencoderKL, "editor.model", model, subfolder="vae", **weights)
    scheduler = _load(DDIMScheduler, "editor.model", model, subfolder="scheduler", **common)
    controlnet = _load(ControlNetModel, "editor.controlnet", control, use_safetensors=True, **dtype)
    if controlnet.config.cross_attention_dim != unet.config.cross_attention_dim:
        raise UserError(
            f"editor.controlnet {control} reads text of width {controlnet.config.cross_attention_dim}, editor.model "
            f"{model} of width {unet.config.cross_attention_dim}; choose a ControlNet made for this model"
        )
    return ControlNetEditor(vae, text_encoder, tokenizer, unet, controlnet, scheduler, config, config.device or device)


def _load(cls: Any, option: str, name: str, **kwargs: Any) -> Any:
    """`cls.from_pretrained` with an error that names the option and the remedy."""
    try:
        return cls.from_pretrained(name, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        part = kwargs.get("subfolder", "ControlNet")
        where = (
            f"the folder {name}"
            if Path(name).exists()
            else f"the model {name}, neither a local folder nor reached on the hub"
        )
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--pipeline.{option}: cannot load {part} from {where} ({reason}); give the path of a downloaded diffusers "
            f"model with safetensors, check the id, or try the bundled editor with the method qnerf-edit-tiny"
        ) from error
