"""Solid controls against analytic depth, on made-up and on real cameras; ControlNets against controls."""

import json
import math
from pathlib import Path

import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from test_controls import views
from test_real_scenes import SCENES

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.controls.solids import (
    FARTHEST,
    box_mesh,
    cast,
    depth_images,
    load_mesh,
    normal_images,
    placement_matrix,
    transform_mesh,
)
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.controlnets import PUBLISHED, choose_controlnet, controlnet_kind
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.methods import qnerf_edit, qnerf_edit_tiny
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture

LENS = (0.05, -0.02, 0.003, 0.0, 0.004, -0.003)


def sphere_depth(cameras: Views, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """Closed form: depth of a sphere at every pixel, infinite where it is missed."""
    origins, directions = (each.double() for each in cameras.rays())
    offset = origins - centre
    b, a = (offset * directions).sum(-1), directions.square().sum(-1)
    discriminant = b.square() - a * (offset.square().sum(-1) - radius**2)
    depth = (-b - discriminant.clamp_min(0).sqrt()) / a
    return torch.where(discriminant > 0, depth, torch.inf).unflatten(1, cameras.size)


def box_depth(cameras: Views, matrix: torch.Tensor) -> torch.Tensor:
    """The slab method: depth of the unit cube under an affine map."""
    origins, directions = (each.double() for each in cameras.rays())
    inverse = torch.linalg.inv(matrix.double())
    start = origins @ inverse[:3, :3].T + inverse[:3, 3]
    along = directions @ inverse[:3, :3].T
    near, far = (-0.5 - start) / along, (0.5 - start) / along
    enter, leave = torch.minimum(near, far).amax(-1), torch.maximum(near, far).amin(-1)
    return torch.where((enter < leave) & (enter > 0), enter, torch.inf).unflatten(1, cameras.size)


def agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    both = found.isfinite() & expected.isfinite()
    assert both.any()
    # A pixel whose ray grazes an edge may fall on either side of it.
    assert (found.isfinite() != expected.isfinite()).sum() <= 0.02 * both.sum() + 2
    error = (found / expected - 1).abs()[both]
    assert error.max() < 1e-3 or (error > 1e-3).sum() <= 2


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-180, 180), min_size=3, max_size=3), st.lists(st.floats(0.3, 1.2), min_size=3, max_size=3))
def test_depth_of_a_box_is_that_of_the_slab_method_through_a_distorting_lens(
    rotation: list[float], size: list[float]
) -> None:
    cameras = views(distortion=LENS)
    matrix = placement_matrix((0.1, -0.2, 1.0), rotation, size)
    agrees(cast(cameras, [transform_mesh(box_mesh(), matrix)]).depth, box_depth(cameras, matrix))


def test_rays_are_the_inverse_of_projection_and_those_of_nerfstudio() -> None:
    cameras = views(distortion=LENS)
    origins, directions = cameras.rays()
    for view in range(len(cameras)):
        pixels, visible = cameras.project((origins + 2.5 * directions)[view])
        rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        assert visible[view].all()
        torch.testing.assert_close(pixels[view], torch.stack([columns, rows], -1).reshape(-1, 2), atol=1e-3, rtol=0)
    fx, fy, cx, cy = cameras.intrinsics.split(1, dim=-1)
    theirs = Cameras(cameras.c2w, fx, fy, cx, cy, 128, 96, cameras.distortion)
    bundle = theirs.generate_rays(camera_indices=1)
    ours = torch.nn.functional.normalize(directions[1], dim=-1).unflatten(0, (96, 128))
    torch.testing.assert_close(ours, bundle.directions, atol=1e-4, rtol=0)


def test_pixels_that_no_lens_shows_see_nothing() -> None:
    cameras = views(1, distortion=(-0.6, 0.0, 0.0, 0.0, 0.0, 0.0), size=(400, 400))
    _, directions = cameras.rays()
    assert directions.isnan().any() and directions.isfinite().any()
    surface = cast(cameras, [trimesh.creation.icosphere(radius=30.0)])
    assert torch.equal(surface.depth.flatten().isfinite(), directions[0].isfinite().all(-1))


