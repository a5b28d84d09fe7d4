"""What perfect queries would give: the true edited views' own queries in the place of rendered ones.

    python benchmarks/leverage.py --setting loose --seeds 7 1 2 4

The true edited views of a procedural capture are inverted under the target control, and their queries are taken at
every timestep. Edited views begin from their photos' noise with the photos' keys and values, and get these queries in
several ways. What a run can lose of them is taken apart: queries of one timestep stand for those of later ones; a field
that was trained on the true views renders them, as well as linear heads can say; and in a run of ns-train, the last
rows, the field fits queries of views that are not the true ones. Beside these stand what needs no queries. Figures are
of edited views, in the union of silhouettes. Rows that are done are read back.
"""

import copy
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from baselines import invert
from jaxtyping import Float
from recipes import Method, Recipes, read_views
from rich.console import Console
from settings import Setting, field_settings, views_of, write_scene
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views, transform_cameras
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.common.spread import evenly_spread
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.diffusion.attention import AttentionState
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.diffusion.queries import CodecFit, QueryMaps
from qnerf_nerfstudio.diffusion.text import Prompts
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.field.grids import fit_heads, relative_errors, render_codes
from qnerf_nerfstudio.field.model import QNerfModel
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig
from qnerf_nerfstudio.studio.plain import train_plain
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.truth import load_truth

Row = Literal[
    "view by view",
    "true queries in place, steps 4 to 12",
    "true queries in place, all steps",
    "true queries in place, 12 channels, all steps",
    "true queries blended, all steps",
    "true queries of step 8 in place, from step 4 on",
    "queries of a true field in place, all steps",
    "the field's queries in place",
    "guided by true queries, 0.05, all steps",
    "guided by true queries, 0.02, all steps",
    "guided by true queries of step 8, 0.05, from step 4 on",
    "guided by queries of a true field, 0.05, all steps",
    "guided by the field's queries",
    "drawn to the true views by half",
    "from the true views' noise",
    "the true views through the VAE",
]
WIDE = 10_000
"""More code channels than any layer has: codes hold all of a query."""
NARROW = 12
"""Code channels of a layer in a run of qnerf-edit-tiny."""


@dataclass(frozen=True)
class Use:
    """How queries enter, see EditorConfig."""

    settings: Mapping[str, object]
    """Settings of the editor that say how."""
    steps: range = range(1000)
    """Timesteps in which they do."""
    width: int = WIDE
    """Code channels of a layer."""
    taken: int | None = None
    """The timestep that they are taken at; None: each gets its own."""
    by_field: bool = False
    """Whether a field that was trained on the true views renders them."""


IN_PLACE, GUIDED = {"mode": "replace"}, {"guidance_strength": 0.05}
USES: dict[Row, Use] = {
    "true queries in place, steps 4 to 12": Use(IN_PLACE, range(4, 12)),
    "true queries in place, all steps": Use(IN_PLACE),
    "true queries in place, 12 channels, all steps": Use(IN_PLACE, width=NARROW),
    "true queries blended, all steps": Use({"mode": "blend"}),
    "true queries of step 8 in place, from step 4 on": Use(IN_PLACE, range(4, 1000), taken=8),
    "queries of a true field in place, all steps": Use(IN_PLACE, width=NARROW, by_field=True),
    "guided by true queries, 0.05, all steps": Use(GUIDED),
    "guided by true queries, 0.02, all steps": Use({"guidance_strength": 0.02}),
    "guided by true queries of step 8, 0.05, from step 4 on": Use(GUIDED, range(4, 1000), taken=8),
    "guided by queries of a true field, 0.05, all steps": Use(GUIDED, width=NARROW, by_field=True),
}
"""Rows of true queries."""
BY_FIELD: dict[Row, Method] = {
    "the field's queries in place": "progressive, replace",
    "guided by the field's queries": "progressive, guidance only",
}
"""Rows that are runs of the product, and the recipes they are."""


@dataclass
class Benchmark:
    """Measure what queries are worth on procedural captures."""

    setting: Setting = "loose"
    """Setting of the controls, see consistency.py; here nothing is lifted."""
    seeds: tuple[int, ...] = (7, 1, 2, 4)
    """Seeds of the captures."""
    rows: tuple[Row, ...] = get_args(Row)
    """Rows of the table."""
    views: int = 6
    """Views that are edited, evenly spread over the capture; runs of the product edit all, and are scored on these."""
    out: Path = Path("benchmarks/results/leverage")
    """Folder for figures and table."""
    captured_views: int = 24
    """Photos of a capture."""
    model: Path | None = None
    """Folder of a model set of `qnerf toy train` in the place of the bundled one; name another --out for it."""


