"""Options and models that do not go together: each ends ns-train with one sentence, before anything is computed."""

import shutil
from pathlib import Path

import pytest
from helpers.mistakes import NAN, Case, Make, Mistakes, after, ends_in_one_sentence, grouped, knob, put, truncate, write
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from safetensors.torch import load_file, save_file


def rename(old: str, new: str) -> Make:
    def make(case: Case) -> None:
        root = case.give_model()
        (root / old).rename(root / new)

    return make


def remove(name: str) -> Make:
    def make(case: Case) -> None:
        path = case.give_model() / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)

    return make


def drop_tensor(file: str) -> Make:
    def make(case: Case) -> None:
        path = case.give_model() / file
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})

    return make


def single_file(suffix: str) -> Make:
    def make(case: Case) -> None:
        path = case.data.parent / f"sd15{suffix}"
        path.write_bytes(b"\x80\x02}q\x00.")
        case.config.pipeline.editor.model = str(path)

    return make


KNOBS: Mistakes = {
    "tau-0": (knob("pipeline.tau", 0), ("--pipeline.tau is 0; expected 1 to num_steps (6)",)),
    "tau-beyond": (knob("pipeline.tau", 7), ("--pipeline.tau is 7; expected 1 to num_steps (6)",)),
    "chunk-0": (knob("pipeline.chunk", 0), ("--pipeline.chunk is 0; expected at least 1",)),
    "rays-0": (
        knob("pipeline.datamanager.train_num_rays_per_batch", 0),
        ("--pipeline.datamanager.train-num-rays-per-batch is 0; expected at least 1",),
    ),
    "patches": (
        knob("pipeline.datamanager.patch_size", 4),
        ("--pipeline.datamanager.patch-size is 4", "leave it out"),
    ),
    "normals": (knob("pipeline.model.predict_normals", True), ("--pipeline.model.predict-normals is True",)),
    "eval-by-names": (
        knob("pipeline.datamanager.dataparser.eval_mode", "filename"),
        ("--eval-mode filename", "frame_00001.png has neither train nor eval"),
    ),
    "other-dataparser": (
        knob("pipeline.datamanager.dataparser", BlenderDataParserConfig()),
        ("the dataparser Blender", "use nerfstudio-data"),
    ),
    "stop": (knob("pipeline.stop", 1.5), ("--pipeline.stop is 1.5; expected 0 to 1",)),
    "feather": (knob("pipeline.feather", -1.0), ("--pipeline.feather is -1.0; expected",)),
    "keep-unchanged": (knob("pipeline.keep_unchanged", 2.0), ("keep_unchanged is 2.0; expected 0 to 1",)),
    "source-iterations": (knob("pipeline.source_iterations", -1), ("source_iterations is -1; expected at least 0",)),
    "fit-iterations": (knob("pipeline.fit_iterations", 0), ("fit_iterations is 0; expected at least 1",)),
    "final-iterations": (knob("pipeline.final_iterations", 0), ("final_iterations is 0; expected at least 1",)),
    "num-steps": (knob("pipeline.editor.num_steps", 0), ("editor.num_steps is 0; expected 1 to 1000",)),
    "resolution": (knob("pipeline.editor.resolution", 10), ("editor.resolution is 10; expected at least 64",)),
    "guidance-scale": (knob("pipeline.editor.guidance_scale", 0.5), ("editor.guidance_scale is 0.5; expected",)),
    "guidance-strength": (knob("pipeline.editor.guidance_strength", -0.1), ("editor.guidance_strength is -0.1",)),
    "guidance-nan": (knob("pipeline.editor.guidance_strength", NAN), ("editor.guidance_strength is nan",)),
    "render-weight": (knob("pipeline.editor.render_weight", 2.0), ("editor.render_weight is 2.0; expected 0 to 1",)),
    "injection-start": (knob("pipeline.editor.injection_start", -1.0), ("injection_start is -1.0; expected 0 to 1",)),
    "query-width": (
        knob("pipeline.model.query_width", 2),
        ("--pipeline.model.query-width is 2", "6 query layers", "at least"),
    ),
    "length": (
        knob("max_num_iterations", 7),
        ("--max-num-iterations is 7", "--pipeline.final-iterations"),
    ),
    "prompt": (knob("prompt", " "), ("--prompt is empty", "leave it out")),
}

