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
from qnerf_nerfstudio.diffusion.weights_file import WeightsFile, expect

CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
"""Parts of a diffusers model folder that have settings, beside its tokenizer, and where these are."""
CONFIGS_XL = {**CONFIGS, "text_encoder_2": "config.json"}
"""The same of Stable Diffusion XL, which has a second tokenizer, too."""
CLASSES = {
    "unet": "diffusers.UNet2DConditionModel",
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.CLIPTextModelWithProjection",
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
EXPECTED = "expected Stable Diffusion 1.x, 2.x or XL"
SIZES = 6
"""Numbers that tell Stable Diffusion XL the sizes of the original and the result, and the corner of the crop."""


def check_model_set(config: EditorConfig, model: str) -> dict[str, Any]:
    """Check a model set by its files and settings; of models on the hub the settings alone are downloaded.

    Args:
        config: Settings.
        model: Hub id, local folder or file of the model set.

    Returns:
        Settings of its UNet, as far as they are known.

    Raises:
        UserError: A part is missing, unreadable, not in safetensors, or does not fit the others.
    """
    if Path(model).is_file():
        return _check_file(config, Path(model))
    if Path(model).exists():
        _check_folder(Path(model))
    parts = _check_settings(config, "editor.model", model)
    if Path(model).exists():
        folders = {part: Path(model) / part for part in parts if part != "scheduler"}
        # A part may lack the variant, but one that no part has is a mistake.
        lacking = all(part_variant(folder, config.variant) is None for folder in folders.values())
        if config.variant is not None and lacking:
            raise UserError(
                f"--pipeline.editor.model: {model} has no {config.variant} weights; leave out "
                f"--pipeline.editor.variant, or set it to None where a method has it"
            )
        for part, folder in folders.items():
            check_weights("editor.model", folder, CLASSES[part], config.variant)
    return parts["unet"]


def _check_settings(config: EditorConfig, option: str, model: str) -> dict[str, dict[str, Any]]:
    """Check the settings of a model set's parts; all of them by part."""
    unet = read_settings(option, model, "unet/config.json", config.revision)
    configs = CONFIGS_XL if is_xl(unet) else CONFIGS
    if Path(model).exists():
        _refuse_missing(option, Path(model), configs)
    parts = {name: read_settings(option, model, f"{name}/{file}", config.revision) for name, file in configs.items()}
    _check_parts(config, f"--pipeline.{option}: {model}", model, parts)
    return parts


def _check_file(config: EditorConfig, path: Path) -> dict[str, Any]:
    """Check a model in a single file, and the settings that it is read with; what is known of its UNet's settings."""
    found = expect("editor.model", path, "model")
    if found.lacks:
        raise UserError(
            f"--pipeline.editor.model: {path} holds a UNet without {found.lacks}; expected a whole model in one file, "
            f"or a diffusers folder"
        )
    unet = _settings_of_file(config, found)
    wanted = unet.get("in_channels", 4)
    if found.channels not in (None, wanted):
        hint = " as inpainting models have" if found.channels == 9 else ""
        raise UserError(
            f"--pipeline.editor.model: {path}: its unet takes {found.channels} channels{hint}, expected {wanted}; give "
            f"the model for text-to-image that it was made from"
        )
    return unet


def _settings_of_file(config: EditorConfig, found: WeightsFile) -> dict[str, Any]:
    """Settings of the UNet in a single file, as far as they are known."""
    if config.config is None:
        return {"cross_attention_dim": found.text_width, "addition_embed_type": "text_time" if found.is_xl else None}
    if not (Path(config.config) / "model_index.json").exists():
        raise UserError(
            f"--pipeline.editor.config: {config.config} has no model_index.json; expected the folder of a model set, "
            f"weights are not needed"
        )
    unet = _check_settings(config, "editor.config", config.config)["unet"]
    if is_xl(unet) != found.is_xl or found.text_width not in (None, unet.get("cross_attention_dim")):
        raise UserError(
            f"--pipeline.editor.model: {found.path} holds {found.described()}, but --pipeline.editor.config "
            f"{config.config} has the settings of another one, which reads text of width "
            f"{unet.get('cross_attention_dim')}"
        )
    return unet


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


def _check_folder(folder: Path) -> None:
    """Check that a local model set is a folder with all of its parts."""
    index = folder / "model_index.json"
    if index.exists():
        stated = read_settings("editor.model", str(folder), index.name, None)
        foreign = [part for part in ("text_encoder_3", "transformer", "prior") if part in stated]
        if foreign:
            raise UserError(
                f"--pipeline.editor.model: {index} is of a {stated.get('_class_name')} (with {foreign[0]}); {EXPECTED}"
            )
    if (folder / LORA).exists() and not index.exists():
        raise UserError(
            f"--pipeline.editor.model: {folder} holds LoRA weights alone ({LORA}); expected a whole diffusers model: "
            f"name the one that they were made for, and the folder by --pipeline.editor.lora"
        )
    _refuse_missing("editor.model", folder, CONFIGS)


def _refuse_missing(option: str, folder: Path, configs: dict[str, str]) -> None:
    """Refuse a local model set that lacks one of such parts, or a tokenizer of its text encoders."""
    missing = [part for part, file in configs.items() if not (folder / part / file).exists()]
    for part in (name.replace("text_encoder", "tokenizer") for name in configs if name.startswith("text_encoder")):
        if not any((folder / part / name).exists() for name in ("tokenizer.json", "vocab.json")):
            missing.append(part)
    if missing:
        raise UserError(
            f"--pipeline.{option}: {folder} has no {', '.join(missing)}; expected a whole diffusers model with "
            f"{', '.join(configs)} and tokenizer, as hf download ID --local-dir FOLDER fetches it"
        )


def is_xl(unet: dict[str, Any]) -> bool:
    """Whether a UNet with these settings is that of Stable Diffusion XL."""
    return unet.get("addition_embed_type") == "text_time"


def zeros_for_empty(name: str, revision: str | None) -> bool:
    """Whether a model set of Stable Diffusion XL reads an empty negative prompt as zeros, as its index says."""
    if Path(name).exists() and not (Path(name) / "model_index.json").exists():
        return True
    stated = read_settings("editor.model", name, "model_index.json", revision)
    return bool(stated.get("force_zeros_for_empty_prompt", True))


def read_settings(option: str, name: str, file: str, revision: str | None) -> dict[str, Any]:
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


def _check_parts(config: EditorConfig, where: str, model: str, parts: dict[str, dict[str, Any]]) -> None:
    """Check that the parts of a model set are those of Stable Diffusion and fit each other."""
    unet, vae, text, scheduler = (parts[name] for name in ("unet", "vae", "text_encoder", "scheduler"))
    for name in ("unet", "vae"):
        found, wanted = parts[name].get("_class_name"), CLASSES[name].split(".")[1]
        if found not in (None, wanted):
            raise UserError(f"{where}: its {name} is a {found}, not a {wanted}; {EXPECTED}")
    if unet.get("addition_embed_type") not in (None, "text_time"):
        raise UserError(f"{where}: its unet wants more than text (unet: addition_embed_type is set); {EXPECTED}")
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
    _check_text(where, unet, text, parts.get("text_encoder_2"))
    steps = scheduler.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or config.num_steps > steps:
        raise UserError(
            f"--pipeline.editor.num-steps is {config.num_steps}, but {model} was trained with {steps} timesteps; give "
            f"at most as many"
        )


def _check_text(where: str, unet: dict[str, Any], text: dict[str, Any], second: dict[str, Any] | None) -> None:
    """Check that the text encoders of a model set fit its UNet."""
    width, reads = text.get("hidden_size"), unet.get("cross_attention_dim")
    if second is not None and None not in (width, second.get("hidden_size")):
        width += second["hidden_size"]
    if None not in (width, reads) and width != reads:
        encoders = "text_encoder is" if second is None else "text encoders are"
        raise UserError(
            f"{where}: its {encoders} {width} wide, its unet reads text of width {reads}; download the model "
            f"again, both come from one"
        )
    if second is None:
        return
    inputs, embedded = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim", 256)
    pooled = second.get("projection_dim", 512)
    given = SIZES * embedded + pooled
    if isinstance(inputs, int) and inputs != given:
        raise UserError(
            f"{where}: its unet takes {inputs} numbers of sizes and pooled text, but {given} are given "
            f"(projection_class_embeddings_input_dim), as with a refiner; give the base model of Stable Diffusion XL"
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


def check_weights(option: str, folder: Path, loader: str, variant: str | None) -> None:
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
        named = read_settings(option, str(folder), index.name, None).get("weight_map", {})
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
