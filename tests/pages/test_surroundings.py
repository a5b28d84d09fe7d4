"""Photos as backdrops: what the page's camera sees through a real lens."""

import numpy as np
import torch
from helpers.cameras import LENS
from helpers.cameras import views as cameras
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.pages.surroundings import flat, framed


@settings(deadline=None, max_examples=25)
@given(st.floats(-0.5, 0.5), st.floats(-0.4, 0.4), st.floats(0.2, 1.0))
def test_a_point_is_where_the_pages_camera_sees_it(x: float, y: float, z: float) -> None:
    views = cameras(2, LENS)
    height, width = views.size
    (pixels, valid), point = views.project(torch.tensor([[x, y, z]])), torch.tensor([x, y, z])
    column, row = pixels[1, 0].floor().long().tolist()
    local = (point - views.c2w[1, :, 3]) @ views.c2w[1, :, :3]
    focal = float(views.intrinsics[1, 1])
    there = (width / 2 + focal * float(local[0] / -local[2]), height / 2 - focal * float(local[1] / -local[2]))
    inside = 3 < column < width - 4 and 3 < row < height - 4 and 4 < there[0] < width - 4 and 4 < there[1] < height - 4
    if not bool(valid[1, 0]) or not inside:
        return
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[row - 1 : row + 2, column - 1 : column + 2] = 255
    # White is beyond the photo, too: the spot is what is bright around where it should be.
    shown = flat(views, 1, photo)[..., 0].astype(float)
    rows, columns = np.mgrid[:height, :width] + 0.5
    near = np.hypot(columns - there[0], rows - there[1]) < 4
    weights = shown * near
    found = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    assert np.hypot(found[0] - there[0], found[1] - there[1]) < 1.0


def test_photos_stand_in_the_middle_of_wider_and_of_taller_windows() -> None:
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    for aspect, shape in ((4.0, (20, 80)), (1.0, (40, 40)), (2.0, (20, 40))):
        shown = framed(image, aspect)
        assert shown.shape[:2] == shape
        dark = np.argwhere(shown[..., 0] == 0)
        np.testing.assert_allclose(dark.mean(0), (np.array(shape) - 1) / 2)
        assert len(dark) == 800
