"""Contact sheets: rows of labelled pictures."""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.common.spread import evenly_spread

GAP = 10
"""Pixels between groups of rows."""


def write_sheet(path: Path, *groups: dict[str, Float[Tensor, "V 3 H W"]], columns: int = 6, cell: int = 160) -> None:
    """Write a contact sheet: a labelled row of evenly spread views for every entry, groups set apart by a gap.

    Args:
        path: The PNG file.
        *groups: Views in [0, 1] by label; all are of one size.
        columns: Views in a row.
        cell: Height of a picture in pixels.
    """
    font = ImageFont.load_default(size=15)
    margin = 16 + round(max(font.getlength(label) for group in groups for label in group))
    height, width = next(iter(groups[0].values())).shape[-2:]
    across = max(1, round(cell * width / height))
    rows = sum(len(group) for group in groups) * cell + GAP * (len(groups) - 1)
    sheet = Image.new("RGB", (margin + columns * across, rows), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for group in groups:
        for label, views in group.items():
            draw.text((margin - 8, y + cell // 2), label, fill="black", font=font, anchor="rm")
            chosen = evenly_spread(columns, len(views))
            resized = F.interpolate(views[chosen], (cell, across), mode="bicubic", antialias=True).clamp(0, 1)
            row = to_bytes(torch.cat(list(resized), dim=-1))
            sheet.paste(Image.fromarray(row.numpy()), (margin, y))
            y += cell
        y += GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
