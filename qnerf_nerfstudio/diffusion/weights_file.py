"""What a single file of weights holds, told by the names and shapes of its tensors."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from qnerf_nerfstudio.common.errors import UserError

BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Models by the width of the text that their UNet reads."""
TEXT_READERS = re.compile(
    r"attn2[._](?:processor\.)?to_[kv](?:_lora)?\.(?:weight|lora_down\.weight|lora_A.*|down\.weight)$"
)
"""Weights that read the text, of UNets, ControlNets and LoRAs in the ways they are stored."""
LORA = re.compile(r"(?:^|[._])lora(?:_|\.)")
EMBEDDING = re.compile(r"controlnet_cond_embedding\.(?:conv_in|blocks\.\d*[13579])\.weight$")
"""Convolutions of a ControlNet that change the number of channels of its control images."""
UNET, CONTROLNET, VAE = "model.diffusion_model.", "control_model.", "first_stage_model."
"""Prefixes of the parts of files in Stable Diffusion's original layout."""
BESIDE = {"VAE": (VAE,), "text encoder": ("cond_stage_model.", "conditioner.")}
"""What a whole model holds beside its UNet."""

IN_WORDS = {
    "model": "a model",
    "controlnet": "a ControlNet",
    "lora": "LoRA weights",
    "vae": "a VAE",
    "unknown": "weights of an unknown kind",
}
"""What files hold; all but the last have an option of the editor by this name."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights."""

    path: Path
    """The file."""
    kind: Literal["model", "controlnet", "lora", "vae", "unknown"]
    """What it holds."""
    text_width: int | None
    """Width of the text that it reads; None where that cannot be told."""
    is_xl: bool
    """Whether it is a UNet or ControlNet of Stable Diffusion XL."""
    channels: int | None
    """Channels that a model's UNet takes; None of anything else."""
    lacks: str = ""
    """What a model's file lacks beside its UNet, in words; empty where it is whole."""
    embedding: tuple[int, ...] = ()
    """Channels by which a ControlNet in diffusers' layout reads its control images."""

    @property
    def base(self) -> str:
        """The model that it is, or was made for, in words; empty where that cannot be told."""
        return base_of(self.text_width)

    def described(self) -> str:
        """What it is in words."""
        return IN_WORDS[self.kind] + (f" ({self.base})" if self.base else "")


def base_of(text_width: int | None) -> str:
    """The model whose UNet reads text of a width, in words; empty where the width is not known."""
    return "" if text_width is None else BASES.get(text_width, f"text of width {text_width}")


def read_weights_file(option: str, path: Path) -> WeightsFile:
    """Look at the names and shapes of a file's tensors.

    Args:
        option: Option that names the file, without "--pipeline.".
        path: The file.

    Raises:
        UserError: It is no safetensors file, or corrupt.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"--pipeline.{option}: {path} is no .safetensors file; other files may run any code and are never loaded: "
            f"download the safetensors, or convert it where you trust it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"--pipeline.{option}: {path} is truncated or corrupt ({error}); download it again") from error
    readers = (shape for name, shape in shapes.items() if TEXT_READERS.search(name) and len(shape) > 1)
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    return WeightsFile(
        path=path,
        kind=_kind(set(shapes)),
        text_width=next((shape[1] for shape in readers), None),
        is_xl=any("label_emb." in name or name.startswith("add_embedding.") for name in shapes),
        channels=None if first is None else first[1],
        lacks=" and ".join(
            part for part, prefixes in BESIDE.items() if not any(name.startswith(prefixes) for name in shapes)
        ),
        embedding=tuple(shapes[name][0] for name in sorted(shapes, key=_by_number) if EMBEDDING.match(name)),
    )


def _by_number(name: str) -> tuple[int, str]:
    """Order of a ControlNet's convolutions: the first has no number."""
    return max(map(int, re.findall(r"\.(\d+)\.", name)), default=-1), name


def _kind(names: set[str]) -> Literal["model", "controlnet", "lora", "vae", "unknown"]:
    def holds(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if any(LORA.search(name) for name in names):
        return "lora"
    if holds(CONTROLNET, "controlnet_cond_embedding."):
        return "controlnet"
    if holds(UNET):
        return "model"
    if holds(VAE) or {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= names:
        return "vae"
    return "unknown"


def expect(option: str, path: Path, kind: Literal["model", "controlnet", "lora", "vae"]) -> WeightsFile:
    """Look at a file that must be of a kind.

    Raises:
        UserError: It is not, or not a readable safetensors file.
    """
    found = read_weights_file(option, path)
    if found.kind != kind:
        remedy = "" if found.kind == "unknown" else f"; give it by --pipeline.editor.{found.kind}"
        raise UserError(f"--pipeline.{option}: {path} holds {found.described()}, expected {IN_WORDS[kind]}{remedy}")
    return found