@dataclass(eq=False)
class Leverage:
    """One capture."""

    capture: Path
    """The capture."""
    work: Path
    """Folder for runs of the product."""
    seed: int
    """Seed of the capture."""
    count: int
    """Number of views."""
    settings: QNerfPipelineConfig
    """Settings of the edit."""

    @cached_property
    def editor(self) -> ControlNetEditor:
        """The bundled editor."""
        return load_editor(self.settings.editor, "cpu")

    @cached_property
    def chosen(self) -> Tensor:
        """Indices of the views."""
        return torch.tensor(evenly_spread(self.count, len(self._names)))

    @cached_property
    def _names(self) -> list[str]:
        return load_truth(self.capture, "train").names

    @cached_property
    def prompts(self) -> Prompts:
        """Encoded prompts."""
        edit = load_edit(self.capture / "edit.json")
        return self.editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        views, edit = views_of(self.capture), load_edit(self.capture / "edit.json")
        return control_images(edit, self.capture, views, self._names, torch.eye(4)[:3], views.size)

    @cached_property
    def controls(self) -> tuple[Tensor, Tensor]:
        """Source and target control images."""
        return self._drawn[0][self.chosen], self._drawn[1][self.chosen]

    @cached_property
    def sources(self) -> list[Tensor]:
        """The photos' trajectory."""
        photos = read_views(self.capture / "images")[self.chosen]
        return invert(self.editor, self.prompts, photos, self.controls[0], self.count)

    @cached_property
    def all_truths(self) -> list[Tensor]:
        """The trajectory of all true edited views, under the target prompt and control."""
        images = load_truth(self.capture, "train").images
        prompts = replace(self.prompts, source=self.prompts.target)
        return invert(self.editor, prompts, images, self._drawn[1], self.count)

    @cached_property
    def truths(self) -> list[Tensor]:
        """The same of the chosen views."""
        return [latents[self.chosen] for latents in self.all_truths]

    @torch.no_grad()
    def true_queries(self, step: int) -> QueryMaps:
        """The query maps of all true edited views at a timestep."""
        parts: dict[str, list[Tensor]] = {}
        for latents, controls in zip(
            self.all_truths[step].split(self.count), self._drawn[1].split(self.count), strict=True
        ):
            captured: dict[str, Tensor] = {}
            state = AttentionState(captured=captured, stop_after_capture=True)
            self.editor._predict(latents, step, self.prompts.target, controls, state)
            for name, maps in self.editor._to_maps(captured, latents).items():
                parts.setdefault(name, []).append(maps)
        return {name: torch.cat(maps) for name, maps in parts.items()}

    @cached_property
    def true_field(self) -> tuple[QNerfModel, Views]:
        """A field of the true edited views, and their cameras in its scene."""
        truth, data = load_truth(self.capture, "train"), self.work / "truth"
        meta = json.loads((self.capture / "transforms.json").read_text())
        for frame, name in zip(meta["frames"], truth.names, strict=True):
            frame["file_path"] = str((self.capture / "truth/images" / name).resolve())
        write_json(data / "transforms.json", meta)
        steps = self.settings.source_iterations + self.settings.final_iterations
        pipeline = train_plain(data, self.work, field_settings(1), iterations=steps)
        assert isinstance(pipeline.model, QNerfModel)
        pipeline.eval()
        to_scene = dataset_to_scene(pipeline.datamanager.train_dataparser_outputs, data)  # pyright: ignore
        views = views_of(self.capture)
        return pipeline.model, replace(views, c2w=transform_cameras(views.c2w, to_scene))

    @lru_cache(maxsize=1000)  # noqa: B019 - lives as long as its capture
    def targets(self, step: int, width: int, by_field: bool = False) -> QueryTargets:
        """The true queries of the chosen views in a code of all views, or what the field of the true views makes of
        them."""
        maps = self.true_queries(step)
        fit = CodecFit(width)
        fit.add(maps)
        codec, confidence = fit.codec(), torch.ones(self.count)
        codes = codec.encode(maps)
        if by_field:
            (model, views), own = self.true_field, codes
            with torch.no_grad():
                weight = fit_heads(model, views, [(range(len(views)), own)], codec)
                model.field.query_head.weight.data[: len(weight)] = weight
                codes = render_codes(model, views, range(len(views)), codec)
            confidence = (1 - relative_errors(codes, own).square()).clamp_min(0)[self.chosen]
        return QueryTargets(codec, {name: code[self.chosen] for name, code in codes.items()}, confidence)

    def edit(
        self,
        targets: Callable[[int], QueryTargets | None],
        settings: Mapping[str, object] | None = None,
        start: Tensor | None = None,
    ) -> Float[Tensor, "V 3 H W"]:
        """Sample the edited views.

        Args:
            targets: What they are drawn to at a timestep.
            settings: Settings of the editor that differ.
            start: Latents to begin from; None: the photos' noise.
        """
        editor, before = self.editor, self.editor.config
        editor.config = replace(before, **{"render_weight": 0.0, "guidance_strength": 0.0, **(settings or {})})  # pyright: ignore
        latents = self.sources[0] if start is None else start
        for step in range(editor.num_steps):
            source = SourceBranch(self.sources[step], self.controls[0])
            latents = editor.denoise_step(latents, step, self.prompts, self.controls[1], source, targets(step))
        editor.config = before
        return editor.decode(latents)

    def row(self, name: Row) -> Float[Tensor, "V 3 H W"]:
        """The edited views of a row."""
        if name in BY_FIELD:
            recipe = Recipes(self.capture, self.work / name, field_settings(1), self.seed)
            editor = self.settings.editor
            return recipe.edited_views(
                BY_FIELD[name],
                *("--pipeline.start", "inverted", "--pipeline.lift-controls", "False"),
                *("--pipeline.editor.model", editor.model, "--pipeline.editor.controlnet", *editor.controlnet),
            )[self.chosen]
        if name == "the true views through the VAE":
            return self.editor.decode(self.truths[-1])
        if name == "from the true views' noise":
            return self.edit(lambda step: None, start=self.truths[0])
        if name == "drawn to the true views by half":
            drawn = {"render_weight": 0.5, "render_stop": 1.0}
            return self.edit(lambda step: replace(self.targets(0, 1), clean=self.truths[-1]), drawn)
        if name == "view by view":
            return self.edit(lambda step: None)
        use = USES[name]

        def targets(step: int) -> QueryTargets | None:
            taken = step if use.taken is None else use.taken
            return self.targets(taken, use.width, use.by_field) if step in use.steps else None

        return self.edit(targets, use.settings)


