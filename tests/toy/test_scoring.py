"""Scores."""

import torch

from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera, sample_edit
from qnerf_nerfstudio.toy.render import render
from qnerf_nerfstudio.toy.scoring import iou, silhouette


def test_silhouettes_are_found_by_colour_and_not_in_the_empty_room() -> None:
    c2w, size = orbit_camera(30.0, 20.0, 3.9, 1.0), (128, 128)
    for seed in (3, 5):
        body, _, pose = sample_edit(seed)
        frame, room = (render(body, each, c2w, focal_length(128), size) for each in (pose, None))
        image, empty = frame.rgb.movedim(-1, 0), room.rgb.movedim(-1, 0)
        assert iou(silhouette(image, empty, body.palette()), frame.mask) > 0.9
        blurred = torch.nn.functional.avg_pool2d(empty[None], 5, 1, 2, count_include_pad=False)[0]
        for other in (empty, blurred):
            assert silhouette(other, empty, body.palette()).float().mean() < 0.02
