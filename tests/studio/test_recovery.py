"""What goes wrong while a run is on its way: numbers, disks, and folders that are not what they were."""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from helpers.captures import small_capture
from helpers.commands import RUN
from helpers.edits import short_edit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nerfstudio.engine.optimizers import RAdamOptimizerConfig
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.scripts import train as train_script

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.field.look import Look
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.run import tensor_file
from qnerf_nerfstudio.run.inputs import contents
from qnerf_nerfstudio.run.manifest import read_manifest, refuse_other
from qnerf_nerfstudio.run.plan import Plan, PlanConfig
from qnerf_nerfstudio.studio.trainer import checkpoints


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of its own: a test changes a photo, and puts it back."""
    return small_capture(tmp_path_factory.mktemp("recovery"), num_views=6)


def few_steps(capture: Path, editor: Path, out: Path) -> Any:
    """6 views are one chunk: steps 0 to 3 invert, 4 to 6 train on the photos, 7 on edit."""
    config = short_edit(capture, out, 4, editor)
    config.steps_per_save = 5
    return config


@pytest.fixture(scope="module")
def stopped(capture: Path, tiny_editor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose disk was full at a checkpoint; its folder."""
    out = tmp_path_factory.mktemp("stopped")
    save = torch.save

    def full(document: Any, path: Any, **options: Any) -> None:
        if isinstance(path, Path) and document["step"] >= 10:
            path.write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
        save(document, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(SystemExit) as stop:
            train_script.main(few_steps(capture, tiny_editor, out))
    assert stop.value.code == 1
    return out / RUN


def printed(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().out.split())


def end_of(config: Any, code: int, capsys: pytest.CaptureFixture) -> str:
    """What a run says that ends with an exit code."""
    with pytest.raises(SystemExit) as stop:
        train_script.main(config)
    assert stop.value.code == code
    return printed(capsys)


def test_a_full_disk_leaves_the_checkpoint_before(stopped: Path) -> None:
    assert [path.name for path in checkpoints(stopped / "nerfstudio_models")] == ["step-000000005.ckpt"]
    assert sorted(path.name for path in stopped.iterdir() if path.is_dir()) == ["edit", "nerfstudio_models"]


def go_on(stopped: Path, capture: Path, editor: Path, change: Callable[[Any], object] = lambda config: None) -> None:
    config = few_steps(capture, editor, stopped.parents[2])
    config.load_dir = stopped / "nerfstudio_models"
    change(config)
    train_script.main(config)


def test_a_run_is_not_overwritten_by_another(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture
) -> None:
    before = contents(sorted(path for path in stopped.rglob("*") if path.is_file()))
    text = end_of(few_steps(capture, tiny_editor, stopped.parents[2]), 2, capsys)
    assert "already holds an edit; go on with it by --load-dir" in text
    assert contents(sorted(path for path in stopped.rglob("*") if path.is_file())) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: setattr(config.pipeline, "tau", 1), ["--pipeline.tau (was 2, is 1)"]),
        (lambda config: setattr(config.machine, "seed", 1), ["--machine.seed (was 42, is 1)"]),
        (
            lambda config: config.optimizers["fields"]["optimizer"].__dict__.update(lr=1.0),
            ["--optimizers.fields.optimizer.lr (was 0.01, is 1.0)"],
        ),
        (lambda config: setattr(config, "prompt", "a green figure"), ["edit.json: edit.prompt (was", "a green figure"]),
        (
            lambda config: config.optimizers["fields"].update(optimizer=RAdamOptimizerConfig(lr=1e-2, eps=1e-15)),
            ["--optimizers.fields.optimizer.-target (was torch.optim.adam.Adam, is torch.optim.radam.RAdam)"],
        ),
        (
            lambda config: setattr(config, "gradient_accumulation_steps", {"fields": 4}),
            ["--gradient-accumulation-steps.fields (was absent, is 4)"],
        ),
    ],
)
def test_changed_settings_are_refused_and_named(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture, change: Callable, words: list[str]
) -> None:
    before = (stopped / "config.yml").read_bytes()
    with pytest.raises(SystemExit) as stop:
        go_on(stopped, capture, tiny_editor, change)
    assert stop.value.code == 2
    text = printed(capsys)
    assert all(each in text for each in [*words, "was begun with other", "under another --timestamp"])
    assert (stopped / "config.yml").read_bytes() == before


