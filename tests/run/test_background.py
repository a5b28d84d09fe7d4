"""Files that are written in the background are there at once, and what goes wrong is told."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.run import background
from qnerf_nerfstudio.run.background import BackgroundFile, BackgroundWriter
from qnerf_nerfstudio.run.tensor_file import TensorFile


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No file is written before this is set."""
    go, save = threading.Event(), TensorFile.save

    def waits(file: TensorFile, tensors: dict[str, torch.Tensor]) -> None:
        assert go.wait(30)
        save(file, tensors)

    monkeypatch.setattr(TensorFile, "save", waits)
    return go


def test_a_file_is_there_before_it_is_written(tmp_path: Path, held: threading.Event) -> None:
    writer = BackgroundWriter()
    file = BackgroundFile(tmp_path / "a" / "0.safetensors", writer)
    assert not file.exists
    # What convolutions make can lie in memory otherwise than what is read from a file.
    latents = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    file.save({"latents": latents})
    assert file.exists and not file.path.exists()
    loaded = file.load()["latents"]
    assert torch.equal(loaded, latents) and loaded.is_contiguous()
    held.set()
    writer.flush()
    assert torch.equal(load_file(file.path)["latents"], latents)
    assert torch.equal(file.load()["latents"], latents)


def test_few_files_wait_at_a_time(tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST", 3)
    writer = BackgroundWriter()
    files = [BackgroundFile(tmp_path / f"{number}.safetensors", writer) for number in range(6)]
    for number, file in enumerate(files[:3]):
        file.save({"latents": torch.full((1,), float(number))})
    threading.Timer(0.2, held.set).start()
    for number, file in enumerate(files[3:], 3):
        file.save({"latents": torch.full((1,), float(number))})
        assert sum(writer.waiting(each.path) is not None for each in files) <= 3
    assert [float(file.load()["latents"]) for file in files] == [0, 1, 2, 3, 4, 5]
    writer.flush()
    assert all(file.path.exists() for file in files)


def test_what_cannot_be_written_is_told_at_the_next_occasion(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    writer = BackgroundWriter()
    BackgroundFile(tmp_path / "file" / "0.safetensors", writer).save({"latents": torch.zeros(1)})
    with pytest.raises(UserError, match=r"cannot write .*file/0\.safetensors"):
        writer.flush()
    good = BackgroundFile(tmp_path / "1.safetensors", writer)
    good.save({"latents": torch.zeros(1)})
    writer.flush()
    assert good.path.exists()


def test_a_file_that_was_never_written_is_missed(tmp_path: Path) -> None:
    file = BackgroundFile(tmp_path / "0.safetensors", BackgroundWriter())
    with pytest.raises(FileNotFoundError, match=r"0\.safetensors is missing"):
        file.load()
