"""Options of nerfstudio's own that an edit cannot follow: each is refused in a sentence before anything is read."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from qnerf_nerfstudio.capture.paths import transforms_path
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.field.model import QNerfModelConfig


def check_options(manager: QNerfDataManagerConfig, model: QNerfModelConfig) -> None:
    """Refuse options of nerfstudio's that an edit cannot follow.

    Raises:
        UserError: There is one.
    """
    parser = manager.dataparser
    if not isinstance(parser, NerfstudioDataParserConfig):
        name = type(parser).__name__.removesuffix("DataParserConfig")
        raise UserError(
            f"--data is to be read by the dataparser {name}, but an edit is read for two formats only; use "
            f"nerfstudio-data (transforms.json, as ns-process-data makes it) or colmap"
        )
    if model.predict_normals:
        raise UserError("--pipeline.model.predict-normals is True, but the edited field renders none; leave it out")
    if manager.train_num_rays_per_batch < 1:
        raise UserError(
            f"--pipeline.datamanager.train-num-rays-per-batch is {manager.train_num_rays_per_batch}; expected at least "
            f"1"
        )
    if manager.patch_size > 1:
        raise UserError(
            f"--pipeline.datamanager.patch-size is {manager.patch_size}, but rays are drawn one by one; leave it out"
        )
    if parser.eval_mode == "filename":
        names = [frame.get("file_path", "") for frame in _frames_of(Path(manager.data or parser.data))]
        wrong = [name for name in names if not any(word in Path(name).name for word in ("train", "eval"))]
        if wrong:
            raise UserError(
                f"nerfstudio-data --eval-mode filename: {wrong[0]} has neither train nor eval in its name; rename the "
                f"photos, or leave the option out"
            )


def check_compiler(editor: EditorConfig, model: QNerfModelConfig) -> None:
    """Refuse to compile where there is no compiler.

    Raises:
        UserError: There is none.
    """
    asked = {"pipeline.editor.compile": editor.compile, "pipeline.model.compile-encodings": model.compile_encodings}
    stated = shlex.split(os.environ.get("CXX", ""))[:1]
    if any(asked.values()) and not any(shutil.which(name) for name in (*stated, "g++", "clang++")):
        option = next(name for name, value in asked.items() if value)
        raise UserError(
            f"--{option} is True, but there is no C++ compiler: neither g++ nor clang++ is found; install one, name it "
            f"in the environment variable CXX, or leave the option out"
        )


def _frames_of(data: Path) -> list[dict[str, Any]]:
    """The frames of a capture as far as they can be read; what is wrong with them is told by its check."""
    try:
        return list(json.loads(transforms_path(data).read_text(encoding="utf-8"))["frames"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
