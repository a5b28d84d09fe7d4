"""A model set: its parts in memory, and on disk in the layout of a diffusers pipeline, half-precision safetensors."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.toy.training.models import (
    build_control,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_vae,
    vae_stride,
)

INDEX = "model_index.json"


@dataclass
class ModelSet:
    """The trained parts of a model set."""

    vae: AutoencoderKL
    """The VAE."""
    denoiser: nn.ModuleDict
    """UNet ("unet"), ControlNet ("controlnet") and text encoder ("text_encoder")."""
    tokenizer: CLIPTokenizer
    """The text encoder's tokenizer."""

    @property
    def image_size(self) -> int:
        """Width and height in pixels of the images that the set edits."""
        unet = self.denoiser["unet"]
        assert isinstance(unet, UNet2DConditionModel)
        return unet.config.sample_size * vae_stride(self.vae)

    def save(self, out: Path) -> None:
        """Write the set to a folder."""
        for name, part in {"vae": self.vae, **dict(self.denoiser.items())}.items():
            copy.deepcopy(part).half().save_pretrained(out / name)
            # Parts that started from a model set remember its folder, which means nothing elsewhere.
            settings = json.loads((out / name / "config.json").read_text(encoding="utf-8"))
            settings.pop("_name_or_path", None)
            write_json(out / name / "config.json", settings)
        self.tokenizer.save_pretrained(out / "tokenizer")
        build_scheduler().save_pretrained(out / "scheduler")
        write_json(
            out / INDEX,
            {
                "_class_name": "StableDiffusionControlNetPipeline",
                "controlnet": ["diffusers", "ControlNetModel"],
                "feature_extractor": [None, None],
                "image_encoder": [None, None],
                "requires_safety_checker": False,
                "safety_checker": [None, None],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
        )


def new_set(tokenizer_folder: Path, seed: int) -> ModelSet:
    """A set with random weights; its tokenizer is written to a folder first."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(tokenizer_folder)
    vae, unet = build_vae(), build_denoiser()
    parts = {"unet": unet, "controlnet": build_control(unet), "text_encoder": build_text_encoder(tokenizer)}
    return ModelSet(vae, nn.ModuleDict(parts), tokenizer)


def load_set(folder: Path) -> ModelSet:
    """Load a set as float32.

    Raises:
        UserError: The folder holds none.
    """
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds no model set ({INDEX} is missing); name the --out folder of a training")
    kinds = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel, "text_encoder": CLIPTextModel}
    parts = {name: kind.from_pretrained(folder / name, torch_dtype=torch.float32) for name, kind in kinds.items()}
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return ModelSet(vae, nn.ModuleDict(parts), CLIPTokenizer.from_pretrained(folder / "tokenizer"))
