"""Mistakes of users: each ends ns-train with one sentence of culprit and remedy, before anything is computed."""

import copy
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from nerfstudio.scripts import train as train_script
from PIL import Image
from safetensors.torch import load_file, save_file

from qnerf_nerfstudio.diffusion.config import BUNDLED_FOLDER
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture

VIEWS, SIZE = 4, 64


@dataclass
class Case:
    """A capture of its own, and the settings of an edit of it."""

    data: Path
    config: Any

    @property
    def photos(self) -> list[Path]:
        return sorted((self.data / "images").iterdir())

    def find(self, file: str) -> Path:
        """A file of the capture, or one of the editor where its name starts with "model/"."""
        return self.give_model().parent / file if file.startswith("model/") else self.data / file

    def give_model(self) -> Path:
        """A copy of the bundled editor in the place of it."""
        folder = self.data.parent / "model"
        if not folder.exists():
            shutil.copytree(BUNDLED_FOLDER, folder)
            editor = self.config.pipeline.editor
            editor.model, editor.controlnet = str(folder), str(folder / "controlnet")
        return folder


Make = Callable[[Case], object]
DROP = object()


def put(file: str, key: str, value: Any) -> Make:
    """Set a field of a JSON file, or drop it; `key` is a path of keys and indices."""

    def make(case: Case) -> None:
        path = case.find(file)
        document = json.loads(path.read_text())
        *way, last = [int(each) if each.isdigit() else each for each in key.split(".")]
        holder = reduce(lambda inner, each: inner[each], way, document)
        if value is DROP:
            del holder[last]
        else:
            holder[last] = value
        path.write_text(json.dumps(document))

    return make


def edit(key: str, value: Any) -> Make:
    return put("edit.json", key, value)


def transforms(key: str, value: Any) -> Make:
    return put("transforms.json", key, value)


def write(file: str, content: str | bytes) -> Make:
    """Write a file of the capture or of the model."""

    def make(case: Case) -> None:
        path = case.find(file)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def knob(key: str, value: Any) -> Make:
    """Set an option of ns-train."""

    def make(case: Case) -> None:
        *way, last = key.split(".")
        setattr(reduce(getattr, way, case.config), last, value)

    return make


def after(*makes: Make) -> Make:
    """Several things at once."""

    def make(case: Case) -> None:
        for each in makes:
            each(case)

    return make


def with_edit(name: str) -> Make:
    """Use another of the capture's statements of the edit."""
    return lambda case: shutil.copy(case.data / name, case.data / "edit.json")


def photo(change: Callable[[Path], object], index: int = 1) -> Make:
    return lambda case: change(case.photos[index])


def save(size: tuple[int, int], mode: str = "RGB") -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path) -> None:
    """A PNG that says of itself that it has 20000 x 20000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def to_jpegs(case: Case) -> None:
    """The photos as JPEGs, the second of them cut off."""
    for path in case.photos:
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    text = (case.data / "transforms.json").read_text()
    (case.data / "transforms.json").write_text(text.replace(".png", ".jpg"))
    truncate(case.photos[1])


def control_images(change: Callable[[Path], object] = lambda path: None, kind: str = "openpose") -> Make:
    """An edit by ready-made control images, and something done to their target folder."""

    def make(case: Case) -> None:
        for name in ("source", "target"):
            shutil.copytree(case.data / "images", case.data / name)
        edit("control", {"type": "images", "source": "source", "target": "target", "kind": kind})(case)
        change(case.data / "target")

    return make


def mesh(content: bytes | str) -> Make:
    return after(with_edit("edit-mesh.json"), write("proxies/target.ply", content))


def masks(change: Callable[[Path], object]) -> Make:
    """White masks, and something done to their folder."""

    def make(case: Case) -> None:
        (case.data / "masks").mkdir()
        for path in case.photos:
            Image.new("L", (SIZE, SIZE), 255).save(case.data / "masks" / path.name)
        edit("masks", "masks")(case)
        change(case.data / "masks")

    return make


def blacken(folder: Path) -> None:
    for path in folder.iterdir():
        Image.new("L", (SIZE, SIZE)).save(path)


def outside(file: str, link: bool = False) -> Make:
    """A file outside of the capture, and a link to it in the place of the capture's own."""

    def make(case: Case) -> None:
        beyond = case.data.parent / Path(file).name
        shutil.move(case.data / file, beyond)
        if link:
            (case.data / file).symlink_to(beyond)

    return make


