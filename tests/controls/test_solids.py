"""Solid controls against analytic depth, on made-up and on real cameras; meshes that cannot be used."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from helpers.cameras import LENS, views
from helpers.real import SCENES, needs_scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls import solids
from qnerf_nerfstudio.controls.solids import (
    FARTHEST,
    MESH_FORMATS,
    box_mesh,
    depth_images,
    load_mesh,
    normal_images,
    placement_matrix,
    raycast,
    transform_mesh,
)


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
    agrees(raycast(cameras, [transform_mesh(box_mesh(), matrix)]).depth, box_depth(cameras, matrix))


def test_pixels_that_no_lens_shows_see_nothing() -> None:
    cameras = views(1, distortion=(-0.6, 0.0, 0.0, 0.0, 0.0, 0.0), size=(400, 400))
    _, directions = cameras.rays()
    assert directions.isnan().any() and directions.isfinite().any()
    surface = raycast(cameras, [trimesh.creation.icosphere(radius=30.0)])
    assert torch.equal(surface.depth.flatten().isfinite(), directions[0].isfinite().all(-1))


def test_nearer_parts_hide_those_behind_and_keep_their_shade_in_both_poses() -> None:
    cameras = views(2)
    still = transform_mesh(box_mesh(), placement_matrix((0, 0, 1.0), (0, 0, 0), (0.4, 0.4, 0.4)))
    moved = [transform_mesh(box_mesh(), placement_matrix((0, 0.9, z), (0, 0, 0), (0.2, 0.2, 0.2))) for z in (0.5, 1.6)]
    surfaces = [raycast(cameras, [still, each]) for each in moved]
    assert all((raycast(cameras, [still]).depth >= each.depth).all() for each in surfaces)
    source, target = depth_images(surfaces)
    alone = raycast(cameras, [still]).depth
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
    surface = raycast(cameras, [trimesh.creation.icosphere(subdivisions=5)])
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


@needs_scenes
def test_depth_in_the_real_cameras_of_bear_is_analytic_and_survives_nerfstudios_transform(tmp_path: Path) -> None:
    capture = read_capture(SCENES / "bear")
    cameras, to_scene = capture.views(), capture.to_scene
    size = (cameras.size[0] // 4, cameras.size[1] // 4)
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
    agrees(raycast(chosen, [transform_mesh(ball, to_scene)]).depth, sphere_depth(chosen, in_scene, radius * scale))
    affine = torch.cat([to_scene, torch.tensor([[0.0, 0, 0, 1]])]) @ matrix
    agrees(raycast(chosen, [transform_mesh(box_mesh(), affine[:3])]).depth, box_depth(chosen, affine))
    # A joint at a known point lands on its pixel, computed from transforms.json alone.
    pixels, visible = cameras.project(in_scene[None])
    for row, path in enumerate(capture.filenames):
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


def test_meshes_out_of_bounds_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    trimesh.Trimesh(ball.vertices * 1e7, ball.faces).export(tmp_path / "enormous.ply")
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n"
    (tmp_path / "dangling.ply").write_text(header + faces)
    with zipfile.ZipFile(tmp_path / "bomb.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(20_000_000))
    (tmp_path / "mesh.pickle").write_bytes(b"")
    (tmp_path / "empty.ply").write_bytes(b"")
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "net.gltf").write_text(json.dumps({"buffers": [{"uri": "http://127.0.0.1:9/x.bin"}]}))
    (tmp_path / "away.gltf").write_text(json.dumps({"buffers": [{"uri": "../x.bin"}]}))
    (tmp_path / "void.gltf").write_text(json.dumps({"accessors": [{"count": 10**9}]}))
    monkeypatch.setattr(solids, "MAX_MESH_BYTES", 10_000_000)
    for name, words in {
        "enormous.ply": "beyond 1000000",
        "dangling.ply": "vertices that are not there",
        "bomb.3mf": "unpacks to 20000000 bytes",
        "void.gltf": "unpacks to 64000000000 bytes",
        "net.gltf": "no .bin file in its folder",
        "away.gltf": "no .bin file in its folder",
        "mesh.pickle": "ply, obj, stl, off, glb, gltf, 3mf, dae",
        "empty.ply": "cannot be read",
        "folder.ply": "does not exist",
        "x" * 300 + ".ply": "does not exist",
        "a\0.ply": "does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            load_mesh(tmp_path / name)
    monkeypatch.setattr(solids, "MAX_MESH_BYTES", 100)
    with pytest.raises(UserError, match="at most 100 are read"):
        load_mesh(folder / "ball.ply")


def test_triangles_are_counted_before_they_are_joined(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    scene = trimesh.Scene(ball)
    for index in range(9):
        scene.graph.update(f"copy {index}", geometry=next(iter(scene.geometry)))
    (tmp_path / "many.glb").write_bytes(scene.export(file_type="glb"))
    assert len(load_mesh(tmp_path / "many.glb").faces) == 800
    solids._read_mesh.cache_clear()
    monkeypatch.setattr(solids, "MAX_FACES", 700)
    with pytest.raises(UserError, match="has 800 triangles, at most 700"):
        load_mesh(tmp_path / "many.glb")


@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_meshes_of_any_damage_are_read_or_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    ball = trimesh.load_mesh(folder / "ball.ply")
    try:
        exported: Any = (trimesh.Scene(ball) if kind == "gltf" else ball).export(file_type=kind)
    except ImportError:
        pytest.skip(f"a library that {kind} files need is not installed")
    if isinstance(exported, dict):
        for name, content in exported.items():
            (tmp_path / name).write_bytes(content)
        exported = exported["model.gltf"]
    whole = exported if isinstance(exported, bytes) else exported.encode()
    (tmp_path / f"whole.{kind}").write_bytes(whole)
    assert len(load_mesh(tmp_path / f"whole.{kind}").faces) == 80
    generator = np.random.default_rng(0)
    for index in range(40):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)] if index % 4 == 0 else whole)
        for at in generator.integers(len(data), size=generator.integers(1, 6)):
            data[at] = generator.choice(list(b"-.0e9 \0\xff"))
        path = tmp_path / f"{index}.{kind}"
        path.write_bytes(data)
        try:
            assert np.isfinite(load_mesh(path).triangles).all()
        except UserError as error:
            assert path.name in str(error)
