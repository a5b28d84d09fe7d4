"""Captures of COLMAP's sparse model."""

import json
from pathlib import Path

import numpy as np
from nerfstudio.data.utils.colmap_parsing_utils import Camera, Image, Point3D, rotmat2qvec, write_model

from qnerf_nerfstudio.capture.colmap import UPRIGHT

MODEL = "sparse/0"


def as_colmap(data: Path, suffix: str = ".bin", cameras: int = 1) -> dict:
    """Replace a capture's transforms.json by the COLMAP model of the same cameras, and some points; the former."""
    path = data / "transforms.json"
    document = json.loads(path.read_text())
    path.unlink()
    size = (document["w"], document["h"])
    focal = [document["fl_x"], document["fl_y"], document["cx"], document["cy"]]
    lens = {number: Camera(number, "PINHOLE", *size, np.array(focal)) for number in range(1, cameras + 1)}
    images = {}
    for number, frame in enumerate(document["frames"], 1):
        c2w = np.array(frame["transform_matrix"])
        c2w[:3] = UPRIGHT[:, :3].T @ c2w[:3]
        c2w[:3, 1:3] *= -1
        w2c = np.linalg.inv(c2w)
        # COLMAP's order is that of its database, not of names.
        images[100 - number] = Image(
            *(100 - number, rotmat2qvec(w2c[:3, :3]), w2c[:3, 3], 1 + number % cameras),
            *(Path(frame["file_path"]).relative_to("images").as_posix(), np.zeros((0, 2)), np.zeros(0)),
        )
    rgb, none = np.array([10, 20, 30]), np.zeros(0, dtype=int)
    points = {i: Point3D(i, np.array([0.1 * i, 0.2, 0.3]), rgb, 0.5, none, none) for i in range(1, 4)}
    (data / MODEL).mkdir(parents=True)
    write_model(lens, images, points, data / MODEL, suffix)
    return document