def rename(old: str, new: str) -> Make:
    def make(case: Case) -> None:
        root = case.give_model()
        (root / old).rename(root / new)

    return make


def remove(name: str) -> Make:
    def make(case: Case) -> None:
        path = case.give_model() / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)

    return make


def drop_tensor(file: str) -> Make:
    def make(case: Case) -> None:
        path = case.give_model() / file
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})

    return make


def single_file(suffix: str) -> Make:
    def make(case: Case) -> None:
        path = case.data.parent / f"sd15{suffix}"
        path.write_bytes(b"\x80\x02}q\x00.")
        case.config.pipeline.editor.model = str(path)

    return make


def twice_the_same_stem(case: Case) -> None:
    (case.data / "more").mkdir()
    shutil.copy(case.photos[0], case.data / "more" / case.photos[0].name)
    transforms("frames.1.file_path", f"more/{case.photos[0].name}")(case)


def matrix(*rows: list[float]) -> Make:
    return transforms("frames.1.transform_matrix", list(rows))


def all_in_one_place(case: Case) -> None:
    for index in range(VIEWS):
        for row in range(3):
            transforms(f"frames.{index}.transform_matrix.{row}.3", 1.0)(case)


def large_photos(case: Case) -> None:
    """Photos beyond nerfstudio's automatic resolution, of whose smaller copies one is missing."""
    (case.data / "images_2").mkdir()
    for path in case.photos:
        shutil.copy(path, case.data / "images_2" / path.name)
        Image.new("RGB", (1700, 64)).save(path)
    (case.data / "images_2" / case.photos[2].name).unlink()
    case.photos[2].write_bytes(b"")


E1, E2, E3 = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]
LAST = [0.0, 0.0, 0.0, 1.0]
BOX = {"type": "box", "source": {"size": [1, 1, 1]}, "target": {"size": [1, 1, 1]}}
NAN = float("nan")

