"""Models from single .safetensors files, in Stable Diffusion's original layout or diffusers' own."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.wording import error_text


def load_pipeline(path: Path, settings: str | None, xl: bool) -> Any:
    """A pipeline whose parts are those of a file.

    Args:
        path: A model.
        settings: Folder of a model set, of which settings and tokenizers are read; None: diffusers fetches those that
            it finds to belong to the file from the hub.
        xl: Whether it is Stable Diffusion XL.

    Raises:
        UserError: The file is no such model, or settings and weights do not fit each other.
    """
    cls: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    options: dict[str, Any] = {} if xl else {"safety_checker": None, "feature_extractor": None}
    if settings is not None:
        options |= {"config": settings, "local_files_only": True}
    try:
        pipeline = cls.from_single_file(str(path), **options)
    except NotImplementedError as error:  # what the file lacks is on no device, and cannot be moved to one
        raise UserError(_lacking("editor.model", path, "parts")) from error
    except Exception as error:  # diffusers raises whatever its readers do
        remedy = (
            "its settings come from the hub: name any folder of such a model, which needs no weights, by "
            "--pipeline.editor.config"
            if settings is None
            else f"is --pipeline.editor.config {settings} the folder of such a model?"
        )
        raise UserError(f"--pipeline.editor.model: cannot load {path} ({error_text(error)}); {remedy}") from error
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            _refuse_lacking("editor.model", path, name, part)
    return pipeline


def load_part(cls: Any, option: str, path: Path, settings: dict[str, Any]) -> Any:
    """A ControlNet or a VAE from a file.

    Args:
        cls: Its class.
        option: Option that names it, without "--pipeline.".
        path: The file.
        settings: Settings of such a model.

    Raises:
        UserError: The weights do not fit the settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", {"_class_name": cls.__name__, **settings})
        try:
            part = cls.from_single_file(str(path), config=folder, local_files_only=True)
        except NotImplementedError as error:
            raise UserError(_lacking(option, path, cls.__name__)) from error
        except Exception as error:
            raise UserError(
                f"--pipeline.{option}: {path} does not fit the model ({error_text(error)}); choose one made for it, or "
                f"give it as a folder with its own config.json"
            ) from error
    _refuse_lacking(option, path, cls.__name__, part)
    return part


def _refuse_lacking(option: str, path: Path, name: str, part: torch.nn.Module) -> None:
    """Refuse a model of whose weights a file lacks some: diffusers leaves these on no device."""
    if any(tensor.is_meta for tensor in part.parameters()):
        raise UserError(_lacking(option, path, name))


def _lacking(option: str, path: Path, name: str) -> str:
    return (
        f"--pipeline.{option}: {path} lacks tensors of its {name}; download it again, or name the settings that belong "
        f"to it by --pipeline.editor.config"
    )
