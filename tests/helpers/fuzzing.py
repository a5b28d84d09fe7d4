"""Fuzzing of edit.json and what it names: no document may raise anything but UserError, or take a second.

    python tests/helpers/fuzzing.py --documents 200000 --seed 0     valid documents, mutated at random
    python tests/helpers/fuzzing.py --atheris 300                   guided by coverage, for 300 seconds

The second way needs `pip install atheris` (Linux wheels exist for CPython 3.11 to 3.13). The tests draw their documents
with hypothesis and hand them to the same `fuzz_one`.
"""

import argparse
import copy
import json
import math
import multiprocessing
import random
import sys
import tempfile
import time
import types
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import trimesh
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common import wording
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls import influence, region
from qnerf_nerfstudio.controls.draw import control_images, differing_pixels
from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.edit import reading as loading
from qnerf_nerfstudio.edit import schema as edit
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.toy.capture import orbit_camera

Outcome = Literal["refused", "accepted", "projected"]
SIZE = (16, 24)
NAMES = ["one.png", "two.png"]
SLOWEST = 1.0
"""Seconds that no document may take."""
LENS = (0.05, -0.02, 0.003, 0.0, 0.004, -0.003)

_JOINTS = {"neck": [0, 0, 1.4], "nose": [0, 0.1, 1.6], "r_shoulder": [0.2, 0, 1.4], "r_elbow": [0.3, 0, 1.1]}
_SKELETON = {"type": "skeleton", "source": _JOINTS, "target": {**_JOINTS, "r_elbow": [0.5, 0, 1.5]}}
_TAIL = {"root": [0, 0, 0.5], "mid": [0.3, 0, 0.6], "tip": [0.5, 0.1, 0.8]}
_OWN_BONES = {"type": "skeleton", "source": _TAIL, "target": _TAIL, "bones": [["root", "mid"], ["mid", "tip"]]}
_BOX = {
    "type": "box",
    "source": {"position": [0, 0, 1], "size": [0.8, 0.5, 1.0]},
    "target": {"position": [0.2, 0, 1.1], "rotation": [0, 20, 45], "size": [0.8, 0.5, 1.2]},
}
_MESH = {
    "type": "mesh",
    "source": {"mesh": "ball.ply", "position": [0, 0, 1], "scale": 0.5},
    "target": {"mesh": "ball.obj", "position": [0.1, 0, 1.2], "rotation": [10, 0, 0], "scale": [0.4, 0.5, 0.6]},
}
_IMAGES = {"type": "images", "source": "poses/source", "target": "poses/target", "kind": "depth"}
_SPHERE = {"type": "sphere", "position": [0.1, 0, 1.2], "radius": 0.6}
_REGION = {"type": "box", "position": [0.1, 0, 1.2], "rotation": [0, 0, 30], "size": [1, 1, 1]}
_PROMPTS = {"prompt": "a person with raised arms", "source_prompt": "a person"}
VALID: list[dict[str, Any]] = [
    {**_PROMPTS, "control": _SKELETON},
    {**_PROMPTS, "control": _SKELETON, "region": _SPHERE, "negative_prompt": "blurry"},
    {**_PROMPTS, "control": _OWN_BONES, "region": {"type": "everywhere"}, "masks": "masks"},
    {**_PROMPTS, "control": _BOX, "region": _REGION},
    {**_PROMPTS, "control": {**_BOX, "draw": "normal"}, "region": {"type": "control"}},
    {**_PROMPTS, "control": _MESH},
    {**_PROMPTS, "control": {**_MESH, "draw": "normal"}, "masks": "masks", "region": _SPHERE},
    {**_PROMPTS, "control": _IMAGES, "masks": "masks"},
    {**_PROMPTS, "control": {"type": "parts", "parts": [_SKELETON, _OWN_BONES]}},
    {**_PROMPTS, "control": {"type": "parts", "parts": [_BOX, _MESH, _BOX]}, "region": _REGION},
]
"""One document of every kind of control and region; all can be projected in a folder filled by `prepare`."""

_STRINGS = [
    *("", " ", "x", "type", "skeleton", "mesh", "box", "parts", "images", "depth", "normal", "neck", "nose", "[key]"),
    *(
        "ball.ply",
        "ball.off",
        "broken.glb",
        "points.ply",
        "masks",
        "poses/source",
        "poses/broken",
        "poses",
        "edit.json",
    ),
    *(
        "..",
        "../..",
        "/etc/passwd",
        "/",
        "link",
        "loop",
        "masks/../../x",
        "C:\\x",
        "~",
        "http://localhost/x.glb",
        "a\0b",
    ),
    *("x" * 150, "x" * 300 + ".ply", "y/" * 2000, "z" * 3000, "é\u202e漢字🦀", "\ud800", "\x1b[2J", "[bold]", "a\nb"),
]
_NUMBERS = [0, -0.0, 1, -1, 1e-7, 1e-6, 1e-3, 1e3, 1e6, 1.1e6, -1e6, 1e9, 1e30, 1e39, 1e308, 1e-308, 10**30, 10**400]
_VALUES: list[Any] = [
    *_NUMBERS,
    *(math.nan, math.inf, -math.inf, None, True, False, [], {}, [[]], [0, 0, 0], [1, 1, 1], {"type": "box"}),
    *({"type": ["box"]}, {"type": {}}, {"type": None}, {"": 0}, [None] * 50, {str(i): i for i in range(600)}),
]


