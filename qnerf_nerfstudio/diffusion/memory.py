"""How much memory a chunk of views takes in the diffusion models, and whether there is so much."""

import math
from typing import TYPE_CHECKING, Any

import psutil
import torch

from qnerf_nerfstudio.common.errors import UserError

if TYPE_CHECKING:  # diffusers stays out of ns-* start-up
    from qnerf_nerfstudio.diffusion.editor import ControlNetEditor

SAMPLED = 30
"""Maps of the UNet's first level that a pass without gradients holds at once, per view and branch."""
GUIDED, CHECKPOINTED = 40, 12
"""Maps of every layer of the UNet that guidance keeps per view, for its gradients, without and with checkpointing."""
TRANSFORMED = 0.72
"""Share of these maps that a transformer block keeps in a layer that holds one; each further one adds as many."""
CODED = 2
"""Maps of the VAE's widest level at full resolution that it holds at once, per view."""
CERTAIN = 0.8
"""A run is refused where this share of the estimate is more than there is."""
ROOM = 0.7
"""Share of what is free that a chunk may fill where the run chooses it; the field's training needs the rest."""
MOST, MOST_ON_CPU = 16, 4
"""Views in a chunk that the run chooses, at most: larger ones fill a GPU no better, and a CPU is full with fewer."""


def estimate_bytes(editor: "ControlNetEditor", chunk: int, size: tuple[int, int], guided: bool = True) -> int:
    """Bytes that a chunk of views takes at its peak, beside the models' weights.

    The largest of three: the batch of all branches of a denoising step, the activations that guidance keeps, and the
    VAE. docs/options.md says how it was calibrated.

    Args:
        editor: The editor.
        chunk: Number of views.
        size: Height and width in pixels of the images that are edited.
        guided: Whether views are drawn to rendered queries at all.
    """
    config, unet, vae = editor.config, editor.unet.config, editor.vae.config
    levels = [
        math.prod(-(-side // (editor.latent_stride * 2**level)) for side in size) * width
        for level, width in enumerate(unet.block_out_channels)
    ]
    values = SAMPLED * config.branches * chunk * levels[0]
    if guided and config.guides:
        # A level has layers_per_block layers in the encoder and one more in the decoder.
        weighted = sum(level * _weight(depth) for level, depth in zip(levels, _depths(unet), strict=True))
        layers = weighted * (2 * unet.layers_per_block + 1)
        values = max(values, (CHECKPOINTED if editor.checkpointing else GUIDED) * chunk * layers)
    needed = values * editor.dtype.itemsize
    if not config.vae_tiling:
        views = 1 if config.vae_slicing else chunk
        coded = CODED * views * math.prod(size) * max(vae.block_out_channels[:2])
        needed = max(needed, coded * editor.vae.dtype.itemsize)
    return int(needed)


def _depths(unet: Any) -> list[int]:
    """Transformer blocks in a layer of each level of a UNet with these settings."""
    stated = unet.transformer_layers_per_block
    if isinstance(stated, int):
        return [stated] * len(unet.block_out_channels)
    return [depth if "CrossAttn" in kind else 0 for depth, kind in zip(stated, unet.down_block_types, strict=True)]


def _weight(depth: int) -> float:
    """What a layer with so many transformer blocks keeps, as a multiple of one with a single block."""
    return 1 - TRANSFORMED + TRANSFORMED * depth


def available_bytes(device: torch.device) -> int | None:
    """Bytes that are free for tensors on a device; None where that is unknown."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return None


def checkpoint_if_needed(
    editor: "ControlNetEditor", chunk: int, size: tuple[int, int], available: int | None = None, guided: bool = True
) -> None:
    """Let guidance compute activations twice, if its settings leave that open and the chunk would not fit otherwise.

    Args:
        editor: The editor, on its device.
        chunk: Number of views that go through it at once.
        size: Height and width in pixels of the images that are edited.
        available: Bytes that are free beside the models; by default those of the editor's device.
        guided: Whether views are drawn to rendered queries at all.
    """
    free = available_bytes(editor.device) if available is None else available
    fits = free is None or estimate_bytes(editor, chunk, size, guided) <= ROOM * free
    if editor.config.checkpointing == "auto" and guided and editor.config.guides and not fits:
        editor.checkpoint()


def fitting_chunk(
    editor: "ControlNetEditor", views: int, size: tuple[int, int], available: int | None = None, guided: bool = True
) -> int:
    """The largest chunk of views that leaves room beside it; chunks of equal size as far as that is possible.

    Args:
        editor: The editor, on its device.
        views: Number of views that are cut into chunks.
        size: Height and width in pixels of the images that are edited.
        available: Bytes that are free beside the models; by default those of the editor's device.
        guided: Whether views are drawn to rendered queries at all.
    """
    free = available_bytes(editor.device) if available is None else available
    most = min(views, MOST_ON_CPU if editor.device.type == "cpu" else MOST)
    room = 0 if free is None else ROOM * free
    largest = next((each for each in range(most, 1, -1) if estimate_bytes(editor, each, size, guided) <= room), 1)
    return math.ceil(views / math.ceil(views / largest))


def check_memory(
    editor: "ControlNetEditor", chunk: int, size: tuple[int, int], available: int | None = None, guided: bool = True
) -> None:
    """Refuse a chunk that clearly does not fit into memory.

    Args:
        editor: The editor, on its device.
        chunk: Number of views that go through it at once.
        size: Height and width in pixels of the images that are edited.
        available: Bytes that are free beside the models; by default those of the editor's device.
        guided: Whether views are drawn to rendered queries at all.

    Raises:
        UserError: It does not fit; the message names a chunk that does, or other remedies.
    """
    free = available_bytes(editor.device) if available is None else available
    needed = estimate_bytes(editor, chunk, size, guided)
    if free is None or CERTAIN * needed <= free:
        return
    smaller = range(chunk - 1, 0, -1)
    fitting = next((fewer for fewer in smaller if estimate_bytes(editor, fewer, size, guided) <= free), 0)
    remedy = f"--pipeline.chunk {fitting}"
    if not fitting:
        remedy = f"--pipeline.editor.resolution less than {editor.config.resolution}"
        if guided and not editor.checkpointing:
            remedy = f"--pipeline.chunk 1 with --pipeline.editor.checkpointing True, or {remedy}"
    raise UserError(
        f"--pipeline.chunk is {chunk}: so many views of {size[1]}x{size[0]} pixels take about {needed / 2**30:.1f} GiB "
        f"beside the models, but {free / 2**30:.1f} GiB are free on {editor.device}; give {remedy}"
    )
