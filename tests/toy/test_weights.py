"""The bundled editor's folder."""

from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER


def test_bundled_editor_fits_its_size() -> None:
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.rglob("*") if path.is_file())
    # A wheel with it stays under 48 MiB.
    assert size <= 44e6
    assert not [path for path in BUNDLED_FOLDER.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert (BUNDLED_FOLDER / "README.md").exists()
    for path in BUNDLED_FOLDER.rglob("*.json"):
        assert "_name_or_path" not in path.read_text()