def test_nearer_parts_hide_those_behind_and_keep_their_shade_in_both_poses() -> None:
    cameras = views(2)
    still = transform_mesh(box_mesh(), placement_matrix((0, 0, 1.0), (0, 0, 0), (0.4, 0.4, 0.4)))
    moved = [transform_mesh(box_mesh(), placement_matrix((0, 0.9, z), (0, 0, 0), (0.2, 0.2, 0.2))) for z in (0.5, 1.6)]
    surfaces = [cast(cameras, [still, each]) for each in moved]
    assert all((cast(cameras, [still]).depth >= each.depth).all() for each in surfaces)
    source, target = depth_images(surfaces)
    alone = cast(cameras, [still]).depth
    same = (surfaces[0].depth == alone) & (surfaces[1].depth == alone)
    on_box = same & alone.isfinite()
    assert on_box.any()
    torch.testing.assert_close(source[:, 0][on_box], target[:, 0][on_box], atol=1e-6, rtol=0)
    both = torch.stack([source, target])
    assert both.amax() == pytest.approx(1) and both[both > 0].min() == pytest.approx(FARTHEST)
    # Nearness is linear in inverse depth: between two pixels of one image, shades follow 1 / depth.
    nearness, shade = 1 / surfaces[0].depth[0], source[0, 0]
    pixels = (shade > 0).nonzero()[::37]
    x, y = nearness[pixels[:, 0], pixels[:, 1]].double(), shade[pixels[:, 0], pixels[:, 1]].double()
    assert float(torch.corrcoef(torch.stack([x, y]))[0, 1]) > 0.99999


def test_normals_are_red_to_the_left_green_up_and_blue_to_the_camera() -> None:
    # A camera that looks along -z of the world, with x to its right.
    cameras = Views(
        torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]]),
        torch.tensor([[100.0, 100, 32, 32]]),
        torch.zeros(1, 6),
        (64, 64),
    )
    surface = cast(cameras, [trimesh.creation.icosphere(subdivisions=5)])
    image = normal_images(cameras, [surface])[0][0]
    left, top, middle = image[:, 32, 7], image[:, 7, 32], image[:, 32, 32]
    assert left[0] > 0.85 and left[1] == pytest.approx(0.5, abs=0.06)
    assert top[1] > 0.85 and top[0] == pytest.approx(0.5, abs=0.06)
    assert middle[2] > 0.98 and image[:, 0, 0].sum() == 0


def test_a_placement_scales_then_rotates_about_fixed_axes_then_moves() -> None:
    matrix = placement_matrix((1.0, 2.0, 3.0), (90.0, 0.0, 90.0), (2.0, 1.0, 1.0))
    # x is scaled to 2, stays under the turn about x, and is turned to y by the one about z.
    torch.testing.assert_close(matrix @ torch.tensor([1.0, 0, 0, 1]), torch.tensor([1.0, 4, 3, 1]))
    # y is turned to z about x, which the turn about z leaves alone.
    torch.testing.assert_close(matrix @ torch.tensor([0.0, 1, 0, 1]), torch.tensor([1.0, 2, 4, 1]))


@pytest.mark.skipif(not SCENES.exists(), reason=f"the real captures are not at {SCENES}")
def test_depth_in_the_real_cameras_of_bear_is_analytic_and_survives_nerfstudios_transform(tmp_path: Path) -> None:
    config = QNerfDataManagerConfig(data=SCENES / "bear", dataparser=NerfstudioDataParserConfig(data=SCENES / "bear"))
    data = config.setup(device="cpu", test_mode="val")
    cameras = data.views()
    size = (cameras.size[0] // 4, cameras.size[1] // 4)
    to_scene = dataset_to_scene(data.train_dataparser_outputs, SCENES / "bear")
    meta = json.loads((SCENES / "bear/transforms.json").read_text())
    frames = {Path(frame["file_path"]).name: frame for frame in meta["frames"]}
    assert cameras.distortion.any()
    # What all cameras look at, in the dataset's own coordinates.
    poses = torch.tensor([frame["transform_matrix"] for frame in meta["frames"]]).double()
    axes, eyes = -poses[:, :3, 2], poses[:, :3, 3]
    across = torch.eye(3).double() - axes[:, :, None] * axes[:, None]
    centre = torch.linalg.solve(across.sum(0), (across @ eyes[..., None]).sum(0))[:, 0]
    radius = float((eyes - centre).norm(dim=-1).min()) / 4
    ball = trimesh.creation.icosphere(subdivisions=6, radius=radius)
    ball.apply_translation(centre.numpy())
    matrix = placement_matrix(centre.tolist(), (20.0, 30.0, 40.0), [radius, 2 * radius, radius / 2])
    scale = float(to_scene[:, :3].det() ** (1 / 3))
    chosen = cameras[slice(0, None, 12)].resized(size)
    in_scene = (to_scene[:, :3].double() @ centre + to_scene[:, 3].double()).float()
    agrees(cast(chosen, [transform_mesh(ball, to_scene)]).depth, sphere_depth(chosen, in_scene, radius * scale))
    affine = torch.cat([to_scene, torch.tensor([[0.0, 0, 0, 1]])]) @ matrix
    agrees(cast(chosen, [transform_mesh(box_mesh(), affine[:3])]).depth, box_depth(chosen, affine))
    # A joint at a known point lands on its pixel, computed from transforms.json alone.
    pixels, visible = cameras.project(in_scene[None])
    for row, path in enumerate(data.filenames):
        frame = frames[path.name]
        get = {**meta, **frame}.get
        pose = torch.tensor(frame["transform_matrix"]).double()
        local = pose[:3, :3].T @ (centre - pose[:3, 3])
        x, y = float(local[0] / -local[2]), float(-local[1] / -local[2])
        r2 = x * x + y * y
        radial = 1 + r2 * (get("k1", 0.0) + r2 * (get("k2", 0.0) + r2 * get("k3", 0.0)))
        p1, p2 = get("p1", 0.0), get("p2", 0.0)
        u = get("fl_x") * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + get("cx")
        v = get("fl_y") * (y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)) + get("cy")
        assert visible[row, 0]
        assert math.dist(pixels[row, 0].tolist(), (u, v)) < 0.5, path.name


