"""The procedural capture against analytic ground truth."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from qnerf_nerfstudio.scenes import Pose

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.edit.schema import SkeletonControl
from qnerf_nerfstudio.toy import render
from qnerf_nerfstudio.toy.capture import CaptureConfig, focal_length, orbit_camera, sample_edit, write_capture
from qnerf_nerfstudio.toy.figure import Body, Capsules, capsules, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.render import intersect_capsules
from qnerf_nerfstudio.toy.scoring import iou, silhouette
from qnerf_nerfstudio.toy.truth import load_truth, render_views


def distance_to(points: torch.Tensor, shape: Capsules) -> torch.Tensor:
    """Signed distance of points to the nearest capsule, by definition."""
    ba = shape.end - shape.start
    pa = points[:, None] - shape.start
    h = ((pa * ba).sum(-1) / (ba * ba).sum(-1).clamp_min(1e-12)).clamp(0, 1)
    return ((pa - ba * h[..., None]).norm(dim=-1) - shape.radius).min(-1).values


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_hits_lie_on_the_surface_and_nothing_lies_before_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = capsules(sample_body(generator), sample_pose(generator))
    origins = torch.tensor([[3.0, 1.0, 1.2]]).expand(200, 3)
    aims = torch.rand(200, 3, generator=generator) * torch.tensor([1.6, 0.6, 2.0]) - torch.tensor([0.8, 0.3, 0.0])
    directions = torch.nn.functional.normalize(aims - origins, dim=-1)
    hits = intersect_capsules(origins, directions, shape).min(-1).values
    met = hits.isfinite()
    assert met.any()
    surface = distance_to((origins + directions * hits[:, None])[met], shape)
    assert surface.abs().max() < 2e-3
    for share in (0.5, 0.9, 0.98):
        assert (distance_to((origins + directions * share * hits[:, None])[met], shape) > 0).all()
    for along in torch.linspace(1.0, 5.0, 40):
        assert (distance_to((origins + directions * along)[~met], shape) > -2e-3).all()


def test_depth_of_the_floor_and_the_head_is_exact() -> None:
    size, body = (65, 65), Body()
    c2w = orbit_camera(0.0, 90.0 - 1e-3, 5.0, 0.0)
    frame = render(body, Pose(), c2w, focal_length(65), size)
    floor = (~frame.mask) & frame.depth.isfinite()
    torch.testing.assert_close(frame.depth[floor], torch.full_like(frame.depth[floor], 5.0), atol=2e-3, rtol=0)
    top = joints(body, Pose())["nose"][2] + 0.06 + 0.12
    assert frame.depth[32, 32].item() == pytest.approx(5.0 - top.item(), abs=2e-3)


def test_projected_joints_lie_inside_the_silhouette() -> None:
    body, source, target = sample_edit(3)
    focal = focal_length(128)
    c2w = orbit_camera(25.0, 20.0, 3.9, 1.0)
    views = Views(c2w[None], torch.tensor([[focal, focal, 64.0, 64.0]]), torch.zeros(1, 6), (128, 128))
    for pose in (source, target):
        frame = render(body, pose, c2w, focal, (128, 128))
        pixels, visible = views.project(torch.stack(list(joints(body, pose).values())))
        assert visible.all()
        for x, y in pixels[0].tolist():
            assert frame.mask[int(y), int(x)]


def test_bones_keep_their_length_in_every_pose() -> None:
    generator = torch.Generator().manual_seed(5)
    body = sample_body(generator)
    for pair in (("r_shoulder", "r_elbow"), ("l_elbow", "l_wrist"), ("r_hip", "r_knee"), ("l_knee", "l_ankle")):
        lengths = []
        for _ in range(5):
            at = joints(body, sample_pose(generator))
            lengths.append(float((at[pair[0]] - at[pair[1]]).norm()))
        assert max(lengths) - min(lengths) < 1e-5


def test_capture_is_a_dataset_with_its_truth(tmp_path: Path) -> None:
    out = tmp_path / "capture"
    write_capture(out, CaptureConfig(seed=4, views=6, novel_views=8, size=64))
    truth = json.loads((out / "truth/transforms.json").read_text())
    splits = [frame["split"] for frame in truth["frames"]]
    assert (splits.count("train"), splits.count("novel")) == (6, 8)
    body, source, target = sample_edit(4)
    for frame in truth["frames"]:
        depth = np.load(out / "truth" / frame["depth_file_path"])
        mask = np.array(Image.open(out / "truth" / frame["mask_path"])) > 0
        source_mask = np.array(Image.open(out / "truth" / frame["source_mask_path"])) > 0
        image = np.array(Image.open(out / "truth" / frame["file_path"]))
        assert depth.dtype == np.float32
        assert depth.shape == mask.shape == source_mask.shape == image.shape[:2] == (64, 64)
        assert np.isfinite(depth[mask]).all()
        assert (mask != source_mask).any()
    c2w = torch.tensor(truth["frames"][0]["transform_matrix"])[:3]
    photo = np.array(Image.open(out / "images/frame_00001.png")) / 255
    rendered = render(body, source, c2w, truth["fl_x"], (64, 64)).rgb.numpy()
    np.testing.assert_allclose(photo, rendered, atol=1 / 255)
    edit = load_edit(out / "edit.json")
    assert edit.prompt == body.caption()
    for name, at in joints(body, target).items():
        assert isinstance(edit.control, SkeletonControl)
        assert edit.control.target[name] == pytest.approx(at.tolist(), abs=1e-4)
    again = tmp_path / "again"
    write_capture(again, CaptureConfig(seed=4, views=6, novel_views=8, size=64))
    for path in sorted(out.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        write_capture(out, CaptureConfig())


@pytest.mark.parametrize("applied", [None, [[0.0, 1, 0, 0.1], [1, 0, 0, -0.2], [0, 0, -1, 0.3]]])
def test_geometry_travels_with_the_cameras(tmp_path: Path, applied: list | None) -> None:
    """A point projects to the same pixel before and after nerfstudio's rotation, centring and scaling."""
    out = tmp_path / "capture"
    write_capture(out, CaptureConfig(seed=2, views=8, size=64))
    path = out / "transforms.json"
    meta = json.loads(path.read_text())
    if applied is not None:
        path.write_text(json.dumps({**meta, "applied_transform": applied}))
    parser = NerfstudioDataParserConfig(data=out).setup()
    outputs = parser.get_dataparser_outputs(split="train")
    to_scene = dataset_to_scene(outputs, out)
    frames = {frame["file_path"].split("/")[-1]: frame for frame in meta["frames"]}
    body, source, _ = sample_edit(2)
    points = torch.stack(list(joints(body, source).values()))
    intrinsics = torch.tensor([[meta["fl_x"], meta["fl_y"], meta["cx"], meta["cy"]]])
    for index, name in enumerate(outputs.image_filenames):
        original = torch.tensor(frames[name.name]["transform_matrix"])[None, :3]
        moved = outputs.cameras.camera_to_worlds[index : index + 1]
        before = Views(original, intrinsics, torch.zeros(1, 6), (64, 64)).project(points)[0]
        carried = points @ to_scene[:, :3].T + to_scene[:, 3]
        after = Views(moved, intrinsics, torch.zeros(1, 6), (64, 64)).project(carried)[0]
        torch.testing.assert_close(before, after, atol=0.02, rtol=0)


def test_captions_name_the_colours() -> None:
    body = Body(shirt="red", trousers="green", hat="blue", floor="grey", wall="pink", skin="brown")
    for colour in ("red", "green", "blue", "grey", "pink", "brown"):
        assert colour in body.caption()


@pytest.mark.parametrize(("field", "value"), [("views", 2), ("size", 100), ("size", 0)])
def test_capture_settings_out_of_range_are_named(tmp_path: Path, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{field} is {value}"):
        write_capture(tmp_path / "x", CaptureConfig(**{field: value}))


def test_orbit_camera_looks_at_the_figure() -> None:
    c2w = orbit_camera(70.0, 30.0, 4.0, 1.0)
    forward = -c2w[:, 2]
    towards = torch.tensor([0.0, 0.0, 1.0]) - c2w[:, 3]
    assert math.isclose(float(forward @ towards / towards.norm()), 1.0, abs_tol=1e-5)
    assert torch.linalg.det(c2w[:, :3]).item() == pytest.approx(1.0, abs=1e-5)


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


def test_rendered_depths_are_metric_distances_along_the_optical_axis(tmp_path: Path) -> None:
    out = tmp_path / "scene"
    write_capture(out, CaptureConfig(seed=1, views=4, novel_views=2, size=32))
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
