"""`qnerf doctor`: is everything here that an edit needs, and what to do where it is not."""

import importlib
import importlib.metadata
import re
import shutil
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER
from qnerf_nerfstudio.diffusion.config import EditorConfig

PACKAGES = ("nerfstudio", "torch", "diffusers", "transformers", "safetensors", "viser", "tyro", "gsplat", "trimesh")
METHODS = ("qnerf-edit", "qnerf-edit-small", "qnerf-edit-xl", "qnerf-edit-tiny")
WITHOUT_OPEN3D = "Open3D needs it, so ns-export cannot run and splatfacto reads no sparse points"
NO_GPU = (
    "no CUDA GPU: Stable Diffusion takes hours; edits that state a motion need none of it with qnerf-edit-tiny "
    "--pipeline.editing carried"
)
SMALL_GPU, LARGE_GPU = 11 * 2**30, 22 * 2**30
"""Bytes of GPU memory of the 12 GB and the 24 GB class."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    state: Literal["ok", "note", "broken"]
    """"note" limits what can be done, "broken" keeps an edit from running."""
    detail: str
    """What was found, and the remedy."""


def examine(models: list[Path]) -> list[Finding]:
    """All checks.

    Args:
        models: Local model folders, of whole model sets or ControlNets, to look into.
    """
    return [
        *_packages(),
        _methods(),
        _device(),
        _optional("tinycudann", "fields use torch, which is slower; see nerfstudio's installation notes"),
        _gsplat(),
        _system("ffmpeg", shutil.which("ffmpeg") is not None, "ns-render cannot write videos", "ffmpeg"),
        _system("libusb-1.0", find_library("usb-1.0") is not None, WITHOUT_OPEN3D, "libusb-1.0-0"),
        _system("chromium", shutil.which("chromium") is not None, "tests of the pages are skipped", "chromium"),
        _model("bundled editor", BUNDLED_FOLDER),
        *(_model(f"model {folder.name}", folder) for folder in models),
    ]


def _packages() -> list[Finding]:
    wanted = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, importlib.metadata.requires("qnerf-nerfstudio") or ())
    }
    findings = []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "broken", f"is not installed; pip install {name}"))
            continue
        specifier = wanted.get(name)
        good = specifier is None or specifier.contains(Version(version), prereleases=True)
        detail = version if good else f"{version}, expected {specifier}; pip install --upgrade {name}"
        findings.append(Finding(name, "ok" if good else "broken", detail))
    return findings


def _methods() -> Finding:
    points = {point.name: point for point in importlib.metadata.entry_points(group="nerfstudio.method_configs")}
    missing = [name for name in METHODS if name not in points]
    if missing:
        return Finding(
            "methods", "broken", f"nerfstudio does not know {', '.join(missing)}; install this package again"
        )
    for name, point in points.items():
        try:
            point.load()
        except Exception as error:  # any plugin's import error keeps every ns- command from starting
            return Finding("methods", "broken", f"the plugin of {name} fails ({error}); update or uninstall it")
    return Finding("methods", "ok", ", ".join(METHODS))


def _device() -> Finding:
    if not torch.cuda.is_available():
        return Finding("device", "note", NO_GPU)
    properties = torch.cuda.get_device_properties(0)
    memory = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if properties.total_memory >= LARGE_GPU:
        return Finding("device", "ok", memory)
    if properties.total_memory >= SMALL_GPU:
        return Finding("device", "ok", f"{memory}: use qnerf-edit-small")
    return Finding("device", "note", f"{memory}: use qnerf-edit-small with --pipeline.editor.resolution 384 or less")


def _optional(module: str, without: str) -> Finding:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return Finding(module, "note", f"cannot be imported: {without}")
    return Finding(module, "ok", "can be imported")


def _gsplat() -> Finding:
    found = _optional("gsplat", "splatfacto cannot train on edited views; pip install gsplat")
    if found.state == "ok" and not torch.cuda.is_available():
        return Finding("gsplat for splatfacto", "note", "needs a CUDA GPU to train on edited views")
    return Finding("gsplat for splatfacto", found.state, found.detail)


def _system(name: str, found: bool, without: str, package: str) -> Finding:
    detail = "found" if found else f"is missing: {without}; apt-get install {package}"
    return Finding(name, "ok" if found else "note", detail)


def _model(name: str, path: Path) -> Finding:
    """What a folder or a file holds, and whether an edit can load it."""
    # It imports the hub's library, which may be what is missing here.
    from qnerf_nerfstudio.diffusion import model_check, part_check, weights_file  # noqa: PLC0415

    if not path.exists():
        return Finding(name, "broken", f"{path} is not there; download it with hf download")
    try:
        if path.is_file():
            found = weights_file.read_weights_file("editor.model", path)
            detail = f"{found.described()}{_fitting(found.text_width, found.kind)}: {path}"
            return Finding(name, "broken" if found.kind == "unknown" else "ok", detail)
        if (path / model_check.LORA).exists() and not (path / "unet").exists():
            found = weights_file.read_weights_file("editor.lora", path / model_check.LORA)
            return Finding(name, "ok", f"{found.described()}: {path}")
        settings = path / "config.json"
        if settings.exists() and not (path / "unet").exists():
            part_check.check_controlnet("this model", {}, str(path))
            stated = model_check.read_settings("editor.controlnet", str(path), "config.json", None)
            base = weights_file.base_of(stated.get("cross_attention_dim"))
            return Finding(name, "ok", f"a ControlNet{f' ({base})' if base else ''}: {path}")
        unet = model_check.check_model_set(EditorConfig(num_steps=1), str(path))
    except UserError as error:
        return Finding(name, "broken", re.sub(r"^--pipeline\.editor\.(model|controlnet|lora):? ", "", str(error)))
    width = unet.get("cross_attention_dim")
    base = "Stable Diffusion XL" if model_check.is_xl(unet) else weights_file.base_of(width)
    return Finding(name, "ok", f"a model ({base}){_fitting(width, 'model')}: {path}")


def _fitting(width: int | None, kind: str) -> str:
    """Which published ControlNets fit a model whose UNet reads text of a width."""
    from qnerf_nerfstudio.diffusion.controlnets import PUBLISHED, PUBLISHED_XL  # noqa: PLC0415 - as above

    if kind != "model":
        return ""
    published = {768: PUBLISHED, 2048: PUBLISHED_XL}.get(width or 0)
    names = ", ".join(published.values()) if published else "those made for it"
    return f", ControlNets that fit: {names}"


def show(findings: list[Finding], console: Console) -> bool:
    """Print findings; whether an edit can run."""
    table = Table("", "", "")
    marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "broken": "[red]broken[/red]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, finding.detail)
    console.print(table)
    return all(finding.state != "broken" for finding in findings)
