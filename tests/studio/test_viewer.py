"""nerfstudio's viewer during an edit, in a real headless Chromium."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from helpers.browser import PATIENCE, choose, free_port, wait_for
from helpers.captures import small_capture
from helpers.commands import RUN, SCRIPTS, SHORT, where
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


class Frames:
    """What the viewer's server sends to the page."""

    def __init__(self, page: Page) -> None:
        self.renders = 0
        self.frustums: dict[bytes, list[bytes]] = {}
        page.on("websocket", lambda socket: socket.on("framereceived", self._take))

    def _take(self, payload: bytes | str) -> None:
        if isinstance(payload, str):
            return
        if b"BackgroundImageMessage" in payload:
            self.renders += 1
        if b"CameraFrustumMessage" in payload and b"/cameras/camera_00000" in payload:
            self.frustums.setdefault(b"first", []).append(payload)


def test_an_edit_is_watched_steered_and_stays_responsive(page: Page, tmp_path: Path) -> None:
    capture = small_capture(tmp_path, num_views=5)
    port = free_port()
    options = [
        *SHORT,
        *("--pipeline.editor.num-steps", "10", "--pipeline.stop", "0.3", "--pipeline.chunk", "5"),
        *("--pipeline.source-iterations", "20", "--pipeline.fit-iterations", "40"),
        *("--pipeline.final-iterations", "60"),
        *("--viewer.websocket-port", str(port)),
    ]
    words = map(str, [SCRIPTS / "ns-train", "qnerf-edit-tiny", "--data", capture, *where(tmp_path), *options])
    run = tmp_path / RUN
    with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(list(words), stdout=log, stderr=log) as process:
        try:
            frames = Frames(page)
            wait_for(lambda: reachable(port), page)
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_text("Connected").wait_for()
            page.get_by_text("Stage 1 of").wait_for()

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
            for turn in range(3):
                move_camera(page, frames, 310 + 20 * turn)
            assert not (run / "edit/transforms.json").exists(), "the views are still being edited"

            # The queries are an output like any other.
            choose(page, "Output type", "queries")
            page.locator("input[value='queries']:visible").wait_for()
            seen = frames.renders
            wait_for(lambda: frames.renders > seen, page)
            page.screenshot(path=tmp_path / "queries.png")

            # The scene can be chosen, too; why it is not there yet stands in the status.
            choose(page, "Scene shows", "carried")
            page.get_by_text("Nothing carried to see").wait_for()
            choose(page, "Scene shows", "captured")
            page.get_by_text("Nothing carried to see").wait_for(state="hidden")

            # A frustum shows the photo first, then the edited view.
            photo = frames.frustums[b"first"][0]
            wait_for((run / "edit/previews/0/frame_00001.png").exists, page)
            wait_for(lambda: frames.frustums[b"first"][-1] != photo, page)

            # The views are kept as they are, and the final field is trained on them.
            page.get_by_role("button", name="Keep views, train final NeRF now").click()
            wait_for((run / "edit/transforms.json").exists, page)
            page.get_by_text("final field on the edited views").wait_for()
            page.screenshot(path=tmp_path / "final.png")
            page.goto("about:blank")
            assert process.wait(timeout=PATIENCE) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        finally:
            process.kill()
    manifest = json.loads((run / "edit/manifest.json").read_text())
    assert [each["kind"] for each in manifest["revisions"]] == ["finish"]
    assert (run / "report.html").exists()


def move_camera(page: Page, frames: Frames, x: int) -> None:
    """Drag the camera to column `x` of the page; what it sees then comes."""
    page.wait_for_timeout(500)
    before = frames.renders
    page.mouse.move(250, 350)
    page.mouse.down()
    page.mouse.move(x, 370, steps=3)
    page.mouse.up()
    wait_for(lambda: frames.renders > before, page)


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
