"""Fuzzing of the files that people give: images, meshes, transforms.json and models' configs, damaged at random.

    python tests/helpers/fuzz_files.py --minutes 15 --seed 0 --kinds images meshes transforms models

Whatever a file holds, it is read or refused in one sentence: nothing but UserError may be raised, and no file may take
seconds. The tests run a few files of each kind.
"""

import argparse
import base64
import copy
import io
import json
import math
import random
import struct
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
import trimesh
from PIL import Image
from rich.console import Console
from rich.table import Table

from helpers.captures import small_capture
from helpers.fuzzing import NAMES, cameras, mutate, mutate_text
from helpers.models import save_tiny_set
from qnerf_nerfstudio.capture import capture_files
from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.images import load_control_images, load_drawings, load_masks
from qnerf_nerfstudio.controls.solids import load_mesh, raycast
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.loading import load_editor

Outcome = Literal["refused", "read"]
SLOWEST = 5.0
"""Seconds of a processor that no file may take where it is searched for one that does."""
SIZE = (32, 32)
"""Height and width of the photos."""
_KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
}
"""Formats of images with the modes that they can hold."""


class Fuzzer(ABC):
    """Writes a damaged file, and lets the program read it.

    Args:
        folder: An empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, generator: random.Random) -> None:
        """Write the next file."""

    @abstractmethod
    def read(self) -> None:
        """Read it as the program does."""

    def outcome(self, generator: random.Random) -> Outcome:
        """What becomes of the next file.

        Raises:
            Exception: Anything but UserError is what fuzzing looks for.
        """
        self.write(generator)
        try:
            with redirect_stdout(io.StringIO()):
                self.read()
        except UserError as error:
            assert str(error).isprintable(), f"the message is not one plain line: {error!r}"
            return "refused"
        return "read"


class Images(Fuzzer):
    """Photos, control images and masks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.capture = small_capture(folder, 3, size=32)
        document = json.loads((self.capture / "transforms.json").read_text())
        self.names = [Path(frame["file_path"]).name for frame in document["frames"]]
        self.images = folder / "images"
        self.images.mkdir()
        for name in NAMES:
            Image.new("RGB", SIZE, (255, 0, 0)).save(self.images / name)

    def write(self, generator: random.Random) -> None:
        """A photo of the capture, and a control image."""
        self.data = make_image(generator)
        (self.capture / "images" / self.names[0]).write_bytes(self.data)
        (self.images / NAMES[0]).write_bytes(self.data)

    def read(self) -> None:
        """All that reads images; refused where all of them refuse it."""
        errors = []
        for reader in (self._photos, self._controls, self._masks, self._drawings):
            try:
                reader()
            except UserError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _photos(self) -> None:
        # What the program says of what it sees is of no interest here.
        with patch.object(capture_files.CONSOLE, "quiet", True):
            capture = read_capture(self.capture)
            photos = capture.photos(range(3), SIZE)
        assert photos.shape == (3, 3, *SIZE) and 0 <= photos.min() <= photos.max() <= 1

    def _controls(self) -> None:
        assert load_control_images(self.images, NAMES, SIZE, SIZE).shape == (2, *SIZE, 3)

    def _masks(self) -> None:
        assert load_masks(self.images, NAMES, SIZE, SIZE).shape == (2, *SIZE)

    def _drawings(self) -> None:
        assert all(each.shape[-1] == 3 for each in load_drawings(self.images, NAMES, SIZE))


