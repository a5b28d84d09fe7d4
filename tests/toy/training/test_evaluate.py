"""What the bundled editor does."""

from typing import Literal

import pytest
import torch

from qnerf_nerfstudio.common.images import to_unit
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER, BUNDLED_KINDS
from qnerf_nerfstudio.toy.scoring import iou, psnr, silhouette
from qnerf_nerfstudio.toy.training.data import HELD_OUT, render_pair
from qnerf_nerfstudio.toy.training.evaluate import edit_pair, load_trained, trained_size


# One pair of one kind stands for all of them in `make test`.
@pytest.mark.parametrize(
    ("kind", "count"),
    [("openpose", 1), *(pytest.param(kind, 8, marks=pytest.mark.release) for kind in BUNDLED_KINDS)],
)
def test_bundled_editor_follows_the_control_and_keeps_the_colours(
    kind: Literal["openpose", "depth"], count: int
) -> None:
    editor = load_trained(BUNDLED_FOLDER, "cpu")
    pairs = [render_pair(HELD_OUT + 500 + i, trained_size(editor), with_room=True, kind=kind) for i in range(count)]
    edited = edit_pair(editor, pairs)
    sources, truths = (to_unit(torch.stack([pair.images[i] for pair in pairs])) for i in (0, 1))
    rooms = to_unit(torch.stack([pair.room for pair in pairs if pair.room is not None]))
    masks = torch.stack([pair.masks for pair in pairs])
    found = silhouette(edited, rooms, torch.stack([pair.palette for pair in pairs]))
    assert iou(found, masks[:, 1]).mean() > iou(found, masks[:, 0]).mean() + 0.1
    unions = masks.any(1)
    assert psnr(edited, truths, unions).mean() > psnr(sources, truths, unions).mean() + 1.5
