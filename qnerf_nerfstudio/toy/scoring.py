"""Figures of edited images against the truth."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

SHADES = (0.3, 1.0)
"""Range of the renderer's light and surface pattern together, which scale a part's colour."""
ROOM_REACH = 3
"""The room's own edges may be blurred over this many pixels to either side."""
ROOM_MARGIN = 0.05
"""How much closer (Euclidean distance of RGB in [0, 1]) a pixel must be to the figure's colours than to the room's."""


def psnr(
    image: Float[Tensor, "*batch 3 H W"], truth: Float[Tensor, "*batch 3 H W"], mask: Bool[Tensor, "*batch H W"] | None
) -> Float[Tensor, "*batch"]:
    """PSNR in dB of each image in [0, 1], inside a mask where there is one."""
    squared = (image - truth).square().mean(dim=-3)
    weight = torch.ones_like(squared) if mask is None else mask.to(squared)
    error = (squared * weight).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp_min(1)
    return -10 * error.clamp_min(1e-10).log10()


def silhouette(
    image: Float[Tensor, "*batch 3 H W"], room: Float[Tensor, "*batch 3 H W"], palette: Float[Tensor, "*batch P 3"]
) -> Bool[Tensor, "*batch H W"]:
    """Where an image shows the figure: pixels that shades of its colours explain better than the empty room does.

    The room explains a pixel by any mixture of two room pixels that lie opposite to each other around it, so that a
    blurred horizon is not taken for a figure. Where figure and room have the same colour nothing can tell them apart:
    the truth itself scores an IoU of about 0.93 with its exact silhouette.

    Args:
        image: Images in [0, 1].
        room: The same views without the figure.
        palette: Colours of the figure's parts.
    """
    if image.ndim > 3:
        return torch.stack([silhouette(*each) for each in zip(image, room, palette, strict=True)])
    colours = palette[:, :, None, None]
    shade = ((image * colours).sum(1) / (colours * colours).sum(1)).clamp(*SHADES)
    to_figure = (image - shade[:, None] * colours).norm(dim=1).amin(0)
    height, width = image.shape[-2:]
    padded = F.pad(room[None], (ROOM_REACH,) * 4, mode="replicate")[0]

    def shifted(y: int, x: int) -> Tensor:
        return padded[:, ROOM_REACH + y : ROOM_REACH + y + height, ROOM_REACH + x : ROOM_REACH + x + width]

    to_room = []
    for reach in range(1, ROOM_REACH + 1):
        for y, x in ((reach, 0), (0, reach), (reach, reach), (reach, -reach)):
            start, along = shifted(y, x), shifted(-y, -x) - shifted(y, x)
            share = ((image - start) * along).sum(0) / (along * along).sum(0).clamp_min(1e-6)
            to_room.append((image - start - share.clamp(0, 1) * along).norm(dim=0))
    return to_figure + ROOM_MARGIN < torch.stack(to_room).amin(0)


def iou(first: Bool[Tensor, "*batch H W"], second: Bool[Tensor, "*batch H W"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of silhouettes."""
    both = (first & second).sum(dim=(-2, -1))
    return both / (first | second).sum(dim=(-2, -1)).clamp_min(1)