def prepare(folder: Path) -> None:
    """Write what the documents name into a folder: meshes, control images and masks, some of them broken."""
    ball = trimesh.creation.icosphere(subdivisions=1)
    for name in ("ball.ply", "ball.obj", "ball.off"):
        ball.export(folder / name)
    (folder / "broken.glb").write_bytes(ball.export(file_type="glb")[:300])
    trimesh.PointCloud(ball.vertices).export(folder / "points.ply")
    (folder / "link").symlink_to("/")
    (folder / "loop").symlink_to("loop")
    for index, name in enumerate(("poses/source", "poses/target", "masks", "poses/broken")):
        (folder / name).mkdir(parents=True)
        for each in NAMES:
            Image.new("RGB", (24, 16), (255, 90 * index, 0)).save(folder / name / each)
            if name == "poses/target":
                Image.new("RGB", (30, 20), (0, 255, 0)).save(folder / name / each)
            if name == "poses/broken":
                (folder / name / each).write_bytes((folder / name / each).read_bytes()[:50])


@lru_cache(maxsize=2)
def cameras(lens: bool) -> tuple[Views, torch.Tensor]:
    """Two small cameras, one of them with a lens that distorts if wanted, and the map from the dataset to the scene."""
    c2w = torch.stack([orbit_camera(70.0 * i, 15.0, 4.0, 1.0) for i in range(2)])
    c2w[:, :, 3] *= 0.4
    intrinsics = torch.tensor([[26.0, 25.0, 12.5, 8.2]]).expand(2, 4)
    views = Views(c2w, intrinsics, torch.tensor([(0.0,) * 6, LENS if lens else (0.0,) * 6]), SIZE)
    return views, placement_matrix((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.4, 0.4, 0.4))[:3]


def outcome(text: str | bytes, folder: Path) -> Outcome:
    """What becomes of a document: it is refused, accepted but not what the capture can show, or projected.

    Args:
        text: Contents of edit.json.
        folder: A folder filled by `prepare`.

    Raises:
        Exception: Anything but UserError is what fuzzing looks for; AssertionError where a result is out of range.
    """
    path = folder / "edit.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        stated = load_edit(path)
    except UserError as error:
        assert str(error).isprintable(), f"the message is not one plain line: {error!r}"
        return "refused"
    # Through a lens rays take most of the time.
    views, to_scene = cameras(lens=len(text) % 4 == 0)
    try:
        source, target = control_images(stated, folder, views, NAMES, to_scene, SIZE)
        for images in (source, target):
            assert images.shape == (2, 3, *SIZE)
            assert 0 <= float(images.min()) <= float(images.max()) <= 1, "control images are out of range"
        box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
        # Coarse cells, so that a document takes milliseconds; what the program says of them is of no interest here.
        with patch.object(region, "RESOLUTION", 6), patch.object(influence.CONSOLE, "quiet", True):
            found = influence.find_region_of_influence(
                stated, folder, views, NAMES, differing_pixels(source, target), len(NAMES), to_scene, box
            )
        assert found.masks is None or found.masks.shape == (2, *SIZE)
        assert found.voxels is None or found.voxels.box.isfinite().all()
    except UserError as error:
        assert str(error).isprintable(), f"the message is not one plain line: {error!r}"
        return "accepted"
    return "projected"


def fuzz_one(text: str | bytes, folder: Path) -> bool:
    """Load a document, and project it if it is accepted; see `outcome`. True where it is accepted."""
    return outcome(text, folder) != "refused"