EDIT: dict[str, tuple[Make, tuple[str, ...]]] = {
    "file-missing": (knob("pipeline.edit", Path("nowhere.json")), ("nowhere.json does not exist", "--pipeline.edit")),
    "empty": (write("edit.json", ""), ("edit.json is empty", "source_prompt")),
    "no-json": (write("edit.json", "{prompt: x}"), ("edit.json is not valid JSON", "line 1")),
    "no-text": (write("edit.json", b"\xff\xfe\x00"), ("edit.json is not valid JSON",)),
    "no-object": (write("edit.json", "[]"), ("edit.json", "expected an object")),
    "too-deep": (write("edit.json", "[" * 100_000), ("edit.json is nested too deep",)),
    "duplicate-key": (
        write("edit.json", '{"prompt": "a", "prompt": "b"}'),
        ("edit.json", "prompt", "stated twice"),
    ),
    "no-prompt": (edit("prompt", DROP), ("edit.json: prompt: is missing",)),
    "empty-prompt": (edit("prompt", "  "), ("edit.json: prompt: is empty", "describe the edited scene")),
    "prompt-a-number": (edit("prompt", 3), ("edit.json: prompt", "string")),
    "no-source-prompt": (edit("source_prompt", DROP), ("edit.json: source_prompt: is missing",)),
    "misspelt-key": (edit("promt", "x"), ("edit.json: promt: unknown key", "did you mean 'prompt'")),
    "no-control": (edit("control", DROP), ("edit.json: control: is missing",)),
    "control-without-type": (edit("control.type", DROP), ("edit.json: control", "skeleton")),
    "control-of-unknown-type": (edit("control.type", "skelton"), ("edit.json: control", "skeleton")),
    "joint-missing": (edit("control.target.r_elbow", DROP), ("edit.json", "'r_elbow' is missing in target")),
    "joint-in-the-plane": (edit("control.target.neck", [0, 1]), ("edit.json: control.target.neck",)),
    "joint-not-finite": (edit("control.target.neck", [0, NAN, 1]), ("edit.json: control.target.neck", "finite")),
    "joint-far-away": (edit("control.target.neck", [0, 2e6, 1]), ("edit.json: control.target.neck", "1000000")),
    "unknown-bone": (edit("control.bones", [["neck", "tail"]]), ("edit.json: control", "unknown joint 'tail'")),
    "bone-without-length": (edit("control.bones", [["neck", "neck"]]), ("edit.json: control", "has no length")),
    "no-limb": (
        after(edit("control.source", {"a": [0, 0, 0]}), edit("control.target", {"a": [0, 0, 1]})),
        ("edit.json: control", 'list "bones"'),
    ),
    "box-without-size": (
        after(edit("control", BOX), edit("control.target.size", [1, 0, 1])),
        ("edit.json: control.target.size", "greater than"),
    ),
    "parts-of-two-kinds": (
        lambda case: edit(
            "control",
            {"type": "parts", "parts": [BOX, json.loads((case.data / "edit.json").read_text())["control"]]},
        )(case),
        ("edit.json: control", "part 1 is drawn as openpose", "draw them alike"),
    ),
    "region-without-radius": (
        edit("region", {"type": "sphere", "position": [0, 0, 1], "radius": -1}),
        ("edit.json: region.radius", "greater than"),
    ),
    "mesh-outside": (
        after(with_edit("edit-mesh.json"), edit("control.target.mesh", "../target.ply")),
        ("edit.json: control.target.mesh", "../target.ply", "--pipeline.outside-paths True"),
    ),
    "masks-outside": (edit("masks", "/tmp"), ("edit.json: masks", "/tmp", "--pipeline.outside-paths True")),
    "control-images-outside": (
        after(control_images(), edit("control.source", "../source")),
        ("edit.json: control.source", "../source", "--pipeline.outside-paths True"),
    ),
}

CONTROLS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "no-folder": (control_images(shutil.rmtree), ("target is not a folder", "edit.json names it")),
    "image-missing": (
        control_images(lambda folder: (folder / "frame_00002.png").unlink()),
        ("target has 3 images for 4 photos", "none for frame_00002.png", "one image per photo"),
    ),
    "image-too-many": (
        control_images(lambda folder: shutil.copy(folder / "frame_00002.png", folder / "other.png")),
        ("target has 5 images for 4 photos",),
    ),
    "image-broken": (
        control_images(lambda folder: truncate(folder / "frame_00002.png")),
        ("target/frame_00002.png cannot be read as an image", "export it again"),
    ),
    "image-bomb": (
        control_images(lambda folder: bomb(folder / "frame_00002.png")),
        ("target/frame_00002.png has more than 100 megapixels", "scale it down"),
    ),
    "kind-not-read": (control_images(kind="normal"), ("reads openpose and depth", "drawn as normal", "qnerf-edit")),
    "mesh-missing": (
        after(with_edit("edit-mesh.json"), lambda case: (case.data / "proxies/target.ply").unlink()),
        ("target.ply does not exist", "edit.json"),
    ),
    "mesh-empty": (mesh(""), ("target.ply", "export it again")),
    "mesh-broken": (mesh("ply\nformat ascii 1.0\nelement vertex 9\n"), ("target.ply cannot be read",)),
    "mesh-of-points": (
        mesh(trimesh.PointCloud(np.eye(3)).export(file_type="ply")),
        ("target.ply has no triangles", "export a surface"),
    ),
    "mesh-of-unknown-format": (
        after(with_edit("edit-mesh.json"), write("x.blend", "BLENDER"), edit("control.target.mesh", "x.blend")),
        ("x.blend", "ply, obj"),
    ),
    "masks-missing": (masks(shutil.rmtree), ("masks is not a folder", "edit.json names it")),
    "mask-broken": (
        masks(lambda folder: truncate(folder / "frame_00003.png")),
        ("masks/frame_00003.png cannot be read as an image",),
    ),
    "masks-black": (masks(blacken), ("masks leave no pixel", "white where the edit may be")),
    "region-elsewhere": (
        edit("region", {"type": "sphere", "position": [0, 0, 90], "radius": 0.1}),
        ("edit.json: region", "move or grow it"),
    ),
}

