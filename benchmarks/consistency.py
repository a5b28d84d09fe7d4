"""Consistency of edits against the truth: consolidation and other recipes, all with the bundled editor.

    python benchmarks/consistency.py --setting loose --seeds 0 1 2 3

Every cell (setting x seed x method) makes edited views of a procedural capture, trains the final field on them, and a
second one on every other of them, which is scored on the rest. Both start from the same field of the photos and change
it inside the same region, as the product's final field does. Cells that are done are read back, so the command goes
on where it stopped; their figures are committed, their images are not.
"""

import os
import platform
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
import tyro
from features import kernel_distance
from fields import Judge, depth_error
from recipes import Method, Recipes, read_views
from rich.console import Console
from settings import Setting, field_settings, write_scene
from table import write_table
from torchmetrics.functional.image import structural_similarity_index_measure

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import write_png
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.pages.sheet import write_sheet
from qnerf_nerfstudio.toy.capture import sample_edit
from qnerf_nerfstudio.toy.render import render
from qnerf_nerfstudio.toy.scoring import iou, psnr, silhouette
from qnerf_nerfstudio.toy.truth import load_truth, render_views


@dataclass
class Benchmark:
    """Compare recipes for consistent edits on procedural captures."""

    setting: Setting = "loose"
    """"tight" states the whole skeleton in every view; "loose" leaves out four of ten limb bones, others in every view;
    "wrong" draws another pose into every fifth view, which lifting mends; recipes that are not lifted follow it."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the captures."""
    methods: tuple[Method, ...] = get_args(Method)
    """Recipes to compare."""
    out: Path = Path("benchmarks/results/consistency")
    """Folder for cells, table, figures and sheets."""
    field_iterations: int = qnerf_edit_tiny.config.pipeline.final_iterations  # pyright: ignore
    """Training steps of the fields that the edited views are judged by."""
    views: int = 24
    """Photos of a capture."""
    table: bool = False
    """Only write the table of the cells that are done."""


def measure(method: Method, seed: int, config: Benchmark, folder: Path) -> dict[str, float]:
    """All figures of a cell."""
    capture, cell = folder / "capture", folder / method
    fields = field_settings(config.field_iterations)
    fields.pipeline.model.robust = "mean of views" not in method  # pyright: ignore[reportAttributeAccessIssue]
    started = time.monotonic()
    edited = Recipes(capture, cell / "run", fields, seed).edited_views(method)
    seconds = (time.monotonic() - started) / len(edited)
    captured, novel = load_truth(capture, "train"), load_truth(capture, "novel")
    judge = Judge(capture, folder / "judge", fields)
    field, data = judge.train(edited, every=1)
    images, depths = render_views(field, data, novel)
    half, data = judge.train(edited, every=2)
    other = slice(1, None, 2)
    again, _ = render_views(half, data, replace(captured, c2w=captured.c2w[other]))
    body = sample_edit(seed)[0]
    focal, size = novel.meta["fl_x"], (novel.meta["h"], novel.meta["w"])
    palette = body.palette().expand(len(images), -1, -1)
    rooms = torch.stack([render(body, None, c2w, focal, size).rgb for c2w in novel.c2w]).movedim(-1, 1)
    _, similarity = structural_similarity_index_measure(images, novel.images, data_range=1.0, return_full_image=True)
    for views, names, pictures in (("edited", captured.names, edited), ("novel", novel.names, images)):
        for name, image in zip(names, pictures, strict=True):
            write_png(cell / views / name, image)
    figures = {
        "edited, union, dB": psnr(edited, captured.images, captured.unions).mean(),
        "novel, union, dB": psnr(images, novel.images, novel.unions).mean(),
        "novel, whole, dB": psnr(images, novel.images, None).mean(),
        "novel, union, SSIM": similarity.mean(1)[novel.unions].mean(),
        "novel, IoU": iou(silhouette(images, rooms, palette), novel.masks).mean(),
        "depth error": depth_error(depths, novel.depths, novel.masks),
        "KID, 1000 x": 1000 * kernel_distance(read_views(capture / "images"), edited),
        "consistency, union, dB": psnr(again, edited[other], captured.unions[other]).mean(),
    }
    shutil.rmtree(cell / "run", ignore_errors=True)
    return {**{name: round(float(value), 4) for name, value in figures.items()}, "s a view": round(seconds, 2)}


def main(config: Benchmark) -> None:
    """Fill the cells that are missing, then write the table."""
    console = Console()
    cells = [(seed, method) for seed in config.seeds for method in config.methods]
    for number, (seed, method) in enumerate(cells):
        folder = config.out / config.setting / str(seed)
        path = folder / method / "figures.json"
        if not path.exists() and not config.table:
            if not (folder / "capture/done").exists():
                shutil.rmtree(folder / "capture", ignore_errors=True)
                write_scene(folder / "capture", seed, config.views, config.setting)
                (folder / "capture/done").touch()
            shutil.rmtree(path.parent, ignore_errors=True)
            write_json(path, measure(method, seed, config, folder))
        if path.exists():
            console.print(f"{number + 1}/{len(cells)} seed {seed}, {method}: {path.read_text()}", soft_wrap=True)
    for seed in config.seeds:
        folder = config.out / config.setting / str(seed)
        done = {method: folder / method / "novel" for method in config.methods if (folder / method / "novel").exists()}
        if done:
            rows = {"truth": load_truth(folder / "capture", "novel").images}
            rows |= {method: read_views(views) for method, views in done.items()}
            write_sheet(config.out / config.setting / f"{seed}.png", rows, columns=4)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"
    console.print(write_table(config.out / config.setting, machine), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