def make_document(generator: random.Random) -> bytes:
    """A valid document with none to a few mutations, of its values or of its text."""
    document = copy.deepcopy(generator.choice(VALID))
    while generator.random() < 0.75:
        mutate(document, generator)
    text = json.dumps(document, ensure_ascii=generator.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_text(text, generator) if generator.random() < 0.15 else text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a document."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, inner in items for place in [(value, key), *_places(inner)]]


def mutate(document: dict[str, Any], generator: random.Random) -> None:
    """Change one place of a document."""
    places = _places(document)
    if not places:
        return
    container, key = generator.choice(places)
    value = container[key]
    number = isinstance(value, int | float) and abs(value) < 1e300
    kind = generator.choices(("number", "value", "key", "drop", "swap", "repeat"), (8, 2, 1, 1, 1, 1))[0]
    if kind == "number" and number:
        sign, power = generator.choice((-1, 1)), generator.uniform(-6, 6)
        container[key] = generator.choice((value + generator.gauss(0, 0.3), sign * value, sign * 10**power))
    elif kind == "value":
        container[key] = copy.deepcopy(generator.choice(_STRINGS if isinstance(value, str) else _VALUES + _STRINGS))
    elif kind == "key" and isinstance(container, dict):
        at = generator.randrange(len(key) + 1)
        new = generator.choice((key[:at] + key[at + 1 :], key[:at] + "x" + key[at:], generator.choice(_STRINGS)))
        container[new] = value if generator.random() < 0.5 else container.pop(key)
    elif kind == "drop":
        del container[key]
    elif kind == "swap":
        other = generator.choice(_places(generator.choice((document, *VALID))))
        container[key] = copy.deepcopy(other[0][other[1]])
    elif kind == "repeat" and isinstance(container, list):
        container.extend(copy.deepcopy(container[: generator.choice((1, 1, 100))]))


def mutate_text(text: bytes, generator: random.Random) -> bytes:
    """Change the text of a document: cut it, flip or repeat bytes, or nest it."""
    first, last = sorted(generator.randrange(len(text) + 1) for _ in range(2))
    depth = generator.choice((1, 100, 990, 5000, 200_000))
    token = generator.choice((b"NaN", b"-Infinity", b"1e400", b"9" * 5000, b"\\ud800", b"\0", b"\xff", b'"prompt":1,'))
    return generator.choice(
        (
            text[:first],
            text[:first] + text[last:],
            text[:last] + text[first:],
            text[:first] + token + text[first:],
            text[:first] + generator.randbytes(4) + text[first + 4 :],
            text.replace(b"0", token),
            b"\xef\xbb\xbf" + text,
            text.replace(b"0", b"[" * depth + b"]" * depth, 1),
            b'{"control":' * depth + b"0" + b"}" * depth,
        )
    )


def fuzz_mutations(documents: int, seed: int, folder: Path) -> bool:
    """Run mutated documents and print a table; False at the first that fails or is slow, which is printed."""
    console, generator = Console(), random.Random(seed)
    counts: dict[Outcome, int] = {"refused": 0, "accepted": 0, "projected": 0}
    slowest = 0.0
    for index in track(range(documents), "documents", console=console):
        text = make_document(generator)
        try:
            seconds = math.inf
            # A machine that is busy with something else gets a second try.
            for _ in range(2):
                start = time.perf_counter()
                result = outcome(text, folder)
                seconds = min(seconds, time.perf_counter() - start)
                if seconds < SLOWEST:
                    break
            assert seconds < SLOWEST, f"it took {seconds:.1f} s"
        except Exception:  # what is looked for: it is printed, and the exit code is 1
            console.print_exception()
            console.print(f"document {index} of seed {seed}:", text, markup=False, soft_wrap=True)
            return False
        counts[result] += 1
        slowest = max(slowest, seconds)
    table = Table("documents", "refused", "accepted", "projected", "slowest")
    accepted = counts["accepted"] + counts["projected"]
    table.add_row(*map(str, (documents, counts["refused"], accepted, counts["projected"])), f"{1000 * slowest:.0f} ms")
    console.print(table)
    return True


def fuzz_coverage(seconds: int, folder: Path) -> None:
    """Let atheris search for documents that reach new code; it ends the program, and prints what it finds."""
    import atheris  # noqa: PLC0415  # an optional package  # pyright: ignore[reportMissingModuleSource]

    for module in (loading, edit, wording):
        for function in vars(module).values():
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, document in enumerate(VALID):
        (corpus / str(index)).write_text(json.dumps(document))

    def one(data: bytes) -> None:
        fuzz_one(data, folder)

    arguments = (f"-max_total_time={seconds}", f"-timeout={math.ceil(SLOWEST)}", "-max_len=4000", str(corpus))
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000, help="number of mutated documents")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--atheris", type=int, metavar="SECONDS", help="search with atheris instead")
    options = parser.parse_args()
    # Writing a file into memory takes a hundredth of the time that some disks take.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        prepare(Path(name))
        if options.atheris is not None:
            # atheris ends its process without leaving this block.
            process = multiprocessing.get_context("fork").Process(
                target=fuzz_coverage, args=(options.atheris, Path(name))
            )
            process.start()
            process.join()
            return 1 if process.exitcode else 0
        return 0 if fuzz_mutations(options.documents, options.seed, Path(name)) else 1


if __name__ == "__main__":
    sys.exit(main())
