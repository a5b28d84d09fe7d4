"""Models from single files, and LoRA weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from helpers.models import DEFAULTS, pipeline_of, random_parts, random_xl_parts
from helpers.original_layout import save_original
from safetensors.torch import load_file, save_file

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.doctor import examine

KINDS = ["sd", "xl"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A random model set as a folder, as a file, and its ControlNet as both."""
    folder = tmp_path_factory.mktemp(request.param)
    parts = random_xl_parts(folder / "tokenizer") if request.param == "xl" else random_parts(folder / "tokenizer")
    pipeline_of(parts).save_pretrained(folder / "set")
    parts["controlnet"].save_pretrained(folder / "controlnet")
    return {
        "kind": request.param,
        "parts": parts,
        "folder": folder / "set",
        "controlnet": folder / "controlnet",
        "file": save_original(parts, folder / "model.safetensors"),
        "controlnet file": folder / "controlnet/diffusion_pytorch_model.safetensors",
    }


def config(**settings: Any) -> EditorConfig:
    named = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    named["controlnet"] = (named["controlnet"],)
    return EditorConfig(**{**DEFAULTS, "guidance_scale": 3.0, **named})


@torch.no_grad()
def sampled(settings: EditorConfig) -> torch.Tensor:
    """An image from noise."""
    editor = load_editor(settings, "cpu")
    prompts = editor.encode_prompts("a red shirt", "a blue shirt", "")
    generator = torch.Generator().manual_seed(0)
    latents, controls = torch.randn(1, 4, 8, 8, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)
    for step in range(2):
        latents = editor.denoise_step(latents, step, prompts, controls)
    return editor.decode(latents)


def test_a_file_gives_what_its_folder_gives(model: dict[str, Any]) -> None:
    ours = sampled(config(model=model["file"], config=model["folder"], controlnet=model["controlnet file"]))
    theirs = sampled(config(model=model["folder"], controlnet=model["controlnet"]))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_vae_of_its_own(model: dict[str, Any], tmp_path: Path) -> None:
    vae = random_parts(tmp_path / "tokenizer")["vae"]
    for parameter in vae.decoder.parameters():
        parameter.data.mul_(1.5)
    vae.save_pretrained(tmp_path / "vae")
    common = {"model": model["folder"], "controlnet": model["controlnet"]}
    folder = sampled(config(**common, vae=tmp_path / "vae"))
    file = sampled(config(**common, vae=tmp_path / "vae/diffusion_pytorch_model.safetensors"))
    assert torch.equal(folder, file)
    assert not torch.allclose(folder, sampled(config(**common)))


