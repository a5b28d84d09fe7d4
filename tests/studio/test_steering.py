"""Requests from the viewer while an edit runs; what lies outside the region stays."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.cameras import SCENE_BOX
from helpers.captures import small_capture
from helpers.commands import RUN, train
from helpers.edits import short_edit
from helpers.second_device import second_device
from nerfstudio.scripts import train as train_script
from torch import Tensor

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.controls.projection import project_edit
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.run import stages
from qnerf_nerfstudio.run.plan import Task
from qnerf_nerfstudio.run.progress import Status
from qnerf_nerfstudio.run.run import EditRun
from qnerf_nerfstudio.studio.panel import EditPanel, PromptButton, Request
from qnerf_nerfstudio.studio.pipeline import QNerfPipeline
from qnerf_nerfstudio.studio.trainer import QNerfTrainer
from qnerf_nerfstudio.toy.training.evaluate import load_trained


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 views, which are one chunk."""
    return small_capture(tmp_path_factory.mktemp("steering"), num_views=8)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 views, for what does not depend on their number."""
    return small_capture(tmp_path_factory.mktemp("few"), num_views=4)


def steered(
    capture: Path,
    editor: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests: dict[int, Request],
    device: str = "cpu",
) -> Path:
    """A short edit in this process, with requests at some training steps; the run's folder."""
    config = short_edit(capture, out, 6, editor)
    config.machine.device_type = device
    if (out / RUN / "nerfstudio_models").exists():
        config.load_dir = out / RUN / "nerfstudio_models"
    steps = iter(range(10_000))
    monkeypatch.setattr(EditPanel, "take_request", lambda self: requests.get(next(steps)))
    with second_device() if device == "cuda" else nullcontext():
        train_script.main(config)
    return out / RUN


@pytest.mark.release
def test_an_edit_is_finished_early_on_the_second_device(
    capture: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = steered(capture, tiny_editor, tmp_path, monkeypatch, {10: Request("finish")}, "cuda")
    assert len(list((run / "edit/images").glob("*.png"))) == 8


def test_an_edit_is_finished_early_and_made_again(
    capture: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # 8 views are one chunk: steps 0 to 5 invert, 6 to 8 train on the photos, 9 to 10 edit two timesteps.
    requests = {
        2: Request("finish"),
        10: Request("finish"),
        15: Request("again", prompt="a figure with a green shirt", guidance_scale=2.0),
    }
    run = steered(capture, tiny_editor, tmp_path, monkeypatch, requests)
    manifest = json.loads((run / "edit/manifest.json").read_text())
    # The first request comes too early: nothing is edited yet.
    assert [(each["kind"], each["step"]) for each in manifest["revisions"]] == [("finish", 10), ("again", 15)]
    assert manifest["attempts"][1] == {"prompt": "a figure with a green shirt", "guidance_scale": 2.0}
    # The views of the first attempt stay, those of the second one took all timesteps.
    early, late = (
        [load_images([path])[0] for path in sorted((run / f"edit/{name}").glob("*.png"))]
        for name in ("images-0", "images")
    )
    assert len(early) == len(late) == 8
    assert all((a - b).abs().mean() > 1e-3 for a, b in zip(early, late, strict=True))
    assert (run / "edit/latents/edited-1/0006-000.safetensors").exists()
    assert not (run / "edit/latents/edited-0/0002-000.safetensors").exists()
    checkpoint = next((run / "nerfstudio_models").glob("*.ckpt"))
    # Then 6 edited timesteps, 3 looked ahead, 2 extractions and fits, the decoding and the final field.
    assert int(checkpoint.stem.removeprefix("step-")) + 1 == 15 + 6 + 3 + 2 + 2 * 4 + 1 + 8
    # A run that resumes takes the revisions up: this one has nothing left to do, and keeps what it has.
    with pytest.raises(SystemExit):
        steered(capture, tiny_editor, tmp_path, monkeypatch, {})
    assert "is finished" in capsys.readouterr().out.replace("\n", " ")
    assert checkpoint.exists()


def test_training_on_the_photos_ends_where_held_out_photos_gain_nothing(
    capture: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_edit(capture, tmp_path, 6, tiny_editor)
    config.pipeline.source_iterations = 20
    for name, value in (("JUDGED_EVERY", 4), ("PATIENCE", 8), ("WORTHWHILE", 100.0)):
        monkeypatch.setattr(stages, name, value)
    train_script.main(config)
    # Steps 0 to 5 invert. The field is judged before its steps 4, 8 and 12, when 8 steps have gained no 100 dB.
    manifest = json.loads((tmp_path / RUN / "edit/manifest.json").read_text())
    assert [(each["kind"], each["step"]) for each in manifest["revisions"]] == [("photos", 6 + 13)]
    quality = json.loads((tmp_path / RUN / "edit/quality.json").read_text())
    assert list(quality) == ["10", "14", "18"] and all(0 < value < 60 for value in quality.values())
    checkpoint = next((tmp_path / RUN / "nerfstudio_models").glob("*.ckpt"))
    # nerfstudio's loop sees one step later that it is to stop.
    assert int(checkpoint.stem.removeprefix("step-")) == 6 + 13 + 6 + 3 + 2 + 2 * 4 + 1 + 8
    assert len(list((tmp_path / RUN / "edit/images").iterdir())) == 8


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.release)])
def test_the_viewer_shows_the_scene_that_is_chosen(
    few: Path, tiny_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    config = short_edit(few, tmp_path, 6, tiny_editor)
    config.machine.device_type = device
    config.pipeline.start, config.pipeline.edit = "carried", few / "edit-boxes.json"
    seen: dict[str, list[dict[str, Tensor]]] = {}
    show = QNerfPipeline._run_slice

    def look(pipeline: QNerfPipeline, run: EditRun, trainer: QNerfTrainer, step: int) -> None:
        show(pipeline, run, trainer, step)
        item, task = run.plan.at(step), run.plan.at(step).task
        if task not in (Task.SOURCE, Task.FIT, Task.FINAL) or task in seen or (task == Task.FINAL and not item.last):
            return
        panel, model, shown = pipeline.editing, pipeline._qnerf, seen.setdefault(task, [])
        before = {name: value.clone() for name, value in model.named_parameters()}
        for scene in ("captured", "carried", "edited"):
            panel.chosen_scene.default_value = scene
            panel.show_scene()
            panel.show(Status(1, 2, "a stage", "", 0.5, None, None))
            assert ("trained" in panel.activity.content) == (scene == "carried" and task == Task.SOURCE)
            pipeline.eval()
            outputs = model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[:1])
            shown.append({name: value.cpu() for name, value in outputs.items()})
            pipeline.train()
        assert all(torch.equal(before[name], value) for name, value in model.named_parameters())

    monkeypatch.setattr(QNerfPipeline, "_run_slice", look)
    with second_device() if device == "cuda" else nullcontext():
        train_script.main(config)
    (captured, carried, edited), (captured_late, carried_late, edited_late) = seen["fit"], seen["final"]
    # The field has learned carried views for a few steps by then.
    assert not torch.equal(captured["rgb"], edited["rgb"])
    assert not torch.equal(captured["rgb"], carried["rgb"])
    assert "certainty" in carried and "certainty" not in captured
    # How nerfacto places samples on rays changes while a stage is young.
    torch.testing.assert_close(captured_late["rgb"], captured["rgb"], atol=0.02, rtol=0)
    torch.testing.assert_close(carried_late["rgb"], carried["rgb"], atol=0.02, rtol=0)
    assert (edited["rgb"] - edited_late["rgb"]).abs().mean() > 0.01