CAPTURE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "folder-missing": (knob("data", Path("/nowhere/scene")), ("/nowhere/scene does not exist", "ns-process-data")),
    "file-missing": (
        lambda case: (case.data / "transforms.json").unlink(),
        ("transforms.json does not exist", "ns-process-data"),
    ),
    "empty": (write("transforms.json", ""), ("transforms.json is not valid JSON", "ns-process-data")),
    "no-json": (write("transforms.json", "{'w': 64}"), ("transforms.json is not valid JSON",)),
    "no-object": (write("transforms.json", "[]"), ("transforms.json holds no JSON object",)),
    "too-deep": (write("transforms.json", "[" * 100_000), ("transforms.json is nested too deep",)),
    "nan": (transforms("fl_x", NAN), ("transforms.json is not valid JSON", "NaN is no number")),
    "no-frames": (transforms("frames", DROP), ("transforms.json: frames", "expected a list of objects")),
    "frames-no-list": (transforms("frames", {"a": 1}), ("transforms.json: frames", "expected a list of objects")),
    "one-frame": (
        lambda case: transforms("frames", json.loads((case.data / "transforms.json").read_text())["frames"][:1])(case),
        ("transforms.json: frames: has 1", "at least 2 photos"),
    ),
    "frame-without-path": (transforms("frames.1.file_path", DROP), ("frames[1].file_path: expected the photo's path",)),
    "frame-without-pose": (
        transforms("frames.1.transform_matrix", DROP),
        ("frames[1].transform_matrix", "is missing", "4 rows of 4 finite numbers"),
    ),
    "pose-of-three-rows": (matrix(E1, E2, E3), ("frames[1].transform_matrix", "4 rows of 4 finite numbers")),
    "pose-of-words": (transforms("frames.1.transform_matrix.0.0", "1.0"), ("frames[1].transform_matrix", "finite")),
    "pose-too-large": (transforms("frames.1.transform_matrix.0.3", 1e300), ("frames[1].transform_matrix", "finite")),
    "pose-transposed": (
        matrix(E1, E2, E3, [1.0, 2.0, 3.0, 1.0]),
        ("frames[1].transform_matrix", "the last row", "expected 0, 0, 0, 1"),
    ),
    "pose-singular": (matrix(E1, E1, E3, LAST), ("frames[1].transform_matrix", "no rotation", "export the cameras")),
    "pose-mirrored": (matrix(E2, E1, E3, LAST), ("frames[1].transform_matrix", "mirrored")),
    "cameras-in-one-place": (all_in_one_place, ("transform_matrix", "stand in one place", "several viewpoints")),
    "no-focal-length": (transforms("fl_x", DROP), ("frames[0].fl_x is missing", "once for all frames")),
    "camera-angle": (
        after(transforms("fl_x", DROP), transforms("camera_angle_x", 0.6)),
        ("frames[0].fl_x is missing", "w / (2 tan(camera_angle_x / 2))"),
    ),
    "no-height": (transforms("h", DROP), ("frames[0].h is missing",)),
    "focal-length-zero": (transforms("fl_y", 0), ("transforms.json: fl_y is 0; expected a positive number",)),
    "width-negative": (transforms("w", -64), ("transforms.json: w is -64; expected a positive number",)),
    "centre-of-words": (transforms("cx", "32"), ('transforms.json: cx is "32"; expected a number',)),
    "distortion-of-words": (transforms("k1", None), ("transforms.json: k1 is null; expected a number",)),
    "distortion-too-short": (transforms("distortion_params", [0.0]), ("distortion_params: expected 6 numbers",)),
    "size-of-other-photos": (
        transforms("w", 128),
        ("transforms.json: w is 128, but the photos are 64x64", "fl_x, fl_y, cx and cy"),
    ),
    "fisheye": (transforms("camera_model", "OPENCV_FISHEYE"), ('camera_model is "OPENCV_FISHEYE"', "undistort")),
    "unknown-camera": (transforms("camera_model", ["?"]), ("camera_model", "PINHOLE")),
    "mixed-sizes": (photo(save((32, 64))), ("different sizes", "frame_00002.png 32x64", "rescale them")),
    "mixed-channels": (photo(save((64, 64), "RGBA")), ("frame_00002.png", "alpha channel", "save all as RGB")),
    "sixteen-bits": (photo(save((64, 64), "I;16")), ("frame_00002.png", "I;16", "expected L, RGB, RGBA")),
    "photo-missing": (
        photo(lambda path: path.unlink()),
        ("1 of 4 photos are missing", "frame_00002.png", "take their frames out"),
    ),
    "photos-missing": (lambda case: shutil.rmtree(case.data / "images"), ("4 of 4 photos are missing",)),
    "photo-truncated": (photo(truncate), ("frame_00002.png cannot be read as an image", "export it again")),
    "jpeg-truncated": (to_jpegs, ("frame_00002.jpg cannot be read as an image", "Truncated")),
    "photo-no-image": (
        photo(lambda path: path.write_text("<html>")),
        ("frame_00002.png cannot be read as an image", "PNG or JPEG"),
    ),
    "photo-bomb": (photo(bomb), ("frame_00002.png has more than 100 megapixels", "save it smaller")),
    "first-photo-bomb": (photo(bomb, 0), ("frame_00001.png has more than 100 megapixels",)),
    "same-stem": (twice_the_same_stem, ("frames[1].file_path", "both called frame_00001", "its own name")),
    "photo-above": (
        after(outside("images/frame_00002.png"), transforms("frames.1.file_path", "../frame_00002.png")),
        ("file_path: ../frame_00002.png leads out", "--pipeline.outside-paths True"),
    ),
    "photo-elsewhere": (
        transforms("frames.1.file_path", "/etc/frame.png"),
        ("file_path: /etc/frame.png leads out", "--pipeline.outside-paths True"),
    ),
    "photo-linked": (
        outside("images/frame_00002.png", link=True),
        ("file_path: images/frame_00002.png leads out", "--pipeline.outside-paths True"),
    ),
    "points-elsewhere": (transforms("ply_file_path", "../x.ply"), ("ply_file_path: ../x.ply leads out",)),
    "small-photo-missing": (large_photos, ("1 of 4 photos are missing", "images_2/frame_00003.png")),
    "small-photos-linked": (
        after(large_photos, outside("images_2", link=True)),
        ("file_path: images_2/frame_00001.png leads out", "--pipeline.outside-paths True"),
    ),
    "mask-of-another-size": (
        lambda case: [
            transforms(f"frames.{index}.mask_path", "mask.png")(case) or save((32, 32), "L")(case.data / "mask.png")
            for index in range(VIEWS)
        ],
        ("mask_path", "mask.png is 32x32", "the photos are 64x64"),
    ),
    "downscale-0": (
        knob("pipeline.datamanager.dataparser.downscale_factor", 0),
        ("--pipeline.datamanager.dataparser.downscale-factor is 0; expected at least 1",),
    ),
    "masks-of-some": (
        transforms("frames.1.mask_path", "images/frame_00002.png"),
        ("mask_path is in 1 of 4 frames", "in all of them, or in none"),
    ),
    "split-of-unknown": (
        after(transforms("train_filenames", ["a.png"]), transforms("val_filenames", [])),
        ("train_filenames: a.png is the file_path of no frame",),
    ),
    "applied-transform": (transforms("applied_transform", [[1, 0], [0, 1]]), ("applied_transform: expected 3 rows",)),
    "orientation": (transforms("orientation_override", "left"), ("orientation_override", "pca, up, vertical, none")),
}

