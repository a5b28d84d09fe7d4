"""What an editor's options add to a model set, looked at before weights are loaded: ControlNet, VAE, LoRA."""

from pathlib import Path
from typing import Any

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.model_check import CLASSES, LORA, check_weights, is_xl, read_settings
from qnerf_nerfstudio.diffusion.weights_file import WeightsFile, expect


def check_controlnet(model: str, unet: dict[str, Any], controlnet: str) -> None:
    """Check a ControlNet, against the settings of a UNet where they are known.

    Raises:
        UserError: It is unreadable, not in safetensors, or made for another model.
    """
    if Path(controlnet).is_file():
        _refuse_other_base(
            "editor.controlnet", expect("editor.controlnet", Path(controlnet), "controlnet"), model, unet
        )
        return
    _check_controlnet(model, unet, controlnet, read_settings("editor.controlnet", controlnet, "config.json", None))
    if Path(controlnet).exists():
        check_weights("editor.controlnet", Path(controlnet), CLASSES["controlnet"], None)


def _check_controlnet(model: str, unet: dict[str, Any], controlnet: str, settings: dict[str, Any]) -> None:
    """Check that a ControlNet was made for the UNet."""
    where = f"--pipeline.editor.controlnet: {controlnet}"
    found = settings.get("_class_name", "ControlNetModel")
    if found != "ControlNetModel":
        raise UserError(f"{where} is a {found}; expected a ControlNet for {model}")
    if settings.get("addition_embed_type") != unet.get("addition_embed_type", settings.get("addition_embed_type")):
        base = "Stable Diffusion XL" if is_xl(settings) else "Stable Diffusion 1.x or 2.x"
        raise UserError(f"{where} was made for {base}; choose a ControlNet made for {model}")
    images = settings.get("conditioning_channels", 3)
    if images != 3:
        raise UserError(
            f"{where} reads control images of {images} channels (conditioning_channels), an edit draws 3; choose "
            f"another one made for {model}"
        )
    if settings.get("class_embed_type") is not None or settings.get("num_class_embeds") is not None:
        raise UserError(f"{where} wants class labels, which an edit does not give; choose another one made for {model}")
    words = {
        "cross_attention_dim": "reads text of width",
        "block_out_channels": "has blocks of the widths",
        "layers_per_block": "has this many layers per block:",
        "in_channels": "takes this many channels:",
    }
    for key, what in words.items():
        own, wanted = settings.get(key), unet.get(key)
        if None not in (own, wanted) and own != wanted:
            raise UserError(
                f"{where} {what} {own}, the unet of {model} {wanted} ({key}); choose a ControlNet made for this model"
            )


def check_vae(vae: str) -> None:
    """Check a VAE of its own.

    Raises:
        UserError: It is none, or unreadable.
    """
    if Path(vae).is_file():
        expect("editor.vae", Path(vae), "vae")
        return
    found = read_settings("editor.vae", vae, "config.json", None).get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise UserError(f"--pipeline.editor.vae: {vae} is a {found}; expected an AutoencoderKL")
    if Path(vae).exists():
        check_weights("editor.vae", Path(vae), CLASSES["vae"], None)


def check_lora(lora: str, model: str, unet: dict[str, Any]) -> str:
    """Check local LoRA weights against the settings of a UNet.

    Returns:
        Their file, or the hub id.

    Raises:
        UserError: They are none, unreadable, or made for another model.
    """
    path = Path(lora)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"--pipeline.editor.lora: {lora} has no .safetensors file; name the file of LoRA weights")
        path = path / LORA if path / LORA in files else files[0]
    if not path.exists():
        return lora
    _refuse_other_base("editor.lora", expect("editor.lora", path, "lora"), model, unet)
    return str(path)


def _refuse_other_base(option: str, found: WeightsFile, model: str, unet: dict[str, Any]) -> None:
    """Refuse a file of weights that was made for a UNet which reads other text."""
    wanted = unet.get("cross_attention_dim")
    if None not in (found.text_width, wanted) and found.text_width != wanted:
        raise UserError(
            f"--pipeline.{option}: {found.path} was made for {found.base}, but {model} reads text of width {wanted}; "
            f"choose one made for this model"
        )
