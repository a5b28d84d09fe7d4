"""What somebody at the viewer asks for while an edit runs, and what stays outside its region."""

import copy
import json
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts import train as train_script
from test_nerfstudio import SHORT, command

from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.controls.projection import project_edit
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.run.plan import Plan, PlanConfig, Task
from qnerf_nerfstudio.run.progress import Progress
from qnerf_nerfstudio.studio.panel import EditPanel, Request
from qnerf_nerfstudio.toy.capture import CaptureConfig, write_capture
from qnerf_nerfstudio.toy.training.evaluate import load_trained

BUNDLED = Path(__file__).resolve().parents[1] / "qnerf_nerfstudio/editor/tiny"
BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steering") / "scene"
    write_capture(out, CaptureConfig(seed=0, views=8, novel_views=0, size=64))
    return out


def steered(capture: Path, out: Path, monkeypatch: pytest.MonkeyPatch, requests: dict[int, Request]) -> Path:
    """A short edit in this process, with requests at some training steps; the run's folder."""
    config = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = capture, out, "tensorboard"
    config.experiment_name, config.timestamp = "e", "t"
    pipeline = config.pipeline
    pipeline.editor.num_steps, pipeline.editor.resolution, pipeline.tau = 6, 64, 2
    pipeline.source_iterations, pipeline.fit_iterations, pipeline.final_iterations = 3, 4, 8
    pipeline.datamanager.train_num_rays_per_batch = 64
    if (out / "e/qnerf-edit-tiny/t/nerfstudio_models").exists():
        config.load_dir = out / "e/qnerf-edit-tiny/t/nerfstudio_models"
    steps = iter(range(10_000))
    monkeypatch.setattr(EditPanel, "take_request", lambda self: requests.get(next(steps)))
    train_script.main(config)
    return out / "e/qnerf-edit-tiny/t"


def test_an_edit_is_finished_early_and_made_again(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # 8 views are one chunk: steps 0 to 5 invert, 6 to 8 train on the photos, 9 to 10 edit two timesteps.
    requests = {
        2: Request("finish"),
        10: Request("finish"),
        15: Request("again", prompt="a figure with a green shirt", guidance_scale=2.0),
    }
    run = steered(capture, tmp_path, monkeypatch, requests)
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
        steered(capture, tmp_path, monkeypatch, {})
    assert "is finished" in capsys.readouterr().out.replace("\n", " ")
    assert checkpoint.exists()


def test_nothing_leaks_out_of_the_region(capture: Path, tmp_path: Path) -> None:
    document = json.loads((capture / "edit.json").read_text())
    document["region"] = {"type": "sphere", "position": document["control"]["target"]["r_wrist"], "radius": 0.25}
    (tmp_path / "edit.json").write_text(json.dumps(document))
    manager = read_capture(capture)
    assert isinstance(manager, QNerfDataManager)
    projected = project_edit(load_edit(tmp_path / "edit.json"), capture, manager, (64, 64), BOX)
    masks, photos = projected.influence.masks, manager.photos(range(8), (64, 64))
    assert masks is not None and 0.02 < masks.float().mean() < 0.5
    edited = {}
    for composite in ("True", "False"):
        where = ["--output-dir", tmp_path / composite, "--experiment-name", "e", "--timestamp", "t"]
        options = ["--pipeline.edit", tmp_path / "edit.json", "--pipeline.composite", composite]
        command("ns-train", "qnerf-edit-tiny", "--data", capture, *where, *map(str, options), *SHORT)
        folder = tmp_path / composite / "e/qnerf-edit-tiny/t/edit/images"
        paths = [folder / f"{Path(name).stem}.png" for name in projected.names]
        edited[composite] = torch.stack(load_images(paths)).movedim(-1, 1)
    outside = ~masks[:, None].expand_as(photos)
    assert torch.equal(edited["True"][outside], photos[outside])
    assert (edited["True"][~outside] != photos[~outside]).any()
    # Without compositing, what lies outside is what the VAE makes of the photo; its decoder looks 16 pixels far.
    far = -torch.nn.functional.max_pool2d(-outside.float(), 33, stride=1, padding=16) > 0
    editor = load_trained(BUNDLED, "cpu")
    round_trip = editor.decode(editor.encode(photos))
    assert far.any()
    assert (edited["False"] - photos)[far].abs().mean() <= (round_trip - photos)[far].abs().mean() + 1 / 255


@pytest.mark.parametrize("control", ["mesh", "boxes"])
def test_solids_are_controls_as_skeletons_are(capture: Path, tmp_path: Path, control: str) -> None:
    where = ["--output-dir", tmp_path, "--experiment-name", "e", "--timestamp", "t"]
    edit = capture / f"edit-{control}.json"
    command("ns-train", "qnerf-edit-tiny", "--data", capture, *where, "--pipeline.edit", edit, *SHORT)
    run = tmp_path / "e/qnerf-edit-tiny/t/edit"
    drawn = load_images(sorted((run / "controls/target").glob("*.png")))
    assert len(drawn) == 8 and all(image.any() and (image[..., 0] == image[..., 2]).all() for image in drawn)
    photos, edited = (load_images(sorted(folder.glob("*.png"))) for folder in (capture / "images", run / "images"))
    assert all((a - b).abs().mean() > 5e-3 for a, b in zip(photos, edited, strict=True))


def test_progress_tells_what_remains() -> None:
    plan = Plan(PlanConfig(views=2, num_steps=4, tau=2, chunk=2, source_iterations=6, final_iterations=10))
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    cost = {task: 1.0 if task in (Task.SOURCE, Task.FIT, Task.FINAL) else 3.0 for task in Task}
    total = sum(cost[plan.at(step).task] for step in range(plan.total))
    for step in range(plan.total):
        status = progress.step(plan, step)
        if step > 5:
            assert status.left == pytest.approx(total - now[0])
        now[0] += cost[plan.at(step).task]
    assert status.stage == status.stages == len(plan.stages)
    progress.finish()
    assert sum(progress.seconds.values()) == pytest.approx(total)
    assert "stage 1 of" in str(Progress().step(plan, 0))