MODELS: Mistakes = {
    "unreachable": (
        knob("pipeline.editor.model", "nobody/nothing"),
        ("--pipeline.editor.model: cannot load unet", "neither a local folder nor reached on the hub", "check the id"),
    ),
    "controlnet-unreachable": (
        knob("pipeline.editor.controlnet", ("nobody/nothing",)),
        ("--pipeline.editor.controlnet: cannot load", "nobody/nothing", "check the id"),
    ),
    "parts-missing": (
        after(remove("unet"), remove("tokenizer")),
        ("model has no unet, tokenizer", "hf download"),
    ),
    "single-file": (
        single_file(".safetensors"),
        ("--pipeline.editor.model", "sd15.safetensors is truncated or corrupt", "download it again"),
    ),
    "single-checkpoint": (single_file(".ckpt"), ("sd15.ckpt is no .safetensors file", "where you trust it")),
    "config-broken": (write("model/unet/config.json", "{"), ("cannot load unet/config.json", "downloaded")),
    "inpainting": (
        put("model/unet/config.json", "in_channels", 9),
        ("its unet takes 9 channels as inpainting models have, its vae gives 8", "text-to-image"),
    ),
    "sd3-index": (
        put("model/model_index.json", "text_encoder_3", ["transformers", "T5EncoderModel"]),
        ("model_index.json", "text_encoder_3", "expected Stable Diffusion 1.x, 2.x or XL"),
    ),
    "xl-parts": (
        put("model/unet/config.json", "addition_embed_type", "text_time"),
        ("has no text_encoder_2, tokenizer_2", "hf download"),
    ),
    "unet-wants-images": (
        put("model/unet/config.json", "addition_embed_type", "image"),
        ("its unet wants more than text", "expected Stable Diffusion 1.x, 2.x or XL"),
    ),
    "vae-of-another-class": (
        put("model/vae/config.json", "_class_name", "AutoencoderTiny"),
        ("its vae is a AutoencoderTiny, not a AutoencoderKL",),
    ),
    "text-width": (
        put("model/text_encoder/config.json", "hidden_size", 64),
        ("its text_encoder is 64 wide, its unet reads text of width 96", "download the model again"),
    ),
    "controlnet-width": (
        put("model/controlnet/config.json", "cross_attention_dim", 1024),
        ("--pipeline.editor.controlnet", "reads text of width 1024", "96", "choose a ControlNet made for"),
    ),
    "controlnet-blocks": (
        put("model/controlnet/config.json", "block_out_channels", [8, 8, 8]),
        ("--pipeline.editor.controlnet", "block_out_channels", "choose a ControlNet made for"),
    ),
    "controlnet-xl": (
        put("model/controlnet/config.json", "addition_embed_type", "text_time"),
        ("--pipeline.editor.controlnet", "Stable Diffusion XL", "choose a ControlNet made for"),
    ),
    "weights-truncated": (
        lambda case: truncate(case.give_model() / "unet/diffusion_pytorch_model.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors is truncated or corrupt", "download it again"),
    ),
    "weights-pickled": (
        rename("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"),
        ("model/vae has pickled weights only", "diffusion_pytorch_model.bin", "AutoencoderKL", "save_pretrained"),
    ),
    "weights-missing": (remove("text_encoder/model.safetensors"), ("text_encoder has no weights", "*.safetensors")),
    "weights-incomplete": (
        drop_tensor("vae/diffusion_pytorch_model.safetensors"),
        ("--pipeline.editor.model: cannot load vae", "1 tensors are missing"),
    ),
    "variant": (
        after(lambda case: case.give_model(), knob("pipeline.editor.variant", "fp16")),
        ("has no fp16 weights", "leave out --pipeline.editor.variant"),
    ),
    "variant-forgotten": (
        rename("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("unet has no plain weights", "--pipeline.editor.variant fp16"),
    ),
    "device-misspelt": (knob("pipeline.editor.device", "cpuu"), ("--pipeline.editor.device: cpuu", "expected one of")),
    "device-absent": (knob("pipeline.editor.device", "cuda:77"), ("--pipeline.editor.device: cuda:77", "cpu")),
    "half-on-the-cpu": (
        after(knob("pipeline.editor.device", "cpu"), knob("pipeline.editor.dtype", "float16")),
        ("--pipeline.editor.dtype is float16", "--pipeline.editor.dtype float32"),
    ),
}


MISTAKES = grouped(knobs=KNOBS, models=MODELS)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name: str, case: Case, capsys: pytest.CaptureFixture) -> None:
    make, words = MISTAKES[name]
    make(case)
    ends_in_one_sentence(case, words, capsys)
