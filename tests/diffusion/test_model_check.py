"""What of a model set is looked at before its weights are loaded."""

import pytest

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion import model_check
from qnerf_nerfstudio.diffusion.config import EditorConfig


def test_the_revision_of_a_model_on_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        raise OSError("no network")

    monkeypatch.setattr(model_check, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"cannot load unet/config\.json from the model somebody/model"):
        model_check.check_models(EditorConfig(revision="v2"), "somebody/model", "somebody/control")
    assert asked == [("somebody/model", "unet/config.json", "v2")]