KNOBS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "tau-0": (knob("pipeline.tau", 0), ("--pipeline.tau is 0; expected 1 to num_steps (6)",)),
    "tau-beyond": (knob("pipeline.tau", 7), ("--pipeline.tau is 7; expected 1 to num_steps (6)",)),
    "chunk-0": (knob("pipeline.chunk", 0), ("--pipeline.chunk is 0; expected at least 1",)),
    "stop": (knob("pipeline.stop", 1.5), ("--pipeline.stop is 1.5; expected 0 to 1",)),
    "feather": (knob("pipeline.feather", -1.0), ("--pipeline.feather is -1.0; expected",)),
    "source-iterations": (knob("pipeline.source_iterations", -1), ("source_iterations is -1; expected at least 0",)),
    "fit-iterations": (knob("pipeline.fit_iterations", 0), ("fit_iterations is 0; expected at least 1",)),
    "final-iterations": (knob("pipeline.final_iterations", 0), ("final_iterations is 0; expected at least 1",)),
    "num-steps": (knob("pipeline.editor.num_steps", 0), ("editor.num_steps is 0; expected 1 to 1000",)),
    "resolution": (knob("pipeline.editor.resolution", 10), ("editor.resolution is 10; expected at least 64",)),
    "guidance-scale": (knob("pipeline.editor.guidance_scale", 0.5), ("editor.guidance_scale is 0.5; expected",)),
    "guidance-strength": (knob("pipeline.editor.guidance_strength", -0.1), ("editor.guidance_strength is -0.1",)),
    "guidance-nan": (knob("pipeline.editor.guidance_strength", NAN), ("editor.guidance_strength is nan",)),
    "render-weight": (knob("pipeline.editor.render_weight", 2.0), ("editor.render_weight is 2.0; expected 0 to 1",)),
    "injection-start": (knob("pipeline.editor.injection_start", -1.0), ("injection_start is -1.0; expected 0 to 1",)),
    "query-width": (
        knob("pipeline.model.query_width", 2),
        ("--pipeline.model.query-width is 2", "6 query layers", "at least"),
    ),
    "length": (
        knob("max_num_iterations", 7),
        ("--max-num-iterations is 7", "--pipeline.final-iterations"),
    ),
    "prompt": (knob("prompt", " "), ("--prompt is empty", "leave it out")),
}