def main(config: Benchmark) -> None:
    """Fill the figures that are missing, then write the table."""
    console = Console()
    found: dict[Row, list[float]] = {}
    settings = copy.deepcopy(qnerf_edit_tiny.config.pipeline)
    assert isinstance(settings, QNerfPipelineConfig)
    if config.model is not None:
        model = config.model.resolve()
        settings.editor.model, settings.editor.controlnet = str(model), (str(model / "controlnet"),)
    for seed in config.seeds:
        folder = config.out / config.setting / str(seed)
        if not (folder / "capture/done").exists():
            write_scene(folder / "capture", seed, config.captured_views, config.setting)
            (folder / "capture/done").touch()
        leverage = Leverage(folder / "capture", folder / "runs", seed, config.views, settings)
        truth = load_truth(folder / "capture", "train")
        for name in config.rows:
            path = folder / f"{name}.json"
            if not path.exists():
                images, chosen = leverage.row(name), leverage.chosen
                write_json(path, {"dB": float(psnr(images, truth.images[chosen], truth.unions[chosen]).mean())})
            found.setdefault(name, []).append(json.loads(path.read_text())["dB"])
            console.print(f"seed {seed}, {name}: {found[name][-1]:.2f} dB", soft_wrap=True)
    lines = [f"| {config.setting} controls | " + " | ".join(map(str, config.seeds)) + " | mean |"]
    lines.append("|---" * (len(config.seeds) + 2) + "|")
    for name, values in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in (*values, sum(values) / len(values))) + " |")
    lines += ["", f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, {config.views} views"]
    (config.out / config.setting / "table.md").write_text("\n".join(lines) + "\n")
    console.print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
