"""The pose page in a real headless Chromium."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import viser.transforms as vtf
from helpers.browser import choose, free_port, wait_for
from helpers.captures import small_capture
from playwright.sync_api import Page

from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.proxy import simplified
from qnerf_nerfstudio.pages.pose_page import PosePage
from qnerf_nerfstudio.pages.pose_start import open_document
from qnerf_nerfstudio.pages.posing import PoseDocument
from qnerf_nerfstudio.pages.viser_safety import plain
from qnerf_nerfstudio.toy.capture import sample_edit
from qnerf_nerfstudio.toy.proxy import capsule_mesh

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_capture(tmp_path_factory.mktemp("browser"), seed=7)


def gizmo_tip(server: object, at: np.ndarray, axis: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a gizmo's centre is on the page, and the direction in which one of its axes points there."""
    client = next(iter(server.get_clients().values()))
    camera = client.camera
    rotation = vtf.SO3(camera.wxyz).as_matrix()
    focal = size[1] / 2 / np.tan(camera.fov / 2)

    def project(point: np.ndarray) -> np.ndarray:
        local = rotation.T @ (point - camera.position)
        return local[:2] / local[2] * focal + np.array(size) / 2

    centre, end = project(at), project(at + 0.01 * axis)
    return centre, (end - centre) / np.linalg.norm(end - centre)


def test_a_joint_is_dragged_undone_and_saved(page: Page, capture: Path, tmp_path: Path) -> None:
    data = tmp_path / "scene"
    shutil.copytree(capture, data)
    original = (data / "edit.json").read_bytes()
    document = open_document(data, data / "edit.json", "skeleton", None)
    served = PosePage(data, document, "127.0.0.1", free_port())
    try:
        page.goto(f"http://127.0.0.1:{served.server.get_port()}")
        page.get_by_text("Connected").wait_for()
        choose(page, "Joint", "r_wrist")
        page.locator("input[value='r_wrist']:visible").wait_for()
        page.wait_for_timeout(1500)
        before = document.joints(0, "target")
        moved = drag_joint(page, served, document, "r_wrist")
        bone = np.subtract(moved["r_wrist"], moved["r_elbow"])
        assert np.linalg.norm(bone) == pytest.approx(
            np.linalg.norm(np.subtract(before["r_wrist"], before["r_elbow"])), rel=1e-4
        )
        assert all(moved[name] == before[name] for name in before if name != "r_wrist")
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Undo").click()
        wait_for(lambda: document.joints(0, "target") == before, page)
        page.wait_for_timeout(1000)
        moved = drag_joint(page, served, document, "r_wrist")
        page.screenshot(path=tmp_path / "pose.png")
        page.get_by_role("button", name="Save edit.json").click()
        page.get_by_text("Saved").wait_for()
        saved = load_edit(data / "edit.json").control
        assert saved.type == "skeleton"
        assert saved.target["r_wrist"] == pytest.approx(document.joints(0, "target")["r_wrist"])
        assert np.linalg.norm(np.subtract(saved.target["r_wrist"], before["r_wrist"])) > 1e-3
        assert (data / "edit.1.json").read_bytes() == original
    finally:
        served.server.stop()


def test_a_rig_bends_while_its_joint_is_dragged(page: Page, capture: Path, tmp_path: Path) -> None:
    data = tmp_path / "scene"
    shutil.copytree(capture, data)
    body, source, _ = sample_edit(7)
    mesh = capsule_mesh(body, source)
    while len(mesh.faces) < 20_000:
        mesh = mesh.subdivide()
    mesh = simplified(mesh, 20_000)
    mesh.export(data / "subject.ply")
    edit = json.loads((data / "edit.json").read_text())
    edit["control"] |= {"type": "rig", "mesh": "subject.ply"}
    (data / "edit.json").write_text(json.dumps(edit))
    document = open_document(data, data / "edit.json", "skeleton", None)
    served = PosePage(data, document, "127.0.0.1", free_port())
    drawn: list[bool] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda payload: drawn.append(draws_mesh(payload))))
    try:
        page.goto(f"http://127.0.0.1:{served.server.get_port()}")
        page.get_by_text("Connected").wait_for()
        choose(page, "Joint", "r_wrist")
        page.locator("input[value='r_wrist']:visible").wait_for()
        page.wait_for_timeout(2500)
        before = sum(drawn)
        follow, moves = served.scene._on_drag, []

        def counted(*moved: Any) -> None:
            moves.append(sum(drawn))
            follow(*moved)

        served.scene._on_drag = counted
        drag_joint(page, served, document, "r_wrist")
        page.screenshot(path=tmp_path / "rig.png")
        # The mesh bends on the way, not at the end alone, and once for a move at most: no queue of them builds up.
        wait_for(lambda: sum(drawn) > before, page)
        assert moves and sum(drawn) - before <= len(moves)
    finally:
        served.server.stop()


