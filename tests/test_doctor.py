"""`qnerf doctor`: what it finds, and the remedies that it names."""

import importlib.metadata
import io
from pathlib import Path

import pytest
from rich.console import Console

from qnerf_nerfstudio.doctor import Finding, examine, show


def found(models: list[Path]) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(models)}


def test_this_installation_is_sound() -> None:
    findings = found([])
    assert not [finding for finding in findings.values() if finding.state == "broken"]
    assert findings["methods"].detail == "qnerf-edit, qnerf-edit-small, qnerf-edit-xl, qnerf-edit-tiny"
    assert findings["bundled editor"].state == "ok"
    output = io.StringIO()
    assert show(list(findings.values()), Console(file=output, width=150))
    assert "nerfstudio" in output.getvalue()


def test_model_folders_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "half/unet").mkdir(parents=True)
    (tmp_path / "half/model_index.json").write_text("{}")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text("{}")
    (tmp_path / "pickled/diffusion_pytorch_model.bin").write_bytes(b"")
    findings = found([tmp_path / "nowhere", tmp_path / "half", tmp_path / "pickled"])
    assert "download" in findings["model nowhere"].detail
    assert "has no unet, vae, text_encoder, scheduler, tokenizer" in findings["model half"].detail
    assert "safetensors" in findings["model pickled"].detail
    assert not show(list(findings.values()), Console(quiet=True))


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "gsplat":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1.0" if name == "diffusers" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = found([])
    assert findings["gsplat"].state == findings["diffusers"].state == "broken"
    assert "pip install gsplat" in findings["gsplat"].detail
    assert "pip install --upgrade diffusers" in findings["diffusers"].detail


@pytest.mark.parametrize(
    ("name", "package"), [("libusb-1.0", "libusb-1.0-0"), ("chromium", "chromium"), ("ffmpeg", "ffmpeg")]
)
def test_what_the_system_lacks_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("qnerf_nerfstudio.doctor.find_library", lambda library: None)
    monkeypatch.setattr("shutil.which", lambda command: None)
    finding = found([])[name]
    assert finding.state == "note" and finding.detail.endswith(f"apt-get install {package}")