def test_settings_are_asked_for_where_there_is_no_network(
    model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot load .*model\.safetensors .*--pipeline\.editor\.config"):
        load_editor(config(model=model["file"], controlnet=model["controlnet"]), "cpu")


def test_files_that_do_not_fit_are_told(model: dict[str, Any], tmp_path: Path) -> None:
    def refused(match: str, **settings: Any) -> None:
        common = {"model": model["file"], "config": model["folder"], "controlnet": model["controlnet"]}
        with pytest.raises(UserError, match=match):
            load_editor(config(**{**common, **settings}), "cpu")

    refused(
        r"holds a ControlNet .*expected a model; give it by --pipeline.editor.controlnet",
        model=model["controlnet file"],
    )
    refused(r"editor.controlnet: .* holds a model .*expected a ControlNet", controlnet=model["file"])
    refused(r"editor.vae: .* holds a model", vae=model["file"])
    refused(r"editor.lora: .* holds a model .*expected LoRA weights", lora=model["file"])
    refused(r"editor.config: .* has no model_index.json", config=model["controlnet"])
    other = random_xl_parts(tmp_path / "t") if model["kind"] == "sd" else random_parts(tmp_path / "t")
    pipeline_of(other).save_pretrained(tmp_path / "other")
    refused(
        r"holds a model .*but --pipeline.editor.config .* has the settings of another one", config=tmp_path / "other"
    )
    other["controlnet"].save_pretrained(tmp_path / "cn")
    refused(r"editor.controlnet: .*made for ", controlnet=tmp_path / "cn/diffusion_pytorch_model.safetensors")
    weights = load_file(model["file"])
    name = next(name for name in weights if name.startswith("model.diffusion_model.out.2"))
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "lacking.safetensors")
    refused(r"lacking.safetensors lacks tensors of its parts", model=tmp_path / "lacking.safetensors")
    save_file({key: value for key, value in weights.items() if "diffusion_model" in key}, tmp_path / "unet.safetensors")
    refused(r"holds a UNet without VAE and text encoder; expected a whole model", model=tmp_path / "unet.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**weights, name: weights[name].repeat(1, 3, 1, 1)[:, :9].contiguous()}, tmp_path / "inpaint.safetensors")
    refused(r"takes 9 channels as inpainting models have, expected 4", model=tmp_path / "inpaint.safetensors")


def lora_of(parts: dict[str, Any], folder: Path, rank: int = 4) -> Path:
    """Random LoRA weights in diffusers' layout for the attention of a UNet and of its first text encoder."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for prefix, module, ends in (
        ("unet", parts["unet"], ("to_q", "to_k", "to_v", "to_out.0")),
        ("text_encoder", parts["text_encoder"], ("q_proj", "v_proj")),
    ):
        for name, layer in module.named_modules():
            if name.endswith(ends):
                stored = name if prefix == "unet" else f"text_model.{name.removeprefix('text_model.')}"
                down = torch.randn(rank, layer.in_features, generator=generator)
                weights[f"{prefix}.{stored}.lora_A.weight"] = 0.1 * down
                weights[f"{prefix}.{stored}.lora_B.weight"] = 0.1 * torch.randn(
                    layer.out_features, rank, generator=generator
                )
    folder.mkdir()
    save_file(weights, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors"


def test_lora_is_what_diffusers_makes_of_it(model: dict[str, Any], tmp_path: Path) -> None:
    lora = lora_of(model["parts"], tmp_path / "lora")
    common = {"model": model["folder"], "controlnet": model["controlnet"]}
    editor = load_editor(config(**common, lora=lora, lora_scale=0.8), "cpu")
    cls = StableDiffusionXLPipeline if model["kind"] == "xl" else StableDiffusionPipeline
    theirs = cls.from_pretrained(model["folder"])
    theirs.load_lora_weights(str(lora))
    theirs.set_adapters(theirs.get_list_adapters()["unet"], adapter_weights=0.8)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    text = editor.prompts.encode("a red shirt")
    embeds = theirs.encode_prompt(
        "a red shirt", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(text.tokens, embeds[0], atol=1e-4, rtol=1e-4)
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]])}
    ours = editor.unet(latents, 500, text.tokens, added_cond_kwargs=added).sample
    expected = theirs.unet(latents, 500, embeds[0], added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    plain = load_editor(config(**common), "cpu").unet(latents, 500, text.tokens, added_cond_kwargs=added).sample
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_lora_of_another_model_is_refused(model: dict[str, Any], tmp_path: Path) -> None:
    other = random_xl_parts(tmp_path / "t") if model["kind"] == "sd" else random_parts(tmp_path / "t")
    common = {"model": model["folder"], "controlnet": model["controlnet"]}
    with pytest.raises(UserError, match=r"editor.lora: .*was made for text of width \d+, but .* reads text of width"):
        load_editor(config(**common, lora=lora_of(other, tmp_path / "lora").parent), "cpu")
    weights = load_file(tmp_path / "lora/pytorch_lora_weights.safetensors")
    strange = {name.replace("attentions", "elsewhere"): value for name, value in weights.items() if "attn1" in name}
    (tmp_path / "part").mkdir()
    save_file(strange, tmp_path / "part/l.safetensors")
    with pytest.raises(UserError, match=r"editor.lora: .*(does not fit|changes no weights)"):
        load_editor(config(**common, lora=tmp_path / "part/l.safetensors"), "cpu")


def test_doctor_says_what_files_are(model: dict[str, Any], tmp_path: Path) -> None:
    lora = lora_of(model["parts"], tmp_path / "lora")
    found = {each.name: each for each in examine([model["file"], model["controlnet file"], lora, model["folder"]])}
    assert found[f"model {model['file'].name}"].detail.startswith("a model (text of width")
    assert "a ControlNet" in found[f"model {model['controlnet file'].name}"].detail
    assert "LoRA weights" in found[f"model {lora.name}"].detail
    assert found[f"model {model['folder'].name}"].state == "ok"
    assert ("Stable Diffusion XL" in found[f"model {model['folder'].name}"].detail) == (model["kind"] == "xl")


def test_pickled_lora_is_never_loaded(model: dict[str, Any], tmp_path: Path) -> None:
    common = {"model": model["folder"], "controlnet": model["controlnet"]}
    torch.save({"unet.x.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.bin")
    for path, words in (
        (tmp_path, "has no .safetensors file"),
        (tmp_path / "pytorch_lora_weights.bin", "is no .safetens"),
    ):
        with pytest.raises(UserError, match=words):
            load_editor(config(**common, lora=path), "cpu")


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (768, ("a model (Stable Diffusion 1.x)", "lllyasviel/control_v11p_sd15_openpose")),
        (1024, ("a model (Stable Diffusion 2.x)", "those made for it")),
        (2048, ("a model (Stable Diffusion XL)", "xinsir/controlnet-openpose-sdxl-1.0")),
    ],
)
def test_doctor_names_the_model_and_controlnets_that_fit(tmp_path: Path, width: int, words: tuple[str, ...]) -> None:
    reader = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({reader: torch.zeros(8, width)}, tmp_path / "model.safetensors")
    found = next(each for each in examine([tmp_path / "model.safetensors"]) if each.name == "model model.safetensors")
    assert all(word in found.detail for word in words)
