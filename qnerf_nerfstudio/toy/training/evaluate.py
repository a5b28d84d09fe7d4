"""Quality of the bundled editor on bodies, poses and cameras that it was never trained on."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qnerf_nerfstudio.common.images import to_unit, write_png
from qnerf_nerfstudio.diffusion.conditions import SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.diffusion.text import Prompts, TextStates
from qnerf_nerfstudio.edit.schema import Kind
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.toy.scoring import iou, psnr, silhouette
from qnerf_nerfstudio.toy.training.data import HELD_OUT, Pair, render_pair


def load_trained(folder: Path, device: str) -> ControlNetEditor:
    """The editor in `folder`, set as qnerf-edit-tiny sets it, for images of the size that it was trained on."""
    pipeline = qnerf_edit_tiny.config.pipeline
    assert isinstance(pipeline, QNerfPipelineConfig)
    editor = load_editor(replace(pipeline.editor, model=str(folder), controlnet=(str(folder / "controlnet"),)), device)
    editor.config.resolution = trained_size(editor)
    return editor


def trained_size(editor: ControlNetEditor) -> int:
    """Width and height in pixels of the images that an editor was trained on."""
    return editor.unet.config.sample_size * editor.latent_stride


@torch.no_grad()
def edit_pair(editor: ControlNetEditor, pairs: list[Pair]) -> Float[Tensor, "V 3 H W"]:
    """Edit the first image of each pair into the pose of the second, view by view; images in [0, 1]."""
    images = to_unit(torch.stack([pair.images for pair in pairs])).to(editor.device)
    controls = to_unit(torch.stack([pair.controls for pair in pairs])).to(editor.device)
    text = TextStates.joined([editor.prompts.encode(pair.caption) for pair in pairs])
    prompts = Prompts(text, text, editor.prompts.encode(""))
    trajectory = editor.invert(editor.encode(images[:, 0]), text, controls[:, 0])
    latents = trajectory[0]
    for index in range(editor.num_steps):
        source = SourceBranch(trajectory[index], controls[:, 0])
        latents = editor.denoise_step(latents, index, prompts, controls[:, 1], source)
    return editor.decode(latents).cpu()


def evaluate(
    editor: ControlNetEditor, console: Console, count: int, sheet: Path, kind: Kind = "openpose"
) -> dict[str, float]:
    """Print and return the figures over `count` held-out pairs with such controls; write a sheet of the first ones.

    Figures: silhouette IoU with the truth, PSNR inside the union of both silhouettes and over the whole image, PSNR of
    copying the source (what doing nothing scores), and PSNR of the VAE's round trip.
    """
    size = trained_size(editor)
    pairs = [render_pair(HELD_OUT + i, size, with_room=True, kind=kind) for i in range(count)]
    edited = torch.cat([edit_pair(editor, pairs[start : start + 8]) for start in range(0, count, 8)])
    sources, truths = (to_unit(torch.stack([pair.images[i] for pair in pairs])) for i in (0, 1))
    rooms = to_unit(torch.stack([pair.room for pair in pairs if pair.room is not None]))
    found = silhouette(edited, rooms, torch.stack([pair.palette for pair in pairs]))
    unions = torch.stack([pair.masks.any(0) for pair in pairs])
    round_trip = torch.cat([editor.decode(editor.encode(part.to(editor.device))).cpu() for part in truths.split(8)])
    figures = {
        "silhouette IoU": iou(found, torch.stack([pair.masks[1] for pair in pairs])).mean(),
        "PSNR in the union, dB": psnr(edited, truths, unions).mean(),
        "the same of the source, dB": psnr(sources, truths, unions).mean(),
        "PSNR whole image, dB": psnr(edited, truths, None).mean(),
        "VAE round trip, dB": psnr(round_trip, truths, None).mean(),
    }
    table = Table("figure", "value", title=f"{count} held-out pairs, {kind} controls")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    controls = to_unit(torch.stack([pair.controls[1] for pair in pairs]))
    rows = torch.cat([torch.cat(list(part[:8]), dim=-1) for part in (sources, controls, edited, truths)], dim=-2)
    write_png(sheet, rows)
    console.print(f"source, control, edited and truth by rows: {sheet}")
    return {name: round(float(value), 4) for name, value in figures.items()}