def test_a_button_is_answered_while_a_render_holds_the_lock() -> None:
    pressed, listeners = [], []
    button = PromptButton("Pause editing", lambda: pressed.append(True))
    handle = SimpleNamespace(on_click=listeners.append)
    button.install(SimpleNamespace(gui=SimpleNamespace(add_button=lambda **_: handle)))  # pyright: ignore
    # The viewer lets the hooks of its elements wait for the trainer's lock.
    button.cb_hook = lambda _: pytest.fail("would wait")
    for listener in listeners:
        listener(None)
    assert pressed


def test_nothing_leaks_out_of_the_region(few: Path, tiny_editor: Path, tmp_path: Path) -> None:
    document = json.loads((few / "edit.json").read_text())
    document["region"] = {"type": "sphere", "position": document["control"]["target"]["r_wrist"], "radius": 0.25}
    (tmp_path / "edit.json").write_text(json.dumps(document))
    read, edit = read_capture(few), load_edit(tmp_path / "edit.json")
    views, names = read.views(), read.names
    projected = project_edit(edit, few, views, names, read.num_train, read.to_scene, (64, 64), SCENE_BOX)
    masks, photos = projected.influence.masks, read.photos(range(4), (64, 64))
    assert masks is not None and 0.02 < masks.float().mean() < 0.5
    edited = {}
    for composite in ("True", "False"):
        options = ["--pipeline.edit", tmp_path / "edit.json", "--pipeline.composite", composite]
        folder = train(few, tmp_path / composite, tiny_editor, *options) / "edit/images"
        paths = [folder / f"{Path(name).stem}.png" for name in names]
        edited[composite] = torch.stack(load_images(paths)).movedim(-1, 1)
    outside = ~masks[:, None].expand_as(photos)
    assert torch.equal(edited["True"][outside], photos[outside])
    assert (edited["True"][~outside] != photos[~outside]).any()
    # Without compositing, what lies outside is what the VAE makes of the photo; its decoder looks 16 pixels far.
    far = -torch.nn.functional.max_pool2d(-outside.float(), 33, stride=1, padding=16) > 0
    editor = load_trained(tiny_editor, "cpu")
    round_trip = editor.decode(editor.encode(photos))
    assert far.any()
    assert (edited["False"] - photos)[far].abs().mean() <= (round_trip - photos)[far].abs().mean() + 1 / 255


@pytest.mark.parametrize("control", ["mesh", pytest.param("boxes", marks=pytest.mark.release)])
def test_solids_are_controls_as_skeletons_are(few: Path, tiny_editor: Path, tmp_path: Path, control: str) -> None:
    options = ["--pipeline.edit", few / f"edit-{control}.json", "--pipeline.consolidation", "none"]
    run = train(few, tmp_path, tiny_editor, *options) / "edit"
    drawn = load_images(sorted((run / "controls/target").glob("*.png")))
    assert len(drawn) == 4 and all(image.any() and (image[..., 0] == image[..., 2]).all() for image in drawn)
    photos, edited = (load_images(sorted(folder.glob("*.png"))) for folder in (few / "images", run / "images"))
    assert all((a - b).abs().mean() > 5e-3 for a, b in zip(photos, edited, strict=True))