def test_mesh_and_boxes_of_a_capture_stand_where_the_truth_stands(tmp_path: Path) -> None:
    write_capture(tmp_path / "scene", CaptureConfig(seed=3, views=4, novel_views=0))
    meta = json.loads((tmp_path / "scene/truth/transforms.json").read_text())
    names = [Path(frame["file_path"]).name for frame in meta["frames"]]
    cameras = Views(
        torch.tensor([frame["transform_matrix"][:3] for frame in meta["frames"]]),
        torch.tensor([[meta["fl_x"], meta["fl_y"], meta["cx"], meta["cy"]]] * len(names)),
        torch.zeros(len(names), 6),
        (128, 128),
    )
    for name, least in (("edit-mesh.json", 0.95), ("edit-boxes.json", 0.55)):
        edit = load_edit(tmp_path / "scene" / name)
        images = control_images(edit, tmp_path / "scene", cameras, names, torch.eye(4)[:3], (128, 128))
        for key, drawn in zip(("source_mask_path", "mask_path"), images, strict=True):
            masks = [_mask(tmp_path / "scene/truth" / frame[key]) for frame in meta["frames"]]
            seen, truth = drawn[:, 0] > 0, torch.stack(masks)
            assert ((seen & truth).sum() / (seen | truth).sum()) > least
            assert (seen & truth).sum() / truth.sum() > 0.95


def _mask(path: Path) -> torch.Tensor:
    from qnerf_nerfstudio.common.images import load_images

    return load_images([path])[0][..., 0] > 0.5


def not_finite() -> trimesh.Trimesh:
    return trimesh.Trimesh([[0, 0, 0.0], [1, math.nan, 0], [0, 1, 0]], [[0, 1, 2]], process=False)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("ply\nnonsense"), "cannot be read"),
        (lambda path: trimesh.PointCloud([[0, 0, 0.0], [1, 1, 1]]).export(path), "no triangles"),
        (lambda path: not_finite().export(path), "finite"),
    ],
)
def test_meshes_that_cannot_be_used_are_named(write: object, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "proxy.ply"
    write(path)
    with pytest.raises(UserError, match=expected) as error:
        load_mesh(path)
    assert "proxy.ply" in str(error.value)


def test_controlnets_are_told_by_their_names() -> None:
    assert all(controlnet_kind(name) == kind for kind, name in PUBLISHED.items())
    assert controlnet_kind("/models/sd-controlnet-depth/") == "depth"
    assert controlnet_kind("thibaud/controlnet-sd21-openpose-diffusers") == "openpose"
    assert controlnet_kind("me/mine") is None


def test_each_control_gets_a_controlnet_that_reads_it_or_a_sentence() -> None:
    auto = qnerf_edit.config.pipeline.editor
    assert choose_controlnet(auto, "depth") == PUBLISHED["depth"]
    assert choose_controlnet(auto, "openpose") == PUBLISHED["openpose"]
    assert choose_controlnet(EditorConfig(controlnet="me/mine"), "normal") == "me/mine"
    with pytest.raises(UserError, match=r"reads openpose controls.*drawn as depth.*f1p_sd15_depth"):
        choose_controlnet(EditorConfig(controlnet=PUBLISHED["openpose"]), "depth")
    with pytest.raises(UserError, match='add "kind"'):
        choose_controlnet(auto, None)
    with pytest.raises(UserError, match=r"bundled editor reads.*drawn as normal"):
        choose_controlnet(qnerf_edit_tiny.config.pipeline.editor, "normal")