def test_a_changed_photo_is_refused_and_named(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture
) -> None:
    photo, other = (capture / f"images/frame_0000{number}.png" for number in (2, 3))
    content = photo.read_bytes()
    try:
        photo.write_bytes(other.read_bytes())
        with pytest.raises(SystemExit):
            go_on(stopped, capture, tiny_editor)
    finally:
        photo.write_bytes(content)
    assert "was begun with other photos: frame_00002.png" in printed(capsys)


def test_changed_cameras_are_refused(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture
) -> None:
    path = capture / "transforms.json"
    content, meta = path.read_bytes(), json.loads(path.read_text())
    try:
        meta["frames"][0]["transform_matrix"][0][3] += 0.1
        path.write_text(json.dumps(meta))
        with pytest.raises(SystemExit):
            go_on(stopped, capture, tiny_editor)
    finally:
        path.write_bytes(content)
    assert "was begun with other files: transforms.json (was" in printed(capsys)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nerfstudio_models/step-000000005.ckpt", 2, "is damaged, the file ends early; remove it, and the run goes on"),
        ("edit/latents/source/0000-000.safetensors", 1, "is damaged (Error while deserializing header"),
        ("edit/curves.json", 2, "; remove it: an edit goes on without what it notes"),
    ],
)
def test_half_a_file_is_named(
    stopped: Path,
    capture: Path,
    tiny_editor: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    code: int,
    words: str,
) -> None:
    folder = tmp_path / RUN
    shutil.copytree(stopped, folder)
    path = folder / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SystemExit) as stop:
        go_on(folder, capture, tiny_editor)
    text = printed(capsys)
    assert stop.value.code == code and str(path) in text and words in text and "Traceback" not in text
    if code == 2:  # what it says to do helps
        path.unlink()
        go_on(folder, capture, tiny_editor)
        assert "edit finished" in printed(capsys)


