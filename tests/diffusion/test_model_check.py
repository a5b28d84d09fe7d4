"""What of a model set is looked at before its weights are loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.models import make_editor, save_tiny_set

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion import model_check, part_check
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.doctor import examine


def test_the_revision_of_a_model_on_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        raise OSError("no network")

    monkeypatch.setattr(model_check, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"cannot load unet/config\.json from the model somebody/model"):
        model_check.check_model_set(EditorConfig(revision="v2"), "somebody/model")
    assert asked == [("somebody/model", "unet/config.json", "v2")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model set, which may not be written to."""
    return save_tiny_set(tmp_path_factory.mktemp("set"))


def copied(tiny: Path, folder: Path, file: str = "unet/config.json", **changes: object) -> Path:
    """A copy of a model set with changed settings in one of its files."""
    shutil.copytree(tiny, folder / "set")
    path = folder / "set" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder / "set"


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "wants class labels"),
        ("unet/config.json", {"num_class_embeds": 10}, "wants class labels"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled"),
        ("unet/config.json", {"only_cross_attention": [True, False, False]}, "cross-attention alone"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("controlnet/config.json", {"conditioning_channels": 1}, "control images of 1 channels"),
    ],
)
def test_models_that_want_what_an_edit_does_not_give(
    tiny: Path, tmp_path: Path, file: str, changes: dict[str, object], words: str
) -> None:
    folder = copied(tiny, tmp_path, file, **changes)
    with pytest.raises(UserError, match=words):
        unet = model_check.check_model_set(EditorConfig(num_steps=4), str(folder))
        part_check.check_controlnet(str(folder), unet, str(folder / "controlnet"))
    part = folder / "controlnet" if file.startswith("controlnet") else folder
    found = {finding.name: finding for finding in examine([part])}[f"model {part.name}"]
    assert found.state == "broken" and words in found.detail


def test_folders_of_lora_weights_and_lost_shards_are_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    shutil.copy(tiny / "unet/diffusion_pytorch_model.safetensors", tmp_path / "lora/pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="LoRA weights alone"):
        model_check.check_model_set(EditorConfig(num_steps=4), str(tmp_path / "lora"))
    folder = copied(tiny, tmp_path)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    named = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    named["weight_map"]["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(named))
    with pytest.raises(UserError, match=r"lacks diffusion_pytorch_model-00002-of-00002\.safetensors"):
        model_check.check_model_set(EditorConfig(num_steps=4), str(folder))


def test_a_variant_is_taken_where_a_part_has_it(tiny: Path, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    config = EditorConfig(
        model=str(folder), controlnet=(str(folder / "controlnet"),), variant="fp16", dtype="float32", num_steps=4
    )
    assert load_editor(config, "cpu").num_steps == 4
    with pytest.raises(UserError, match=r"has no plain weights.*--pipeline\.editor\.variant fp16"):
        load_editor(replace(config, variant=None), "cpu")


def test_what_a_text_encoder_does_not_read_is_known(tmp_path: Path) -> None:
    editor = make_editor(tmp_path)
    assert editor.prompts.dropped_words("a red shirt") == ""
    long = "a figure with very many details and so on " * 10 + "and a red hat"
    dropped = editor.prompts.dropped_words(long)
    assert dropped.endswith("a red hat") and len(dropped) < len(long)
    # Another end changes nothing of what is read.
    assert torch.equal(*(editor.prompts.encode(each).tokens for each in (long, long.replace("red hat", "blue hat"))))
