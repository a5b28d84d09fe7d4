"""A model set, looked at before its weights are loaded: is all of it there, and do its parts fit each other?"""

import json
import shlex
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import error_text
from qnerf_nerfstudio.diffusion.config import EditorConfig

CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
"""Parts of a diffusers model folder that have settings, beside its tokenizer, and where these are."""
CLASSES = {
    "unet": "diffusers.UNet2DConditionModel",
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "controlnet": "diffusers.ControlNetModel",
}
"""Parts that hold weights, and the classes that load them."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
LORA = "pytorch_lora_weights.safetensors"
UNFED = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "time_cond_proj_dim": "a guidance scale, as distilled (LCM) models do",
    "encoder_hid_dim_type": "image embeddings",
}
"""Settings of UNets by which they want inputs that an edit does not give, and what these are."""
EXPECTED = "expected Stable Diffusion 1.x or 2.x"


def check_models(config: EditorConfig, model: str, controlnet: str) -> None:
    """Check a model set by its files and settings; of models on the hub the settings alone are downloaded.

    Args:
        config: Settings.
        model: Hub id or local folder of the model set.
        controlnet: Hub id or local folder of the ControlNet.

    Raises:
        UserError: A part is missing, unreadable, not in safetensors, or does not fit the others.
    """
    if Path(controlnet).is_file():
        raise UserError(_single_file("editor.controlnet", controlnet, "ControlNetModel"))
    unet = check_model_set(config, model)
    check_controlnet(model, unet, controlnet)


def check_model_set(config: EditorConfig, model: str) -> dict[str, Any]:
    """Check the model set of `check_models`; the settings of its UNet.

    Raises:
        UserError: See `check_models`.
    """
    if Path(model).exists():
        _check_folder(Path(model))
    parts = {
        part: _settings("editor.model", model, f"{part}/{file}", config.revision) for part, file in CONFIGS.items()
    }
    _check_parts(config, model, parts)
    if Path(model).exists():
        folders = {part: Path(model) / part for part in ("unet", "vae", "text_encoder")}
        # A part may lack the variant, but one that no part has is a mistake.
        lacking = all(part_variant(folder, config.variant) is None for folder in folders.values())
        if config.variant is not None and lacking:
            raise UserError(
                f"--pipeline.editor.model: {model} has no {config.variant} weights; leave out --pipeline.editor.variant"
            )
        for part, folder in folders.items():
            _check_weights("editor.model", folder, CLASSES[part], config.variant)
    return parts["unet"]


def check_controlnet(model: str, unet: dict[str, Any], controlnet: str) -> None:
    """Check a ControlNet, against the settings of a UNet where they are known.

    Raises:
        UserError: See `check_models`.
    """
    _check_controlnet(model, unet, controlnet, _settings("editor.controlnet", controlnet, "config.json", None))
    if Path(controlnet).exists():
        _check_weights("editor.controlnet", Path(controlnet), CLASSES["controlnet"], None)


def check_device(name: str | torch.device, dtype: str) -> torch.device:
    """The device of the diffusion models.

    Args:
        name: As --pipeline.editor.device, or the field's own device.
        dtype: Precision of the models.

    Raises:
        UserError: There is no such device, or it does not compute in this precision.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for a device
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UserError(
            f"--pipeline.editor.device: {name} cannot be used here; expected one of {', '.join(there)}, or leave it out"
        ) from error
    if device.type == "cpu" and dtype == "float16":
        raise UserError(
            "--pipeline.editor.dtype is float16, in which CPUs are slow or cannot compute at all; give "
            "--pipeline.editor.dtype float32, or use the method qnerf-edit-tiny"
        )
    return device


def _single_file(option: str, path: str | Path, pipeline: str) -> str:
    code = f"from diffusers import {pipeline} as M; M.from_single_file('{path}').save_pretrained('converted')"
    return (
        f"--pipeline.{option}: {path} is a single file; expected a diffusers folder, make one with python -c "
        f"{shlex.quote(code)} where you trust the file"
    )


def _check_folder(folder: Path) -> None:
    """Check that a local model set is a folder with all of its parts."""
    if folder.is_file():
        raise UserError(_single_file("editor.model", folder, "StableDiffusionPipeline"))
    index = folder / "model_index.json"
    if index.exists():
        stated = _settings("editor.model", str(folder), index.name, None)
        foreign = [part for part in ("text_encoder_2", "transformer") if part in stated]
        if foreign:
            raise UserError(
                f"--pipeline.editor.model: {index} is of a {stated.get('_class_name')} (with {foreign[0]}); {EXPECTED}"
            )
    if (folder / LORA).exists() and not index.exists():
        raise UserError(
            f"--pipeline.editor.model: {folder} holds LoRA weights alone ({LORA}); expected a whole diffusers model: "
            f"fuse them into the one that they were made for (diffusers' fuse_lora and save_pretrained), and name that"
        )
    missing = [part for part, file in CONFIGS.items() if not (folder / part / file).exists()]
    if not any((folder / "tokenizer" / name).exists() for name in ("tokenizer.json", "vocab.json")):
        missing.append("tokenizer")
    if missing:
        raise UserError(
            f"--pipeline.editor.model: {folder} has no {', '.join(missing)}; expected a whole diffusers model with "
            f"{', '.join(CONFIGS)} and tokenizer, as hf download ID --local-dir FOLDER fetches it"
        )


