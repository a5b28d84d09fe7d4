"""A run against the truth of its capture."""

from pathlib import Path
from types import SimpleNamespace

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.toy.capture import write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.truth import load_truth, render_views


def test_rendered_depths_are_metric_distances_along_the_optical_axis(tmp_path: Path) -> None:
    out = tmp_path / "scene"
    write_capture(out, CaptureConfig(seed=1, num_views=4, num_novel_views=2, size=32))
    truth = load_truth(out, "novel")
    outputs = NerfstudioDataParserConfig(data=out).setup().get_dataparser_outputs("train")
    to_scene = dataset_to_scene(outputs, out).double()
    up = torch.linalg.inv(to_scene[:, :3]).T[:, 2]

    class Floor:
        """A field that knows nothing but the floor's plane, z = 0 in the capture's coordinates."""

        def get_outputs_for_camera(self, camera: Cameras) -> dict[str, torch.Tensor]:
            rays = camera.generate_rays(camera_indices=0)
            distances = (to_scene[:, 3] - rays.origins) @ up[:, None] / (rays.directions.double() @ up[:, None])
            return {"rgb": torch.zeros(*rays.shape, 3), "expected_depth": distances.float()}

    pipeline = SimpleNamespace(
        datamanager=SimpleNamespace(train_dataparser_outputs=outputs), model=Floor(), device="cpu", eval=lambda: None
    )
    _, depths = render_views(pipeline, out, truth)
    floor = truth.depths.isfinite() & ~truth.masks
    assert floor.float().mean() > 0.2
    torch.testing.assert_close(depths[floor], truth.depths[floor], rtol=1e-3, atol=1e-3)
