"""What a run will cost, told before it starts: time of its diffusion, memory, disk."""

import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.wording import format_duration
from qnerf_nerfstudio.diffusion.conditions import SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.memory import estimate_bytes
from qnerf_nerfstudio.run.plan import Plan, Task

SAMPLED = (Task.INVERT, Task.DENOISE, Task.LOOK_AHEAD)
"""Tasks that write the latents of every view after each timestep."""
PICTURE = 1.5
"""Bytes of a pixel in a PNG file of a photo-like picture."""
BACKWARD = 3
"""A guided step takes this many passes more: one forward, and a backward one as long as two."""


@dataclass(frozen=True)
class Costs:
    """What a run will cost."""

    seconds: float
    """Time of its diffusion on this device; the field's training comes on top."""
    memory: int
    """Bytes that a chunk of views takes in the diffusion models, beside their weights."""
    disk: int
    """Bytes of its edit/ folder."""

    def __str__(self) -> str:
        """The costs in words."""
        return (
            f"Diffusion takes about {format_duration(self.seconds)}, {self.memory / 2**30:.1f} GiB of memory beside "
            f"the models and {self.disk / 2**30:.1f} GiB of disk; the field's training comes on top."
        )


def estimate(
    editor: ControlNetEditor,
    plan: Plan,
    size: tuple[int, int],
    photo_size: tuple[int, int],
    code_width: int,
    guided: bool,
) -> Costs:
    """Costs of a run, its time from a few timed passes.

    Args:
        editor: The editor, on its device.
        plan: The plan.
        size: Height and width in pixels of the images that are edited.
        photo_size: The same of the photos, which edited views get.
        code_width: Code channels per query layer.
        guided: Whether views are drawn to rendered queries at all.
    """
    memory = estimate_bytes(editor, plan.config.chunk, size, guided)
    return Costs(_seconds(editor, plan, size, guided), memory, disk_bytes(editor, plan, size, photo_size, code_width))


def disk_bytes(
    editor: ControlNetEditor, plan: Plan, size: tuple[int, int], photo_size: tuple[int, int], code_width: int
) -> int:
    """Bytes of a run's edit/ folder at its largest: latents in single, queries in half precision, and pictures. The
    field's weights, which do not grow with the views, come on top.

    Args:
        editor: The editor.
        plan: The plan.
        size: Height and width in pixels of the images that are edited.
        photo_size: The same of the photos.
        code_width: Code channels per query layer.
    """
    views = plan.config.num_views
    stride = editor.latent_stride
    latents = editor.vae.config.latent_channels * math.prod(side // stride for side in size)
    written = 1 + sum(len(stage.indices) for stage in plan.stages if stage.task in SAMPLED)
    fits = sum(stage.task == Task.EXTRACT for stage in plan.stages)
    shapes = [_query_shape(editor, name, size) for name in editor.layer_names]
    raw = sum(tokens * channels for tokens, channels in shapes) if fits else 0
    # What was extracted, and what the field renders.
    codes = 2 * fits * sum(tokens for tokens, _ in shapes) * code_width
    carried = any(stage.task == Task.CARRY for stage in plan.stages)
    drawn = 2 * len(editor.controlnet.nets) * math.prod(size) + (fits + 1 + carried) * math.prod(photo_size)
    kept = 4 * (written * latents + carried * 3 * math.prod(size)) + 2 * (raw + codes)
    return int(views * (kept + PICTURE * drawn))


def _query_shape(editor: ControlNetEditor, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Number of tokens and channels of a query layer."""
    levels = editor.unet.config.block_out_channels
    block = re.match(r"up_blocks\.(\d+)\.", name)
    assert block is not None
    level = len(levels) - 1 - int(block[1])
    tokens = math.prod(-(-side // (editor.latent_stride * 2**level)) for side in size)
    return tokens, levels[level]


def _seconds(editor: ControlNetEditor, plan: Plan, size: tuple[int, int], guided: bool) -> float:
    """Time of all slices of diffusion, from that of a pass of one chunk."""
    config = editor.config
    step = config.branches + (BACKWARD if guided and config.guides else 0)
    passes = {
        Task.INVERT: config.inversion_iterations,
        Task.DENOISE: step,
        Task.LOOK_AHEAD: config.branches,
        Task.EXTRACT: config.branches,
    }
    slices = sum(passes.get(stage.task, 0) * stage.length for stage in plan.stages if stage.indices)
    return slices * _pass_seconds(editor, min(plan.config.chunk, plan.config.num_views), size)


def _pass_seconds(editor: ControlNetEditor, views: int, size: tuple[int, int]) -> float:
    """Seconds of a pass of ControlNet and UNet over some views; the first one, which sets things up, does not count."""
    latents = torch.zeros(
        views, editor.vae.config.latent_channels, *(side // editor.latent_stride for side in size), device=editor.device
    )
    controls = torch.zeros(views, 3 * len(editor.controlnet.nets), *size, device=editor.device)
    source, prompt = SourceBranch(latents, controls), editor.prompts.encode("")
    took = 0.0
    for _ in range(2):
        started = time.perf_counter()
        stepped = editor.invert_step(source.latents, editor.num_steps - 1, prompt, source.controls)
        # Devices compute behind the back of the process until a value is asked for.
        stepped.flatten()[0].item()
        took = time.perf_counter() - started
    return took / editor.config.inversion_iterations


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a disk that cannot hold a run.

    Args:
        folder: The run's edit/ folder, which need not be there yet.
        needed: Bytes that it will hold.

    Raises:
        UserError: There is less space, what the folder holds already taken off.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    disk = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if there + free < needed:
        raise UserError(
            f"--output-dir: the edit needs about {needed / 2**30:.1f} GiB in {folder}, but {free / 2**30:.1f} GiB are "
            f"free there; name a folder on another disk, edit at a lower --pipeline.editor.resolution, or make room by "
            f"qnerf clean"
        )
