"""Pages in a real headless Chromium: `qnerf pose`, the nerfstudio viewer during an edit, and the report."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright
from test_nerfstudio import SCRIPTS, SHORT, command

from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.pages.pose_page import PosePage
from qnerf_nerfstudio.pages.posing import PoseDocument, open_document
from qnerf_nerfstudio.pages.viser_safety import plain
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZE = (900, 700)
"""Width and height of the page."""
ANSWER = 5.0
"""Seconds within which a camera move is answered."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)")


@pytest.fixture
def page() -> Iterator[Page]:
    """A page in a browser of its own: one that stays open goes on drawing, and slows what follows it."""
    arguments = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        browser.close()


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "scene"
    write_capture(out, CaptureConfig(seed=7, views=10, novel_views=0, size=64))
    return out


def where(out: Path) -> list[object]:
    return ["--output-dir", out, "--experiment-name", "e", "--timestamp", "t"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], page: Page, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        page.wait_for_timeout(100)


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of one of viser's dropdowns, which stand to the right of their labels."""
    page.get_by_role("textbox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def gizmo_tip(server: object, at: np.ndarray, axis: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a gizmo's centre is on the page, and the direction in which one of its axes points there."""
    client = next(iter(server.get_clients().values()))
    camera = client.camera
    import viser.transforms as vtf

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
        wait_for(lambda: document.joints(0, "target") == before, page, 10)
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


def test_a_failure_while_the_page_is_drawn_does_not_freeze_it(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = open_document(capture, capture / "edit.json", "skeleton", None)
    served = PosePage(capture, document, "127.0.0.1", free_port())
    monkeypatch.setattr(served, "_draw_gizmo", lambda *_, **__: {}["no gizmo"])
    with pytest.raises(KeyError):
        served.refresh()
    # It would wait for its messages for ever.
    stopping = threading.Thread(target=served.server.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()


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
        # Without it, the page runs what it is told.
        served.say("joint {globalThis.hacked = 1}")
        wait_for(lambda: page.evaluate("globalThis.hacked") == 1, page, 10)
    finally:
        served.server.stop()


def drag_joint(page: Page, served: PosePage, document: PoseDocument, joint: str) -> dict:
    """Drag the gizmo by its arrows until the joint moves; the joints after it."""
    before = document.joints(0, "target")
    at = np.array(before[joint]) * served.scale
    for axis in np.eye(3):
        for distance in (60, 45, 75, 35, 90):
            centre, along = gizmo_tip(served.server, at, axis, SIZE)
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


class Frames:
    """What the viewer's server sends to the page."""

    def __init__(self, page: Page) -> None:
        self.renders: list[float] = []
        self.frustums: dict[bytes, list[bytes]] = {}
        page.on("websocket", lambda socket: socket.on("framereceived", self._take))

    def _take(self, payload: bytes | str) -> None:
        if isinstance(payload, str):
            return
        if b"BackgroundImageMessage" in payload:
            self.renders.append(time.monotonic())
        if b"CameraFrustumMessage" in payload and b"/cameras/camera_00000" in payload:
            self.frustums.setdefault(b"first", []).append(payload)


def test_an_edit_is_watched_steered_and_stays_responsive(page: Page, capture: Path, tmp_path: Path) -> None:
    port = free_port()
    options = [
        *("--pipeline.editor.num-steps", "10", "--pipeline.editor.resolution", "64", "--pipeline.tau", "2"),
        *("--pipeline.stop", "0.3", "--pipeline.source-iterations", "20", "--pipeline.fit-iterations", "60"),
        *("--pipeline.final-iterations", "150", "--pipeline.chunk", "5"),
        *("--viewer.websocket-port", str(port), "--viewer.quit-on-train-completion", "True"),
    ]
    words = map(str, [SCRIPTS / "ns-train", "qnerf-edit-tiny", "--data", capture, *where(tmp_path), *options])
    run = tmp_path / "e/qnerf-edit-tiny/t"
    with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(list(words), stdout=log, stderr=log) as process:
        try:
            frames = Frames(page)
            wait_for(lambda: reachable(port), page, 120)
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_text("Connected").wait_for()
            page.get_by_text("Stage 1 of").wait_for(timeout=60_000)

            # Pause: no slice is done any more; continue: they go on.
            page.get_by_role("button", name="Pause editing").click()
            page.get_by_role("button", name="Continue editing").wait_for()
            page.wait_for_timeout(1500)
            done = len(list((run / "edit").rglob("*.safetensors")))
            page.wait_for_timeout(2500)
            assert len(list((run / "edit").rglob("*.safetensors"))) == done
            page.get_by_role("button", name="Continue editing").click()
            wait_for(lambda: len(list((run / "edit").rglob("*.safetensors"))) > done, page)

            # Camera moves are answered while slices run.
            waits = []
            for turn in range(3):
                page.wait_for_timeout(500)
                moved = time.monotonic()
                page.mouse.move(250, 350)
                page.mouse.down()
                page.mouse.move(310 + 20 * turn, 370, steps=3)
                page.mouse.up()
                wait_for(lambda moved=moved: frames.renders and frames.renders[-1] > moved, page, 30)
                waits.append(frames.renders[-1] - moved)
            assert max(waits) < ANSWER, waits

            # The queries are an output like any other.
            choose(page, "Output type", "queries")
            page.locator("input[value='queries']:visible").wait_for()
            seen = len(frames.renders)
            wait_for(lambda: len(frames.renders) > seen, page, 30)
            page.screenshot(path=tmp_path / "queries.png")

            # A frustum shows the photo first, then the edited view.
            photo = frames.frustums[b"first"][0]
            wait_for((run / "edit/previews/0/frame_00001.png").exists, page, 240)
            wait_for(lambda: frames.frustums[b"first"][-1] != photo, page, 30)

            # The views at hand are kept, and the final field is trained on them.
            page.get_by_role("button", name="Keep views, train final NeRF now").click()
            wait_for((run / "edit/transforms.json").exists, page, 120)
            page.get_by_text("final field on the edited views").wait_for(timeout=60_000)
            page.screenshot(path=tmp_path / "final.png")
            page.goto("about:blank")
            assert process.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        finally:
            process.kill()
    manifest = json.loads((run / "edit/manifest.json").read_text())
    assert [each["kind"] for each in manifest["revisions"]] == ["finish"]
    assert (run / "report.html").exists()


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_report_opens_without_network(page: Page, capture: Path, tmp_path: Path) -> None:
    command("ns-train", "qnerf-edit-tiny", "--data", capture, *where(tmp_path), *SHORT)
    report = tmp_path / "e/qnerf-edit-tiny/t/report.html"
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.context.set_offline(True)
    page.goto(report.as_uri())
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator(".sheet img").count() == 3 * 10
    assert page.locator(".row img").count() >= 2
    assert page.locator(".curves svg").count() == 1
    before = page.locator("#after").get_attribute("src")
    page.locator("#view").select_option(index=3)
    assert page.locator("#after").get_attribute("src") != before
    page.locator("#share").fill("20")
    assert "20%" in page.locator("#after").evaluate("(image) => image.style.clipPath")
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", "file:", "blob:"))] == []