def draws_mesh(payload: bytes | str) -> bool:
    """Whether a frame draws the target's mesh."""
    return isinstance(payload, bytes) and b"/control/0/target/mesh" in payload


def test_joints_photos_and_the_region_are_worked_on_by_clicks(page: Page, capture: Path, tmp_path: Path) -> None:
    data = tmp_path / "scene"
    shutil.copytree(capture, data)
    document = open_document(data, data / "edit.json", "skeleton", None)
    served = PosePage(data, document, "127.0.0.1", free_port())
    seen: list[bytes] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda p: seen.append(p) if p else None))
    try:
        page.goto(f"http://127.0.0.1:{served.server.get_port()}")
        page.get_by_text("Connected").wait_for()
        page.wait_for_timeout(1500)
        page.get_by_text("Joints and bones").click()
        page.get_by_role("button", name="Add joint").click()
        wait_for(lambda: "joint_1" in document.joints(0, "target"), page)
        page.wait_for_timeout(500)
        # The dropdown of joints shows it, too, and stands before it.
        page.locator("input[value='joint_1']:visible").nth(1).fill("hat")
        wait_for(lambda: "hat" in document.joints(0, "source"), page)
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Remove joint").click()
        wait_for(lambda: "hat" not in document.joints(0, "source"), page)

        page.get_by_role("button", name="Look through it").click()
        wait_for(lambda: any(b"BackgroundImage" in bytes(frame) for frame in seen), page)
        page.wait_for_timeout(800)
        page.screenshot(path=tmp_path / "through.png")
        first = served.scene.around._frustums[0]
        assert not first.visible
        page.mouse.move(300, 300)
        page.mouse.down()
        page.mouse.move(420, 330, steps=4)
        page.mouse.up()
        wait_for(lambda: first.visible, page)

        page.get_by_text("Show region of influence").click()
        wait_for(lambda: any(b"/region" in bytes(frame) for frame in seen), page)
        page.wait_for_timeout(800)
        page.screenshot(path=tmp_path / "region.png")
    finally:
        served.server.stop()


def test_what_users_wrote_is_no_code_on_the_page(page: Page, capture: Path) -> None:
    document = open_document(capture, capture / "edit.json", "skeleton", None)
    served = PosePage(capture, document, "127.0.0.1", free_port())
    hostile = 'joint {globalThis.hacked = 1} <img src="x" onerror="globalThis.hacked = 1"/>\n\nexport const a = 1'
    try:
        page.goto(f"http://127.0.0.1:{served.server.get_port()}")
        page.get_by_text("Connected").wait_for()
        page.wait_for_timeout(1000)
        served.say(f"Click **{plain(hostile)}** there.")
        page.get_by_text("joint {globalThis.hacked = 1} <img").wait_for()
        assert page.evaluate("globalThis.hacked") is None
        # Without `plain`, the page runs the code in it.
        served.say("joint {globalThis.hacked = 1}")
        wait_for(lambda: page.evaluate("globalThis.hacked") == 1, page)
    finally:
        served.server.stop()


def drag_joint(page: Page, served: PosePage, document: PoseDocument, joint: str) -> dict:
    """Drag the gizmo by its arrows until the joint moves; the joints after it."""
    before = document.joints(0, "target")
    at = np.array(before[joint]) * served.scene.scale
    assert page.viewport_size is not None
    size = (page.viewport_size["width"], page.viewport_size["height"])
    for axis in np.eye(3):
        for distance in (60, 45, 75, 35, 90):
            centre, along = gizmo_tip(served.server, at, axis, size)
            start, end = centre + distance * along, centre + (distance + 70) * along
            page.mouse.move(*start)
            page.wait_for_timeout(150)
            page.mouse.down()
            page.mouse.move(*(0.5 * (start + end)), steps=4)
            page.mouse.move(*end, steps=4)
            page.mouse.up()
            page.wait_for_timeout(600)
            if np.linalg.norm(np.subtract(document.joints(0, "target")[joint], before[joint])) > 1e-3:
                return document.joints(0, "target")
    raise AssertionError("no arrow of the gizmo could be dragged")