MODELS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "unreachable": (
        knob("pipeline.editor.model", "nobody/nothing"),
        ("--pipeline.editor.model: cannot load unet", "neither a local folder nor reached on the hub", "check the id"),
    ),
    "controlnet-unreachable": (
        knob("pipeline.editor.controlnet", "nobody/nothing"),
        ("--pipeline.editor.controlnet: cannot load", "nobody/nothing", "check the id"),
    ),
    "parts-missing": (
        after(remove("unet"), remove("tokenizer")),
        ("model has no unet, tokenizer", "hf download"),
    ),
    "single-file": (single_file(".safetensors"), ("sd15.safetensors is a single file", "from_single_file")),
    "single-checkpoint": (single_file(".ckpt"), ("sd15.ckpt is a single file", "where you trust the file")),
    "config-broken": (write("model/unet/config.json", "{"), ("cannot load unet/config.json", "downloaded")),
    "inpainting": (
        put("model/unet/config.json", "in_channels", 9),
        ("its unet takes 9 channels as inpainting models have, its vae gives 8", "text-to-image"),
    ),
    "xl-index": (
        put("model/model_index.json", "text_encoder_2", ["transformers", "CLIPTextModelWithProjection"]),
        ("model_index.json", "text_encoder_2", "expected Stable Diffusion 1.x or 2.x"),
    ),
    "xl-unet": (
        put("model/unet/config.json", "addition_embed_type", "text_time"),
        ("Stable Diffusion XL", "expected Stable Diffusion 1.x or 2.x"),
    ),
    "vae-of-another-class": (
        put("model/vae/config.json", "_class_name", "AutoencoderTiny"),
        ("its vae is a AutoencoderTiny, not a AutoencoderKL",),
    ),
    "text-width": (
        put("model/text_encoder/config.json", "hidden_size", 64),
        ("its text_encoder is 64 wide, its unet reads text of width 96", "download the model again"),
    ),
    "controlnet-width": (
        put("model/controlnet/config.json", "cross_attention_dim", 1024),
        ("--pipeline.editor.controlnet", "reads text of width 1024", "96", "choose a ControlNet made for"),
    ),
    "controlnet-blocks": (
        put("model/controlnet/config.json", "block_out_channels", [8, 8, 8]),
        ("--pipeline.editor.controlnet", "block_out_channels", "choose a ControlNet made for"),
    ),
    "controlnet-xl": (
        put("model/controlnet/config.json", "addition_embed_type", "text_time"),
        ("--pipeline.editor.controlnet", "Stable Diffusion XL", "choose a ControlNet made for"),
    ),
    "weights-truncated": (
        lambda case: truncate(case.give_model() / "unet/diffusion_pytorch_model.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors is truncated or corrupt", "download it again"),
    ),
    "weights-pickled": (
        rename("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
        ("model/vae has pickled weights only", "diffusion_pytorch_model.bin", "AutoencoderKL", "save_pretrained"),
    ),
    "weights-missing": (remove("text_encoder/model.safetensors"), ("text_encoder has no weights", "*.safetensors")),
    "weights-incomplete": (
        drop_tensor("vae/diffusion_pytorch_model.safetensors"),
        ("--pipeline.editor.model: cannot load vae", "1 tensors are missing"),
    ),
    "variant": (
        after(lambda case: case.give_model(), knob("pipeline.editor.variant", "fp16")),
        ("has no fp16 weights", "leave out --pipeline.editor.variant"),
    ),
    "variant-forgotten": (
        rename("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("unet has no plain weights", "--pipeline.editor.variant fp16"),
    ),
    "device-misspelt": (knob("pipeline.editor.device", "cpuu"), ("--pipeline.editor.device: cpuu", "expected one of")),
    "device-absent": (knob("pipeline.editor.device", "cuda:77"), ("--pipeline.editor.device: cuda:77", "cpu")),
    "half-on-the-cpu": (
        after(knob("pipeline.editor.device", "cpu"), knob("pipeline.editor.dtype", "float16")),
        ("--pipeline.editor.dtype is float16", "--pipeline.editor.dtype float32"),
    ),
}

MISTAKES = {
    f"{group}-{name}": mistake
    for group, table in (
        ("edit", EDIT),
        ("controls", CONTROLS),
        ("capture", CAPTURE),
        ("knobs", KNOBS),
        ("models", MODELS),
    )
    for name, mistake in table.items()
}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("capture") / "scene"
    write_capture(out, CaptureConfig(seed=0, views=VIEWS, novel_views=0, size=SIZE))
    return out


def new_case(capture: Path, folder: Path) -> Case:
    data = folder / "scene"
    shutil.copytree(capture, data, ignore=shutil.ignore_patterns("truth"))
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = data, folder / "out", "tensorboard"
    config.machine.device_type = "cpu"
    config.pipeline.editor.num_steps, config.pipeline.editor.resolution = 6, SIZE
    return Case(data, config)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(
    name: str, capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Coarse cells make visual hulls in no time.
    monkeypatch.setattr("qnerf_nerfstudio.region.RESOLUTION", 8)
    # A run before in this process would have its times printed after the sentence.
    monkeypatch.setattr("nerfstudio.utils.profiler.PROFILER", [])
    make, words = MISTAKES[name]
    case = new_case(capture, tmp_path)
    make(case)
    with pytest.raises(SystemExit) as stop:
        train_script.main(case.config)
    output = capsys.readouterr().out
    assert stop.value.code == 2, output
    _, begin, sentence = output.rpartition("qnerf-edit: ")
    assert begin, output
    assert not [each for each in words if each not in sentence], sentence
    assert "\n" not in sentence.strip() and "Traceback" not in output
    assert not list(case.config.output_dir.rglob("*.safetensors"))
