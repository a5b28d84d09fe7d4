"""The files that a transforms.json names: photos, masks and sparse points, looked at without being kept."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION
from PIL import Image

from qnerf_nerfstudio.capture.table import SIZES, FrameCamera, frame_camera
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import is_inside
from qnerf_nerfstudio.common.images import (
    FORMATS,
    MAX_PIXELS,
    eight_bits,
    has_alpha,
    open_image,
    same_shape,
    upright_size,
)
from qnerf_nerfstudio.common.wording import error_text, quoted


def holders(document: dict[str, Any], frames: list[dict[str, Any]], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a field of the camera is stated, and what to call it: once for all photos, or in every frame."""
    if key in document:
        yield key, document
        return
    for number, frame in enumerate(frames):
        yield f"frames[{number}].{key}", frame


class Seen(NamedTuple):
    """What was seen of an image without keeping it."""

    size: tuple[int, int]
    """Width and height, upright."""
    turned: bool
    """Whether its EXIF orientation turns it."""
    transparent: bool
    """Whether it has transparency."""


class CaptureFiles:
    """The files that a transforms file names.

    Args:
        transforms: The transforms file; paths start from its folder.
        outside: Whether they may lie outside of this folder.
        downscale: The dataparser's downscale_factor.
        photos: Another folder that they may lie in.
    """

    def __init__(self, transforms: Path, outside: bool, downscale: int | None, photos: Path | None = None) -> None:
        self.transforms, self.folder, self.outside = transforms, transforms.parent, outside
        self.folders = [self.folder] if photos is None else [self.folder, photos]
        self.downscale = downscale

    def check(self, document: dict[str, Any], frames: list[dict[str, Any]]) -> None:
        """Check photos, masks and sparse points."""
        points = document.get("ply_file_path")
        if points is not None:
            self._check_names("ply_file_path", [points])
        names = [frame["file_path"] for frame in frames]
        photos = self._located("file_path", names, "images_")
        self._check_there("photos", photos)
        cameras = [frame_camera(document, frame) for frame in frames]
        seen = [self._inspect(photo, (each.w, each.h)) for photo, each in zip(photos, cameras, strict=True)]
        sizes = [each.size for each in seen]
        for photo, other in zip(photos, sizes, strict=True):
            if other != sizes[0]:
                raise UserError(
                    f"{self.transforms}: the photos have different sizes ({photos[0]} is {_size(sizes[0])}, {photo} "
                    f"{_size(other)}); qnerf-edit needs one size, rescale them first"
                )
        self._check_stated(document, frames, cameras, sizes[0])
        self._check_masks(frames, sizes[0])
        if turned := sum(each.turned for each in seen):
            CONSOLE.print(
                f"{turned} of {len(photos)} photos are read upright, as their EXIF orientation says and "
                f"{self.transforms.name} states their size.",
                soft_wrap=True,
                markup=False,
            )
        if transparent := sum(each.transparent for each in seen):
            CONSOLE.print(f"{transparent} of {len(photos)} photos have transparency; they are read over white.")

    def _check_stated(
        self,
        document: dict[str, Any],
        frames: list[dict[str, Any]],
        cameras: list[FrameCamera],
        size: tuple[int, int],
    ) -> None:
        """Check that w and h are those of the photos, where these are smaller ones up to their scale."""
        for key, length in zip(SIZES, size, strict=True):
            for (where, holder), camera in zip(holders(document, frames, key), cameras, strict=False):
                stated = (camera.w, camera.h)
                if same_shape(size, stated) if self.downscale != 1 else int(holder[key]) == length:
                    continue
                kind = "" if self.downscale == 1 else f" of images_{self.downscale}"
                raise UserError(
                    f"{self.transforms}: {where} is {quoted(holder[key])}, but the photos{kind} are {_size(size)} "
                    f"pixels; state their size, and fl_x, fl_y, cx and cy for it"
                )

    def _check_masks(self, frames: list[dict[str, Any]], size: tuple[int, int]) -> None:
        """Check that every photo has a mask of its size, or none has one; nerfstudio wants the same of depth maps."""
        for key in ("mask_path", "depth_file_path"):
            names = [frame[key] for frame in frames if key in frame]
            if names and len(names) != len(frames):
                raise UserError(
                    f"{self.transforms}: {key} is in {len(names)} of {len(frames)} frames; state it in all of them, or "
                    f"in none"
                )
            if key == "depth_file_path":
                # Only their names are: no depth map is read.
                self._check_names(key, names)
                continue
            masks = self._located(key, names, "masks_")
            self._check_there("masks", masks)
            for mask in masks:
                found = self._inspect(mask, size).size
                if found != size:
                    raise UserError(
                        f"{self.transforms}: mask_path: {mask} is {_size(found)} pixels, the photos are {_size(size)}; "
                        f"make masks of their size"
                    )

    def _check_names(self, key: str, names: list[Any]) -> None:
        """Check that file names are names, and stay in the capture's folder."""
        for name in names:
            if not isinstance(name, str) or not name.isprintable():
                raise UserError(f"{self.transforms}: {key}: {quoted(name)} is no path; expected one from {self.folder}")
            if not (self.outside or any(is_inside(folder, name) for folder in self.folders)):
                raise UserError(
                    f"{self.transforms}: {key}: {name} leads out of the capture's folder; put the file there, or allow "
                    f"it by --pipeline.outside-paths True"
                )

    def _located(self, key: str, names: list[Any], prefix: str) -> list[Path]:
        """The files that nerfstudio reads: where photos are large, those of a folder of smaller ones."""
        self._check_names(key, names)
        if names and self.downscale is None:
            self.downscale = self._automatic_downscale(names, prefix)
        if self.downscale not in (None, 1):
            names = [f"{prefix}{self.downscale}/{Path(name).name}" for name in names]
            self._check_names(key, names)
        return [self.folder / name for name in names]

    def _automatic_downscale(self, names: list[str], prefix: str) -> int:
        """The factor that nerfstudio chooses by the first photo and by which folders there are."""
        name = names[0]
        if not os.path.isfile(self.folder / name):
            self._check_there("photos", [self.folder / each for each in names])
        longest = max(self._inspect(self.folder / name, None).size)
        power = 0
        while longest / 2**power > MAX_AUTO_RESOLUTION:
            if not (self.folder / f"{prefix}{2 ** (power + 1)}" / Path(name).name).exists():
                break
            power += 1
        return 2**power

    def _check_there(self, what: str, paths: list[Path]) -> None:
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.transforms}: {len(missing)} of {len(paths)} {what} are missing, the first is {missing[0]}; "
                f"{self._remedy(missing[0])}"
            )

    def _remedy(self, path: Path) -> str:
        """What to do about a file that is not there."""
        slashed = path.name.replace("\\", "/")
        if slashed != path.name and (path.parent / slashed).is_file():
            return f"write its path with slashes, as {slashed}"
        near = [other for other in path.parent.iterdir() if other.is_file()] if path.parent.is_dir() else []
        for other in near:
            if _plain(other.name) == _plain(path.name):
                return f"there is {other.name}: write the name as the file has it, letter by letter"
        for other in near:
            if _plain(other.stem) == _plain(path.stem) or _plain(other.stem) == _plain(path.name):
                return f"there is {other.name}: write the name with its suffix"
        full = self.folder / path.parent.name.rpartition("_")[0] / path.name
        if self.downscale not in (None, 1) and full.is_file():
            return (
                f"{full} is there: make the smaller ones of all photos, or use those by nerfstudio-data "
                f"--downscale-factor 1"
            )
        return "put them there, or take their frames out"

    @staticmethod
    def _inspect(path: Path, stated: tuple[int, int] | None) -> Seen:
        """What there is to know of an image, upright where `stated` (width, height) says so.

        Whether it can be read whole is seen only where its shape is as stated: others are refused for that.
        """
        try:
            with open_image(path, FORMATS) as image:
                size = image.size if stated is None else upright_size(image, stated)
                seen = Seen(size, turned=size != image.size, transparent=has_alpha(image))
                if stated is None or not same_shape(size, stated):
                    return seen
                if image.mode in ("I", "F"):
                    eight_bits(image)
                elif image.format == "PNG":
                    image.verify()
                else:
                    image.draft("RGB", (1, 1))
                    image.load()
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path} has more than {MAX_PIXELS // 10**6} megapixels; save it smaller, edits are made at a fraction"
            ) from error
        except Exception as error:  # Pillow's readers raise whatever broken files make them
            raise UserError(
                f"{path} cannot be read as an image ({error_text(error)}); copy or export it again, as PNG or JPEG"
            ) from error
        return seen


def _plain(name: str) -> str:
    """A name in one Unicode form, whatever its case."""
    return unicodedata.normalize("NFC", name).casefold()


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