def _settings(option: str, name: str, file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a local model, or of one on the hub."""
    local = Path(name).exists()
    try:
        path = Path(name) / file if local else Path(hf_hub_download(name, file, revision=revision))
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(cannot_load(option, name, file, error)) from error
    return settings


def cannot_load(option: str, name: str, part: str, error: Exception) -> str:
    """The sentence for a model that cannot be loaded.

    Args:
        option: Option that names the model, without "--pipeline.".
        name: Hub id or folder.
        part: What could not be loaded of it.
        error: Why.
    """
    where = (
        f"the folder {name}"
        if Path(name).exists()
        else f"the model {name}, neither a local folder nor reached on the hub"
    )
    reason = error_text(error)
    return (
        f"--pipeline.{option}: cannot load {part} from {where} ({reason}); give the path of a downloaded diffusers "
        f"model with safetensors, check the id, or try the bundled editor with the method qnerf-edit-tiny"
    )


def _check_parts(config: EditorConfig, model: str, parts: dict[str, dict[str, Any]]) -> None:
    """Check that the parts of a model set are those of Stable Diffusion and fit each other."""
    where = f"--pipeline.editor.model: {model}"
    unet, vae, text, scheduler = (parts[name] for name in ("unet", "vae", "text_encoder", "scheduler"))
    for name in ("unet", "vae"):
        found, wanted = parts[name].get("_class_name"), CLASSES[name].split(".")[1]
        if found not in (None, wanted):
            raise UserError(f"{where}: its {name} is a {found}, not a {wanted}; {EXPECTED}")
    if unet.get("addition_embed_type") is not None:
        raise UserError(f"{where} is Stable Diffusion XL (unet: addition_embed_type is set); {EXPECTED}")
    if "CrossAttn" not in str(unet.get("up_block_types", "CrossAttn")):
        raise UserError(f"{where}: its unet has no attention in its decoder, whose queries are edited; {EXPECTED}")
    for key, wanted in UNFED.items():
        if unet.get(key) is not None:
            raise UserError(f"{where}: its unet wants {wanted} ({key} is set), which an edit does not give; {EXPECTED}")
    crossed = unet.get("only_cross_attention", False)
    if crossed is True or (isinstance(crossed, list) and any(crossed)):
        raise UserError(
            f"{where}: its unet has cross-attention alone (only_cross_attention), but the queries of its "
            f"self-attention are edited; {EXPECTED}"
        )
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        raise UserError(f"{where} predicts {predicted!r} (scheduler: prediction_type); {EXPECTED}")
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        hint = " as inpainting models have" if channels == 9 else ""
        raise UserError(
            f"{where}: its unet takes {channels} channels{hint}, its vae gives {latents}; give the model for "
            f"text-to-image that it was made from"
        )
    width, reads = text.get("hidden_size"), unet.get("cross_attention_dim")
    if None not in (width, reads) and width != reads:
        raise UserError(
            f"{where}: its text_encoder is {width} wide, its unet reads text of width {reads}; download the model "
            f"again, both come from one"
        )
    steps = scheduler.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or config.num_steps > steps:
        raise UserError(
            f"--pipeline.editor.num-steps is {config.num_steps}, but {model} was trained with {steps} timesteps; give "
            f"at most as many"
        )


def _check_controlnet(model: str, unet: dict[str, Any], controlnet: str, settings: dict[str, Any]) -> None:
    """Check that a ControlNet was made for the UNet."""
    where = f"--pipeline.editor.controlnet: {controlnet}"
    found = settings.get("_class_name", "ControlNetModel")
    if found != "ControlNetModel":
        raise UserError(f"{where} is a {found}; expected a ControlNet for {model}")
    if settings.get("addition_embed_type") is not None:
        raise UserError(f"{where} was made for Stable Diffusion XL; choose a ControlNet made for {model}")
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


def _variant(path: Path) -> str | None:
    """The variant of a file of weights, None of a plain one.

    Files are model.safetensors, model.fp16.safetensors, or one of several: model.fp16-00001-of-00002.safetensors."""
    return path.name.split(".")[1].split("-")[0] if path.name.count(".") > 1 else None


def part_variant(folder: Path, variant: str | None) -> str | None:
    """The variant that a local part is loaded in: the one that is asked for, or its plain weights where it has none.

    Publishers give some parts in half precision, and leave the small ones plain."""
    kinds = {_variant(path) for path in folder.glob("*.safetensors") if path.name != LORA}
    return None if variant not in kinds and None in kinds else variant


def _check_weights(option: str, folder: Path, loader: str, variant: str | None) -> None:
    """Check that a local part has whole weights in safetensors."""
    where = f"--pipeline.{option}: {folder}"
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != LORA)
    if not files:
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
        if not pickled:
            raise UserError(f"{where} has no weights; download *.safetensors to it")
        library, name = loader.split(".")
        code = f"from {library} import {name} as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise UserError(
            f"{where} has pickled weights only ({pickled[0]}), which may run any code and are never loaded; download "
            f"the safetensors, or, where you trust the file, convert it with python -c {shlex.quote(code)}"
        )
    kinds = {path: _variant(path) for path in files}
    variant = part_variant(folder, variant)
    chosen = [path for path, kind in kinds.items() if kind == variant]
    if not chosen:
        there = sorted({kind for kind in kinds.values() if kind is not None})
        remedy = f"--pipeline.editor.variant {there[0]}" if there else "leave out --pipeline.editor.variant"
        if option == "editor.controlnet":
            remedy = f"rename {files[0].name} to diffusion_pytorch_model.safetensors"
        raise UserError(f"{where} has no {variant or 'plain'} weights, but {files[0].name}; {remedy}")
    for index in folder.glob("*.safetensors.index*.json"):
        named = _settings(option, str(folder), index.name, None).get("weight_map", {})
        lost = sorted({str(name) for name in named.values()} - {path.name for path in files})
        if lost and _variant(folder / lost[0]) == variant:
            raise UserError(f"{where} lacks {lost[0]}, which {index.name} names; download it again")
    for path in chosen:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"--pipeline.{option}: {path} is truncated or corrupt ({error}); download it again"
            ) from error
