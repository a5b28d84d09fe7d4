"""Loads a model set from the hub, from folders and files, or from the package; safetensors only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED, BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.controlnets import choose_controlnets
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.lora import fuse_lora
from qnerf_nerfstudio.diffusion.model_check import (
    cannot_load,
    check_device,
    check_model_set,
    is_xl,
    part_variant,
    zeros_for_empty,
)
from qnerf_nerfstudio.diffusion.models import Models
from qnerf_nerfstudio.diffusion.part_check import check_controlnet, check_lora, check_vae
from qnerf_nerfstudio.diffusion.single_file import load_part, load_pipeline
from qnerf_nerfstudio.diffusion.text import PromptEncoder
from qnerf_nerfstudio.diffusion.weights_file import expect


def load_editor(
    config: EditorConfig, device: torch.device | str, kinds: Sequence[str] | None = None
) -> ControlNetEditor:
    """Build the editor that `config` names.

    Args:
        config: Settings; `config.device` wins over `device`.
        device: Where the field is, and by default the editor.
        kinds: What the control images show: "openpose", "depth" or "normal"; None where it is not known.

    Raises:
        UserError: A model cannot be found, reached or read, its parts do not fit each other or the device, or the
            ControlNet does not read such control images.
    """
    device = check_device(config.device or device, config.dtype)
    model = str(BUNDLED_FOLDER) if config.model == BUNDLED else config.model
    settings = check_model_set(config, model)
    names = choose_controlnets(config, kinds, is_xl(settings))
    names = [str(BUNDLED_FOLDER / "controlnet") if name == BUNDLED else name for name in names]
    for name in names:
        check_controlnet(model, settings, name)
    if config.vae is not None:
        check_vae(config.vae)
    lora = None if config.lora is None else check_lora(config.lora, model, settings)
    dtype: torch.dtype = getattr(torch, config.dtype)
    if Path(model).is_file():
        parts = _parts_of_file(config, Path(model), is_xl(settings))
    else:
        parts = _parts_of_set(config, model, dtype)
    if config.vae is not None:
        parts.vae = _part(AutoencoderKL, "editor.vae", config.vae, parts.vae.config, dtype)
    if lora is not None:
        fuse_lora(parts, lora, config.lora_scale)
    controlnets = [
        _part(ControlNetModel, "editor.controlnet", name, _controlnet_settings(parts, name), dtype) for name in names
    ]
    try:
        editor = ControlNetEditor(parts, controlnets, config, device)
        _try(editor)
    except UserError:
        raise
    except Exception as error:  # what settings of a part ask for may show only where it is used
        raise UserError(
            cannot_load("editor.model", model, f"parts that work with {' and '.join(names)}", error)
        ) from error
    return editor


def _parts_of_set(config: EditorConfig, model: str, dtype: torch.dtype) -> Models:
    """The models of a local folder or of the hub."""
    weights = {"revision": config.revision, "torch_dtype": dtype, "use_safetensors": True}

    def load(cls: Any, part: str) -> Any:
        local = Path(model) / part
        variant = part_variant(local, config.variant) if local.exists() else config.variant
        return _load_weights(cls, "editor.model", model, subfolder=part, variant=variant, **weights)

    def encoder(cls: Any, suffix: str) -> tuple[Any, Any]:
        read = {"subfolder": f"tokenizer{suffix}", "revision": config.revision}
        tokenizer = _load(CLIPTokenizer, "editor.model", model, **read)
        reader = load(cls, f"text_encoder{suffix}")
        if (last := max(tokenizer.get_vocab().values(), default=0)) >= reader.config.vocab_size:
            raise UserError(
                f"--pipeline.editor.model: {model}: its tokenizer{suffix} has tokens up to {last}, its "
                f"text_encoder{suffix} reads {reader.config.vocab_size} of them; download the model again, both come "
                f"from one"
            )
        return tokenizer, reader

    unet = load(UNet2DConditionModel, "unet")
    encoders, zeros = [encoder(CLIPTextModel, "")], False
    if is_xl(unet.config):
        encoders.append(encoder(CLIPTextModelWithProjection, "_2"))
        zeros = zeros_for_empty(model, config.revision)
    scheduler = _load(DDIMScheduler, "editor.model", model, subfolder="scheduler", revision=config.revision)
    return Models(load(AutoencoderKL, "vae"), unet, scheduler, PromptEncoder(encoders, zeros))


def _parts_of_file(config: EditorConfig, path: Path, xl: bool) -> Models:
    """The models of a single file."""
    pipeline = load_pipeline(path, config.config, xl)
    encoders, zeros = [(pipeline.tokenizer, pipeline.text_encoder)], False
    if xl:
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
        zeros = bool(pipeline.config.force_zeros_for_empty_prompt)
    return Models(pipeline.vae, pipeline.unet, pipeline.scheduler, PromptEncoder(encoders, zeros))


def _controlnet_settings(models: Models, controlnet: str) -> dict[str, Any]:
    """Settings of a ControlNet in a single file: it copies the encoder of the UNet that it was made for."""
    if not Path(controlnet).is_file():
        return {}
    copied = dict(ControlNetModel.from_unet(models.unet, load_weights_from_unet=False).config)
    found = expect("editor.controlnet", Path(controlnet), "controlnet")
    return copied | ({"conditioning_embedding_out_channels": found.embedding} if found.embedding else {})


def _part(cls: Any, option: str, name: str, settings: Any, dtype: torch.dtype) -> Any:
    """A part that an option of its own names: a file, which is read by the settings, a folder, or a hub id."""
    if Path(name).is_file():
        return load_part(cls, option, Path(name), dict(settings))
    return _load_weights(cls, option, name, torch_dtype=dtype, use_safetensors=True)


def _try(editor: ControlNetEditor) -> None:
    """Let every part compute once, on a small image."""
    image = torch.zeros(1, 3, 2 * editor.stride, 2 * editor.stride)
    prompt = editor.prompts.encode("a trial")
    controls = image.repeat(1, len(editor.controlnet.nets), 1, 1)
    editor.decode(editor.invert_step(editor.encode(image), editor.num_steps - 1, prompt, controls))


def _load(cls: Any, option: str, name: str, **kwargs: Any) -> Any:
    """`cls.from_pretrained` with an error that names the option and the remedy."""
    try:
        return cls.from_pretrained(name, **kwargs)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(cannot_load(option, name, kwargs.get("subfolder", cls.__name__), error)) from error


def _load_weights(cls: Any, option: str, name: str, **kwargs: Any) -> Any:
    """The same for a model; weights that its files lack would be random ones."""
    model, found = _load(cls, option, name, output_loading_info=True, **kwargs)
    if missing := sorted(found["missing_keys"]):
        part = kwargs.get("subfolder", cls.__name__)
        reason = ValueError(f"{len(missing)} tensors are missing in its weights, such as {missing[0]}")
        raise UserError(cannot_load(option, name, part, reason))
    return model
