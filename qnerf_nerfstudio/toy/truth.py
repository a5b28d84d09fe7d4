"""Figures and contact sheets of runs on procedural captures, where the true edited views are known."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils.eval_utils import eval_setup
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import transform_cameras
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.pages.sheet import write_sheet
from qnerf_nerfstudio.toy.scoring import psnr


@dataclass(frozen=True)
class Truth:
    """The true edited views of one split of a procedural capture."""

    names: list[str]
    """File names of the views."""
    images: Float[Tensor, "V 3 H W"]
    """The figure in its target pose."""
    masks: Bool[Tensor, "V H W"]
    """Silhouettes in the target pose."""
    unions: Bool[Tensor, "V H W"]
    """Union of the silhouettes in source and target pose."""
    depths: Float[Tensor, "V H W"]
    """Metric distance along the optical axis, infinite on the background."""
    c2w: Float[Tensor, "V 3 4"]
    """Cameras in the coordinates of transforms.json."""
    meta: dict
    """The camera's intrinsics, as in transforms.json."""


def load_truth(data: Path, split: str) -> Truth:
    """Read the truth of a procedural capture.

    Raises:
        UserError: `data` has no truth/transforms.json.
    """
    path = data / "truth/transforms.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; only captures made by `qnerf toy capture` know the true edited views")
    meta = json.loads(path.read_text(encoding="utf-8"))
    frames = [frame for frame in meta["frames"] if frame["split"] == split]

    def masks(key: str) -> Tensor:
        return torch.stack([image[..., 0] > 0.5 for image in load_images([path.parent / f[key] for f in frames])])

    depths = [torch.from_numpy(np.load(path.parent / frame["depth_file_path"])) for frame in frames]
    return Truth(
        names=[Path(frame["file_path"]).name for frame in frames],
        images=torch.stack(load_images([path.parent / f["file_path"] for f in frames])).movedim(-1, 1),
        masks=masks("mask_path"),
        unions=masks("mask_path") | masks("source_mask_path"),
        depths=torch.stack(depths),
        c2w=torch.tensor([frame["transform_matrix"][:3] for frame in frames]),
        meta=meta,
    )


@torch.no_grad()
def render_views(
    pipeline: VanillaPipeline, data: Path, truth: Truth
) -> tuple[Float[Tensor, "V 3 H W"], Float[Tensor, "V H W"]]:
    """Render a pipeline's field in the cameras of `truth`.

    Returns:
        Colours in [0, 1], and expected distances along the optical axis in the units of transforms.json.
    """
    to_scene = dataset_to_scene(pipeline.datamanager.train_dataparser_outputs, data)  # pyright: ignore
    scale = to_scene[:, :3].det() ** (1 / 3)
    cameras = Cameras(
        camera_to_worlds=transform_cameras(truth.c2w, to_scene),
        fx=truth.meta["fl_x"],
        fy=truth.meta["fl_y"],
        cx=truth.meta["cx"],
        cy=truth.meta["cy"],
        width=truth.meta["w"],
        height=truth.meta["h"],
    ).to(pipeline.device)
    pipeline.eval()
    colours, depths = [], []
    for index in range(len(cameras)):
        outputs = pipeline.model.get_outputs_for_camera(cameras[index : index + 1])
        directions = cameras.generate_rays(camera_indices=index).directions
        cosines = (directions * -cameras.camera_to_worlds[index, :, 2]).sum(-1)
        colours.append(outputs["rgb"].cpu())
        depths.append((outputs["expected_depth"].squeeze(-1) * cosines).cpu() / scale)
    return torch.stack(colours).movedim(-1, 1), torch.stack(depths)


def score_run(run: Path, data: Path, unedited: Path | None, sheet: Path | None, console: Console) -> dict[str, float]:
    """Score a finished run against the truth, print the figures and write them to score.json in the run's folder.

    Args:
        run: Folder of the run, the one with config.yml.
        data: The procedural capture.
        unedited: Folder of novel views rendered by a field of the unedited capture, to compare with.
        sheet: Where to write a contact sheet.
        console: Where to print.

    Returns:
        PSNR in dB inside the union of both silhouettes, means over views: of source photos, edited views, novel views
        of the final field, and novel views of the unedited field.
    """
    captured, novel = load_truth(data, "train"), load_truth(data, "novel")
    edited = torch.stack(load_images([run / "edit/images" / name for name in captured.names])).movedim(-1, 1)
    photos = torch.stack(load_images([data / "images" / name for name in captured.names])).movedim(-1, 1)
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    assert isinstance(pipeline, VanillaPipeline)
    rendered, _ = render_views(pipeline, data, novel)
    rows = {
        "source photos": psnr(photos, captured.images, captured.unions),
        "edited views": psnr(edited, captured.images, captured.unions),
    }
    novel_rows = {"edited NeRF": rendered, "truth": novel.images}
    if unedited is not None:
        before = torch.stack(load_images([unedited / name for name in novel.names])).movedim(-1, 1)
        rows["novel views, unedited NeRF"] = psnr(before, novel.images, novel.unions)
        novel_rows = {"unedited NeRF": before, **novel_rows}
    rows["novel views, edited NeRF"] = psnr(rendered, novel.images, novel.unions)
    figures = {name: round(float(values.mean()), 3) for name, values in rows.items()}
    table = Table("against the true edited views", "PSNR in the union of silhouettes, dB")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    write_json(run / "score.json", figures)
    if sheet is not None:
        controls = torch.stack(load_images([run / "edit/controls/target" / name for name in captured.names]))
        captured_rows = {
            "photo": photos,
            "control": controls.movedim(-1, 1),
            "edited": edited,
            "truth": captured.images,
        }
        write_sheet(sheet, captured_rows, novel_rows)
        console.print(f"picture: {sheet}", soft_wrap=True)
    return figures