def test_one_run_at_a_time_works_in_a_folder(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (stopped / "config.yml").read_bytes()
    with FileLock(stopped / "in_use.lock"), pytest.raises(SystemExit) as stop:
        go_on(stopped, capture, tiny_editor)
    assert stop.value.code == 2 and f"another ns-train edits in {stopped}" in printed(capsys)
    assert (stopped / "config.yml").read_bytes() == before


def test_a_checkpoint_holds_the_field_whatever_the_viewer_looks_at(
    capture: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = few_steps(capture, tiny_editor, tmp_path)
    config.pipeline.datamanager.data = capture
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    model = trainer.pipeline.model
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    rendering, saved = threading.Event(), threading.Event()

    def slow_render(*arguments: Any) -> dict:
        rendering.set()
        saved.wait(3)  # a checkpoint that waits for this render does not come meanwhile
        return {}

    monkeypatch.setattr(NerfactoModel, "get_outputs_for_camera", slow_render)
    model.look = Look({name: torch.zeros_like(value) for name, value in own.items()})
    viewer = threading.Thread(target=model.get_outputs_for_camera, args=(None,))
    viewer.start()
    rendering.wait()
    trainer.save_checkpoint(0)
    saved.set()
    viewer.join()
    state = torch.load(checkpoints(trainer.checkpoint_dir)[0], weights_only=True)["pipeline"]
    assert all(torch.equal(state[f"_model.{name}"], value) for name, value in own.items())


def test_another_versions_run_is_refused(
    stopped: Path, capture: Path, tiny_editor: Path, capsys: pytest.CaptureFixture
) -> None:
    path = stopped / "edit/manifest.json"
    manifest = json.loads(path.read_text())
    try:
        write_json(path, {**manifest, "version": "0.0.9"})
        with pytest.raises(SystemExit):
            go_on(stopped, capture, tiny_editor)
        assert "was begun by qnerf-nerfstudio 0.0.9" in printed(capsys)
        path.write_text(path.read_text()[:100])
        with pytest.raises(SystemExit):
            go_on(stopped, capture, tiny_editor)
        assert "manifest.json is damaged" in printed(capsys)
    finally:
        write_json(path, manifest)


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_manifest_is_refused_or_read(stopped: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever happens to the file, there is a sentence, or a manifest that a plan can be made of."""
    text = (stopped / "edit/manifest.json").read_text()
    document = json.loads(text)
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(junk)
    document["revisions"] = data.draw(
        junk | st.lists(st.fixed_dictionaries({"step": st.integers(-5, 60), "kind": st.sampled_from(["finish", "x"])}))
    )
    damaged = data.draw(st.sampled_from([json.dumps(document), text[: data.draw(st.integers(0, len(text)))]]))
    path = tmp_path / "manifest.json"
    path.write_text(damaged)
    try:
        manifest = read_manifest(path)
        refuse_other(tmp_path, manifest, manifest)
    except UserError as error:
        assert "manifest.json is damaged" in str(error) or "was begun by" in str(error)
        return
    with contextlib.suppress(ValueError):
        Plan(PlanConfig(num_views=6, num_steps=4, tau=2), manifest.revisions)


def test_an_old_checkpoint_that_does_not_fit_is_refused(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    config = yaml.load((stopped / "config.yml").read_text(), Loader=yaml.Loader)
    state = torch.load(checkpoints(stopped / "nerfstudio_models")[0], weights_only=True)["pipeline"]
    state["_model._extra_state"] = {**state["_model._extra_state"], "version": "0.0.9"}
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference")
    pipeline.load_pipeline(state, 5)
    state["_model.field.query_head.weight"] = state["_model.field.query_head.weight"][:7]
    with pytest.raises(SystemExit) as stop:
        pipeline.load_pipeline(state, 5)
    assert stop.value.code == 2
    assert "was made by qnerf-nerfstudio 0.0.9 and does not fit this version" in printed(capsys)


def test_a_slice_that_cannot_be_written_ends_the_run(
    capture: Path, tiny_editor: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tensor_file.save_file

    def full(tensors: dict, path: Path) -> None:
        if "0002-000" in path.name:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(tensor_file, "save_file", full)
    text = end_of(few_steps(capture, tiny_editor, tmp_path), 1, capsys)
    assert "cannot write" in text and "No space left on device" in text
    assert f"--load-dir {tmp_path / RUN}/nerfstudio_models" in text
    assert (tmp_path / RUN / "edit/latents/source/0003-000.safetensors").exists()


def test_an_output_that_cannot_be_written_is_named_at_once(
    capture: Path, tiny_editor: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").write_text("a file")
    assert "--output-dir: cannot write to" in end_of(few_steps(capture, tiny_editor, tmp_path / "out"), 2, capsys)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_state_saved(
    capture: Path, tiny_editor: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_dict = QNerfModel.get_loss_dict
    calls: list[bool] = []

    def broken(model: QNerfModel, *arguments: Any) -> dict[str, torch.Tensor]:
        losses = loss_dict(model, *arguments)
        if model.training and model.step + model.stage_start == 5:
            calls.append(torch.is_autocast_enabled("cpu"))
            losses["rgb_loss"] = losses["rgb_loss"] * float("nan")
        return losses

    monkeypatch.setattr(QNerfModel, "get_loss_dict", broken)
    text = end_of(few_steps(capture, tiny_editor, tmp_path), 1, capsys)
    assert len(calls) == 2
    assert "the field's rgb_loss is not finite at training step 5 (field on the source photos)" in text
    assert [path.name for path in checkpoints(tmp_path / RUN / "nerfstudio_models")] == ["step-000000004.ckpt"]
