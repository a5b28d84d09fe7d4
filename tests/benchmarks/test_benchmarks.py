"""The consistency benchmark's own parts: its settings, and its baselines against the product's sampling loop."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import gpu
import gpu_scale
import pytest
import real_models
import torch
from baselines import Scene, attend, invert, sample
from features import kernel_distance
from fields import Judge, split_capture
from helpers.captures import small_capture
from helpers.commands import SHORT
from helpers.models import save_tiny_set
from hidden import hidden_pixels
from leverage import NARROW, Leverage
from PIL import Image
from recipes import read_views
from settings import WRONG_EVERY, Setting, field_settings, views_of, write_scene
from table import write_table
from torch._dynamo.testing import CompileCounter

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.diffusion.conditions import SourceBranch
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManager, Targets
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.toy.capture import focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import Pose, sample_body
from qnerf_nerfstudio.toy.render import render
from qnerf_nerfstudio.toy.truth import load_truth


@pytest.mark.parametrize("setting", ["loose", "wrong"])
def test_settings_differ_in_their_target_controls_only(tmp_path: Path, setting: Setting) -> None:
    drawn: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in ("tight", setting):
        capture = tmp_path / name
        write_scene(capture, 3, 6, name, size=128)
        views, edit = views_of(capture), load_edit(capture / "edit.json")
        names = load_truth(capture, "train").names
        drawn[name] = control_images(edit, capture, views, names, torch.eye(4)[:3], views.size)
    # edit.json rounds joints to a hundredth of a millimetre, which moves a few pixels of a drawing.
    source, target = (((drawn["tight"][k] - drawn[setting][k]).abs() > 0.1).any(1).flatten(1).sum(1) for k in range(2))
    assert source.max() <= 3
    different = target > 10
    expected = torch.arange(6) % WRONG_EVERY == 0 if setting == "wrong" else torch.ones(6, dtype=torch.bool)
    assert torch.equal(different, expected)


def test_shared_attention_to_the_own_source_is_the_products_appearance_injection(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", 3, 4, "tight", size=128)
    config = replace(qnerf_edit_tiny.config.pipeline.editor, num_steps=3)  # pyright: ignore[reportAttributeAccessIssue]
    editor = load_editor(config, "cpu")
    truth = load_truth(tmp_path / "scene", "train")
    views, edit = views_of(tmp_path / "scene"), load_edit(tmp_path / "scene/edit.json")
    source, target = control_images(edit, tmp_path, views, truth.names, torch.eye(4)[:3], views.size)
    prompts = editor.encode_prompts(edit.source_prompt, edit.prompt, "")
    photos = read_views(tmp_path / "scene/images")
    scene = Scene(editor, prompts, photos, source, target, invert(editor, prompts, photos, source, 4))
    images = sample(scene, lambda: lambda attn, query, key, value, _: attend(attn, query[1], key[0], value[0]))
    latents = scene.trajectory[0]
    for step in range(editor.num_steps):
        latents = editor.denoise_step(latents, step, prompts, target, SourceBranch(scene.trajectory[step], source))
    torch.testing.assert_close(images, editor.decode(latents), atol=1e-4, rtol=1e-4)


def test_own_queries_in_place_change_nothing(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", 3, 4, "tight", size=128)
    settings = copy.deepcopy(qnerf_edit_tiny.config.pipeline)
    assert isinstance(settings, QNerfPipelineConfig)
    settings.editor.num_steps, settings.source_iterations, settings.final_iterations = 8, 10, 10
    leverage = Leverage(tmp_path / "scene", tmp_path, 3, 2, settings)
    assert leverage.chosen.tolist() == [0, 3]
    # Views that begin where the true ones do, under their control and with their keys and values, are these.
    leverage.sources, leverage.controls = leverage.truths, (leverage.controls[1],) * 2
    leverage.prompts = replace(leverage.prompts, source=leverage.prompts.target)
    plain, replaced = (leverage.row(name) for name in ("view by view", "true queries in place, all steps"))
    assert float((replaced - plain).abs().mean()) < 0.01
    assert float((plain - leverage.row("the true views through the VAE")).abs().mean()) < 0.02
    leverage.sources = [latents.flip(0) for latents in leverage.sources]
    other = leverage.row("true queries in place, all steps")
    assert float((other - plain).abs().mean()) > 0.03
    # What a young field renders is a part of them.
    own, rendered = leverage.targets(4, NARROW), leverage.targets(4, NARROW, by_field=True)
    assert (rendered.confidence > 0).all()
    assert (rendered.confidence < 1).all()
    for layer, codes in own.codes.items():
        assert rendered.codes[layer].shape == codes.shape
        assert (codes - rendered.codes[layer]).norm() < codes.norm()


def test_half_of_the_views_is_held_out(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", 0, 6, "tight", size=128)
    for every, held_out in ((1, 0), (2, 3)):
        split_capture(tmp_path / "scene", tmp_path / str(every), every)
        meta = json.loads((tmp_path / str(every) / "transforms.json").read_text())
        assert len(meta["val_filenames"]) == held_out
        assert len(meta["train_filenames"]) == (6 if every == 1 else 3)
        assert all((tmp_path / str(every) / frame["file_path"]).exists() for frame in meta["frames"])


def test_judge_trains_on_edited_views_where_they_see_the_edit_and_on_photos_elsewhere(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", 0, 6, "tight", size=128)
    fields = field_settings(2)
    assert isinstance(fields.pipeline, QNerfPipelineConfig)
    fields.pipeline.source_iterations = 2
    photos = read_views(tmp_path / "scene/images")
    judge = Judge(tmp_path / "scene", tmp_path / "judge", fields)
    for every in (1, 2):
        pipeline, _ = judge.train(torch.ones_like(photos), every)
        manager = pipeline.datamanager
        assert isinstance(manager, QNerfDataManager)
        images, seen = manager.targets.images, manager.targets.edit_masks
        assert images is not None and seen is not None
        assert seen.any() and not seen.all()
        assert (images[seen] == 255).all()
        names = sorted(path.name for path in (tmp_path / "scene/images").iterdir())
        expected = to_bytes(photos[[names.index(path.name) for path in manager.train_dataset.image_filenames]])
        assert torch.equal(images[~seen], expected[~seen])
        bundle, batch = manager.next_train(0)
        assert torch.equal(bundle.metadata["sees_edit"].squeeze(-1), batch["sees_edit"])
        view, row, column = batch["indices"].unbind(-1)
        assert torch.equal(batch["sees_edit"], seen[view, row, column])
        manager.set_targets(Targets())
        bundle, batch = manager.next_train(0)
        assert "sees_edit" not in bundle.metadata and "sees_edit" not in batch


@pytest.mark.parametrize("azimuth", [30.0, 150.0, 330.0])
def test_a_photo_hides_what_the_moved_arm_uncovers(azimuth: float) -> None:
    body = sample_body(torch.Generator().manual_seed(4))
    lowered, raised = Pose(r_arm_raise=10, r_arm_swing=20), Pose(r_arm_raise=120, r_arm_swing=20)
    view = orbit_camera(azimuth, 15, 3.9, 1.0), focal_length(128), (128, 128)
    assert not hidden_pixels(body, lowered, lowered, *view).any()
    before, after = render(body, lowered, *view), render(body, raised, *view)
    hidden = hidden_pixels(body, lowered, raised, *view)
    uncovered = torch.where(before.mask, before.depth, torch.inf) < after.depth - 0.01
    covered = after.depth < before.depth - 0.01
    assert uncovered.sum() > 50
    # All but the arm stands still: what is farther away than before is newly seen, what is where it was is not, but for
    # the few points of the shoulder that turn with the arm.
    assert hidden[uncovered & ~covered].float().mean() > 0.98
    assert hidden[after.mask & ~uncovered & ~covered].float().mean() < 0.01
    # Of the raised arm, the photo shows the side that it showed before it was raised, and no more.
    assert 0.02 < hidden[covered].float().mean() < 0.9


def test_kernel_distance_grows_with_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    distances = [kernel_distance(images, (images - shift).clamp(0, 1)) for shift in (0.0, 0.2, 0.6)]
    assert distances[0] < distances[1] < distances[2]


def test_table_takes_means_over_the_seeds_that_are_done(tmp_path: Path) -> None:
    for seed, method, value in ((0, "a", 10.0), (1, "a", 20.0), (0, "b", 17.0)):
        write_json(tmp_path / f"{seed}/{method}/figures.json", {"novel, union, dB": value})
    lines = write_table(tmp_path, "a machine").splitlines()
    assert lines[2:] == ["| b | 1 | 17.000 |", "| a | 2 | 15.000 |", "", "a machine"]
    assert (tmp_path / "novel.png").exists()


@pytest.mark.release
def test_real_models_are_shown_and_measured(tmp_path: Path) -> None:
    capture, editor = small_capture(tmp_path, num_views=10), save_tiny_set(tmp_path)
    config = real_models.Benchmark(
        data=capture,
        method="qnerf-edit-tiny",
        model=str(editor),
        controlnet=(str(editor / "controlnet"),),
        views=2,
        out=tmp_path / "out",
        options=tuple(SHORT),
    )
    real_models.main(config)
    assert Image.open(tmp_path / "out/sheet.png").width > 100
    table = (tmp_path / "out/table.md").read_text()
    for figure in ("editing, min", "peak memory, GiB", "held-out edited views, PSNR", "queries explained by the field"):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {figure} |"))
        assert float(line.split("|")[2]) >= -1e3
    # Views that are edited one by one have no queries in a field.
    assert line.split("|")[3].strip() == "-"


def toy_gpu(tmp_path: Path, run_views: int) -> gpu.Benchmark:
    return gpu.Benchmark(
        size="tiny",
        device="cpu",
        rays=(64,),
        chunks=(1,),
        resolution=64,
        repeats=1,
        run_views=run_views,
        out=tmp_path / "gpu",
        options=tuple(SHORT),
    )


def test_costs_on_a_gpu_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gpu.ENCODINGS, "ours, compiled")  # takes half a minute
    gpu.main(toy_gpu(tmp_path, run_views=0))
    results = json.loads((tmp_path / "gpu/results.json").read_text())
    stock, ours = results["field"]
    assert [stock["encoding"], ours["encoding"]] == list(gpu.ENCODINGS)
    # Fewer operations are fewer kernels on a GPU.
    assert ours["kernels"] < 0.8 * stock["kernels"]
    assert all(row["ms a step"] > 0 for row in results["field"])
    chosen = [row for row in results["editing"] if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["an edit of a view"] > 0


@pytest.mark.release  # tracing takes half a minute
def test_what_compiling_gives_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    rows = gpu.measure_compiled(toy_gpu(tmp_path, run_views=0))
    assert [row["part"] for row in rows] == ["inversion step", "look-ahead step"]
    assert counter.frame_count == 2  # plain passes are not compiled
    assert all(row["times"] > 0 and row["compiling, s"] > row["compiled, s"] > 0 for row in rows)


@pytest.mark.release  # whole runs
def test_a_whole_run_is_measured(tmp_path: Path) -> None:
    config = toy_gpu(tmp_path, run_views=4)
    found = gpu.measure_run(config)
    assert found["whole run"] > sum(found[stage] for stage in found if "field" in stage) > 0
    assert found["peak, GiB"] > 0 and len(list((config.out / "edited").rglob("*.*"))) > 1


@pytest.mark.release  # whole runs
def test_growth_is_measured(tmp_path: Path) -> None:
    config = gpu_scale.Benchmark(
        method="qnerf-edit-tiny", views=(3, 6), pixels=(64,), out=tmp_path / "scale", options=tuple(SHORT)
    )
    gpu_scale.main(config)
    few, many = json.loads((config.out / "results.json").read_text())["cells"]
    assert (few["views"], many["views"]) == (3, 6) and few["editing, s a view"] > 0
    assert many["edit folder, GiB"] > few["edit folder, GiB"] > 0
