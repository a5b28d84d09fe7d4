"""How soon the pose page answers a drag: a skeleton alone, and a rig whose mesh bends along.

    python benchmarks/pose_drag.py

Every drag moves the wrist's gizmo by a little, and is timed from the message to what is sent back to the page.
"""

import json
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from qnerf_nerfstudio.field.proxy import simplified
from qnerf_nerfstudio.pages.pose_page import PosePage
from qnerf_nerfstudio.pages.pose_start import open_document
from qnerf_nerfstudio.toy.capture import sample_edit, write_capture
from qnerf_nerfstudio.toy.config import CaptureConfig
from qnerf_nerfstudio.toy.proxy import capsule_mesh

JOINT = "r_wrist"
SEED = 7


@dataclass
class Benchmark:
    """Time drags on the pose page."""

    faces: tuple[int, ...] = (0, 5_000, 20_000)
    """Triangles of the rig's mesh; 0 is a skeleton alone."""
    drags: int = 30
    """Drags that are timed."""


def prepare(folder: Path, faces: int) -> Path:
    """A capture whose edit is a skeleton, or a rig with a mesh of so many triangles."""
    data = folder / str(faces)
    write_capture(data, CaptureConfig(seed=SEED, num_views=4, num_novel_views=0, size=64))
    if faces:
        mesh = capsule_mesh(*sample_edit(SEED)[:2])
        while len(mesh.faces) < faces:
            mesh = mesh.subdivide()
        simplified(mesh, faces).export(data / "subject.ply")
        edit = json.loads((data / "edit.json").read_text())
        edit["control"] |= {"type": "rig", "mesh": "subject.ply"}
        (data / "edit.json").write_text(json.dumps(edit))
    return data


def drags(data: Path, count: int) -> list[float]:
    """Seconds of each drag."""
    document = open_document(data, data / "edit.json", "skeleton", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = PosePage(data, document, "127.0.0.1", port)
    try:
        page.scene._on_joint(JOINT)
        place, seconds = document.joints(0, "target")[JOINT], []
        for number in range(count):
            moved = [place[0] + 0.002 * number, place[1], place[2]]
            started = time.perf_counter()
            page.scene._on_drag(moved, (1.0, 0.0, 0.0, 0.0))
            seconds.append(time.perf_counter() - started)
        time.sleep(1)  # the photos' overlay follows the last of them
        return seconds
    finally:
        page.server.stop()


def main(config: Benchmark) -> None:
    """Print the table."""
    table = Table("triangles", "median, ms", "slowest, ms", title=f"{config.drags} drags of {JOINT}")
    with tempfile.TemporaryDirectory() as folder:
        for faces in config.faces:
            seconds = [1000 * each for each in drags(prepare(Path(folder), faces), config.drags)]
            table.add_row(str(faces or "skeleton alone"), f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
