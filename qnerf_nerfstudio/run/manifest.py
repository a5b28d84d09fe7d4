"""What a run's edit/ folder is of: a run that goes on must not differ from it, and the report reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.version import __version__
from qnerf_nerfstudio.edit.schema import Edit
from qnerf_nerfstudio.run.fingerprint import differences, flatten
from qnerf_nerfstudio.run.plan import Revision


@dataclass(frozen=True)
class Attempt:
    """What one attempt at the edit is sampled with; a revision at the viewer may begin another one."""

    prompt: str
    """Target prompt."""
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Classifier-free guidance scale."""


class Manifest(BaseModel):
    """The contents of edit/manifest.json."""

    model_config = ConfigDict(frozen=True)

    version: str
    """Version of qnerf-nerfstudio that began the run."""
    plan: str
    """Hash of the plan before any revision."""
    settings: dict[str, str]
    """Settings that the result depends on, by the name of their option."""
    photos: dict[str, str]
    """Hashes of the photos' contents by their names."""
    files: dict[str, str]
    """Hashes of the other files that the run reads: cameras, masks, meshes, control images, local models."""
    edit: Edit
    """The edit."""
    paths: list[str]
    """Where the photos of all views are, training views first."""
    num_train: Annotated[int, Field(ge=1)]
    """Number of training views."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the images that are edited."""
    chunk: Annotated[int, Field(ge=1)] = 1
    """Views that go through the diffusion models at once."""
    revisions: tuple[Revision, ...] = ()
    """Changes of the plan, in their order."""
    attempts: Annotated[tuple[Attempt, ...], Field(min_length=1)]
    """What each attempt is sampled with."""
    finished: bool = False
    """Whether the run is at its end."""


def read_manifest(path: Path) -> Manifest:
    """Read a manifest back.

    Raises:
        UserError: It is damaged, or another version wrote it.
    """
    data = path.read_bytes()
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        _refuse_version(path.parent, _stated_version(data))
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(
            f"{path} is damaged, or written by another version of qnerf-nerfstudio than {__version__} ({field}: "
            f"{first['msg']}); edit the scene again under another --timestamp"
        ) from error


def refuse_other(folder: Path, begun: Manifest, run: Manifest) -> None:
    """Refuse to go on with what was not begun.

    Args:
        folder: The run's edit/ folder.
        begun: What it is of.
        run: What is to go on.

    Raises:
        UserError: Version, settings, photos or edit differ; the message names what does.
    """
    _refuse_version(folder, begun.version)
    before, now = (dict(flatten("edit", each.edit.model_dump(mode="json"))) for each in (begun, run))
    compared = {
        "settings": (begun.settings, run.settings),
        "edit.json": (before, now),
        "photos": (begun.photos, run.photos),
        "files": (begun.files, run.files),
    }
    for name, (before, now) in compared.items():
        if different := differences(before, now):
            raise UserError(
                f"{folder} was begun with other {name}: {different}; go on with those that it was begun with, or start "
                f"another edit under another --timestamp"
            )


def _stated_version(data: bytes) -> str:
    """The version that a manifest states, whatever else it holds; ours where it states none."""
    try:
        stated = json.loads(data)
    except ValueError:
        return __version__
    version = stated.get("version") if isinstance(stated, dict) else None
    return version if isinstance(version, str) else __version__


def _refuse_version(folder: Path, version: str) -> None:
    """Refuse what another minor version began."""
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(
            f"{folder} was begun by qnerf-nerfstudio {version}, this is {__version__}; go on with pip install "
            f"qnerf-nerfstudio=={version}, or edit the scene again under another --timestamp"
        )
