"""Loads a model set from the hub, from a local folder, or from the package; safetensors only."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED, BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.controlnets import choose_controlnet
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.model_check import cannot_load, check_device, check_models, part_variant


def load_editor(config: EditorConfig, device: torch.device | str, kind: str | None = None) -> ControlNetEditor:
    """Build the editor that `config` names.

    Args:
        config: Settings; `config.device` wins over `device`.
        device: Where the field is, and by default the editor.
        kind: What the control images show: "openpose", "depth" or "normal"; None where it is not known.

    Raises:
        UserError: A model cannot be found, reached or read, its parts do not fit each other or the device, or the
            ControlNet does not read such control images.
    """
    device = check_device(config.device or device, config.dtype)
    model = str(BUNDLED_FOLDER) if config.model == BUNDLED else config.model
    control = choose_controlnet(config, kind)
    control = str(BUNDLED_FOLDER / "controlnet") if control == BUNDLED else control
    check_models(config, model, control)
    common = {"revision": config.revision}
    single = {"torch_dtype": getattr(torch, config.dtype), "use_safetensors": True}
    weights = {**common, **single}

    def variant(part: str) -> dict[str, str | None]:
        local = Path(model) / part
        return {"subfolder": part, "variant": part_variant(local, config.variant) if local.exists() else config.variant}

    tokenizer = _load(CLIPTokenizer, "editor.model", model, subfolder="tokenizer", **common)
    text_encoder = _load_weights(CLIPTextModel, "editor.model", model, **variant("text_encoder"), **weights)
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= text_encoder.config.vocab_size:
        raise UserError(
            f"--pipeline.editor.model: {model}: its tokenizer has tokens up to {last}, its text_encoder reads "
            f"{text_encoder.config.vocab_size} of them; download the model again, both come from one"
        )
    unet = _load_weights(UNet2DConditionModel, "editor.model", model, **variant("unet"), **weights)
    vae = _load_weights(AutoencoderKL, "editor.model", model, **variant("vae"), **weights)
    scheduler = _load(DDIMScheduler, "editor.model", model, subfolder="scheduler", **common)
    controlnet = _load_weights(ControlNetModel, "editor.controlnet", control, **single)
    try:
        editor = ControlNetEditor(vae, text_encoder, tokenizer, unet, controlnet, scheduler, config, device)
        _try(editor)
    except UserError:
        raise
    except Exception as error:  # what settings of a part ask for may show only where it is used
        raise UserError(cannot_load("editor.model", model, f"parts that work with {control}", error)) from error
    return editor


def _try(editor: ControlNetEditor) -> None:
    """Let every part compute once, on a small image."""
    image = torch.zeros(1, 3, 2 * editor.stride, 2 * editor.stride)
    prompt = editor.encode_prompt("a trial")
    editor.decode(editor.invert_step(editor.encode(image), editor.num_steps - 1, prompt, image))


def _load(cls: Any, option: str, name: str, **kwargs: Any) -> Any:
    """`cls.from_pretrained` with an error that names the option and the remedy."""
    try:
        return cls.from_pretrained(name, **kwargs)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(cannot_load(option, name, kwargs.get("subfolder", "ControlNet"), error)) from error


def _load_weights(cls: Any, option: str, name: str, **kwargs: Any) -> Any:
    """The same for a model; weights that its files lack would be random ones."""
    model, found = _load(cls, option, name, output_loading_info=True, **kwargs)
    if missing := sorted(found["missing_keys"]):
        part = kwargs.get("subfolder", "ControlNet")
        reason = ValueError(f"{len(missing)} tensors are missing in its weights, such as {missing[0]}")
        raise UserError(cannot_load(option, name, part, reason))
    return model