class Meshes(Fuzzer):
    """Proxies."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ball = trimesh.creation.icosphere(subdivisions=1)
        scene = trimesh.Scene([ball, trimesh.creation.box()])
        self.files = {
            "ball.ply": ball.export(file_type="ply"),
            "text.ply": trimesh.exchange.ply.export_ply(ball, encoding="ascii"),
            "ball.stl": ball.export(file_type="stl"),
            "text.stl": ball.export(file_type="stl_ascii"),
            "ball.off": ball.export(file_type="off"),
            "ball.obj": ball.export(file_type="obj"),
            "scene.glb": scene.export(file_type="glb"),
            "quantised.gltf": quantised_gltf(ball),
        }
        for name, data in scene.export(file_type="gltf").items():
            (folder / name).write_bytes(data)
        self.files["scene.gltf"] = (folder / "model.gltf").read_bytes()

    def write(self, generator: random.Random) -> None:
        """One of the formats, damaged."""
        name = generator.choice(list(self.files))
        self.path = self.folder / f"damaged{Path(name).suffix}"
        data = self.files[name]
        data = data.encode() if isinstance(data, str) else bytes(data)
        if name.endswith(".gltf") and generator.random() < 0.8:
            document = json.loads(data)
            mutate(document, generator)
            data = json.dumps(document).encode("utf-8", "surrogatepass")
        elif name.endswith(".glb") and generator.random() < 0.6:
            data = _with_mutated_json(data, generator)
        else:
            data = damage(data, generator)
        self.data = data
        self.path.write_bytes(data)

    def read(self) -> None:
        """The mesh, seen by two cameras."""
        mesh = load_mesh(self.path)
        assert np.isfinite(mesh.vertices).all()
        views, _ = cameras(lens=False)
        raycast(views, [mesh])


class Transforms(Fuzzer):
    """transforms.json."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.capture = small_capture(folder, 3, size=32)
        self.document = json.loads((self.capture / "transforms.json").read_text())
        names = [frame["file_path"] for frame in self.document["frames"]]
        self.document |= {"train_filenames": names[:2], "val_filenames": names[2:], "test_filenames": names[2:]}

    def write(self, generator: random.Random) -> None:
        """The document with a few changes."""
        document = copy.deepcopy(self.document)
        while True:
            mutate(document, generator)
            if generator.random() < 0.5:
                break
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        self.data = mutate_text(data, generator) if generator.random() < 0.1 else data
        (self.capture / "transforms.json").write_bytes(self.data)

    def read(self) -> None:
        """The capture with its cameras and photos."""
        with patch.object(capture_files.CONSOLE, "quiet", True):
            capture = read_capture(self.capture)
            views = capture.views()
            capture.photos(range(len(views)), SIZE)
        assert views.c2w.isfinite().all() and views.intrinsics.isfinite().all()


class Models(Fuzzer):
    """Configs of a model set and its ControlNet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.manual_seed(0)
        self.model = save_tiny_set(folder)
        self.configs = {path: path.read_bytes() for path in sorted(self.model.rglob("*.json"))}

    def write(self, generator: random.Random) -> None:
        """One of the configs, damaged; the rest as they were."""
        for path, data in self.configs.items():
            path.write_bytes(data)
        path = generator.choice(list(self.configs))
        document = json.loads(self.configs[path])
        mutate(document, generator)
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        self.data = mutate_text(data, generator) if generator.random() < 0.1 else data
        path.write_bytes(self.data)

    def read(self) -> None:
        """The editor, loaded as a run does."""
        config = EditorConfig(
            model=str(self.model), controlnet=(str(self.model / "controlnet"),), num_steps=4, dtype="float32"
        )
        editor = load_editor(config, "cpu", ["openpose"])
        editor.prompts.encode("a figure")


KINDS: dict[str, type[Fuzzer]] = {"images": Images, "meshes": Meshes, "transforms": Transforms, "models": Models}


def make_image(generator: random.Random) -> bytes:
    """An image of any format and mode, mostly of the photos' size and damaged."""
    kind = generator.choice(list(_KINDS))
    mode = generator.choice(_KINDS[kind])
    size = SIZE
    if generator.random() < 0.1:
        size = (generator.randrange(1, 60), generator.randrange(1, 60))
    pixels = np.random.default_rng(generator.randrange(1 << 30))
    if mode in ("I;16", "I", "F"):
        values = pixels.integers(0, 65536, size[::-1]).astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode])
        if mode == "F" and generator.random() < 0.5:
            values = values / np.float32(65535)
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(pixels.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)).convert(mode)
    settings = {}
    if generator.random() < 0.2 and kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x112] = generator.choice((0, 1, 3, 6, 8, 9, 255))
        settings["exif"] = exif
    if generator.random() < 0.2 and mode == "P" and kind in ("PNG", "GIF"):
        settings["transparency"] = generator.randrange(256)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue() if generator.random() < 0.3 else damage(file.getvalue(), generator)


def damage(data: bytes, generator: random.Random) -> bytes:
    """A file with some bytes cut, changed, repeated or put in; more often in its head, where its sizes are."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 5))):
        at = generator.randrange(max(1, min(len(changed), generator.choice((64, 400, len(changed))))))
        kind = generator.choice(("byte", "byte", "word", "cut", "drop", "repeat", "insert"))
        if kind == "byte" and changed:
            changed[at] = generator.choice((0, 1, 127, 128, 255, generator.randrange(256)))
        elif kind == "word":
            changed[at : at + 4] = struct.pack("<I", generator.choice((0, 1, 1 << 15, 1 << 24, (1 << 31) - 1, 1 << 31)))
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + generator.randrange(1, 40)]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + generator.randrange(1, 200)]
        elif kind == "insert":
            changed[at:at] = generator.randbytes(generator.randrange(1, 9))
    return bytes(changed)


def quantised_gltf(mesh: trimesh.Trimesh) -> bytes:
    """A mesh as exporters that quantise write it, its buffer in the file."""
    scale = 1 / 32767
    points = np.zeros((len(mesh.vertices), 4), "<i2")
    points[:, :3] = np.round(mesh.vertices / scale)
    faces = mesh.faces.astype("<u4").tobytes()
    data = faces + points.tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    views = [
        {"buffer": 0, "byteLength": len(faces)},
        {"buffer": 0, "byteOffset": len(faces), "byteLength": points.nbytes, "byteStride": 8},
    ]
    accessors = [
        {"bufferView": 0, "componentType": 5125, "count": mesh.faces.size, "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5122, "normalized": True, "count": len(points), "type": "VEC3"},
    ]
    document = {
        "asset": {"version": "2.0"},
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [1.0, 1.0, 1.0]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "buffers": [{"uri": uri, "byteLength": len(data)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    return json.dumps(document).encode()


def _with_mutated_json(data: bytes, generator: random.Random) -> bytes:
    """A .glb whose document is changed, its lengths right."""
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    mutate(document, generator)
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def fuzz(
    kind: str, seed: int, going_on: Callable[[int], bool], console: Console, slowest: float = math.inf
) -> Counter[Outcome] | None:
    """Read damaged files; None at the first that fails or takes more than `slowest` seconds of a processor, which is
    printed and kept."""
    counts: Counter[Outcome] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = KINDS[kind](Path(folder))
        number = 0
        while going_on(number):
            try:
                # Of this process alone: the machine may be busy with something else.
                start = time.process_time()
                result = fuzzer.outcome(random.Random(f"{kind} {seed} {number}"))
                seconds = time.process_time() - start
                assert seconds <= slowest, f"it took {seconds:.1f} s"
            except Exception:  # what is looked for: it is printed, and the exit code is 1
                console.print_exception()
                kept = Path(tempfile.mkdtemp()) / f"{kind}-{seed}-{number}"
                kept.write_bytes(getattr(fuzzer, "data", b""))
                console.print(f"{kind} {number} of seed {seed}, kept as {kept}", soft_wrap=True, markup=False)
                return None
            counts[result] += 1
            number += 1
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    console, table = Console(emoji=False), Table("files", "refused", "read", "minutes")
    for kind in options.kinds:
        end = time.monotonic() + 60 * options.minutes
        counts = fuzz(kind, options.seed, lambda _, end=end: time.monotonic() < end, console, SLOWEST)
        if counts is None:
            return 1
        table.add_row(kind, str(counts["refused"]), str(counts["read"]), f"{options.minutes:g}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
