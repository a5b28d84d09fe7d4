"""What perfect queries would give: the true edited views' own queries in the place of rendered ones.

    python benchmarks/leverage.py --setting loose --seeds 7 1 2 4

The true edited views of a procedural capture are inverted under the target control, and their queries are taken at
every timestep. Edited views begin from their photos' noise with the photos' keys and values, and get these queries in
several ways; beside them stand what needs no queries, and consolidation by the field's queries alone, run by ns-train.
Figures are of edited views, in the union of silhouettes. Rows that are done are read back.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from baselines import invert
from jaxtyping import Float
from recipes import Method, Recipes, read_views
from rich.console import Console
from settings import Setting, field_settings, views_of, write_scene
from torch import Tensor

from qnerf_nerfstudio.common.files import write_json
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.diffusion.attention import AttentionState
from qnerf_nerfstudio.diffusion.conditions import QueryTargets, SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.loading import load_editor
from qnerf_nerfstudio.diffusion.queries import CodecFit, QueryMaps
from qnerf_nerfstudio.diffusion.text import Prompts
from qnerf_nerfstudio.edit.reading import load_edit
from qnerf_nerfstudio.methods import qnerf_edit_tiny
from qnerf_nerfstudio.toy.scoring import psnr
from qnerf_nerfstudio.toy.truth import load_truth

Row = Literal[
    "view by view",
    "true queries in place, steps 4 to 12",
    "true queries in place, all steps",
    "true queries in place, 12 channels, all steps",
    "true queries blended, all steps",
    "guided by true queries, 0.05, all steps",
    "guided by true queries, 0.02, all steps",
    "the field's queries in place",
    "guided by the field's queries",
    "drawn to the true views by half",
    "from the true views' noise",
    "the true views through the VAE",
]
WIDE = 10_000
"""More code channels than any layer has: codes hold all of a query."""
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


@dataclass
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
    settings: Any = field(default_factory=lambda: qnerf_edit_tiny.config.pipeline)
    """Settings of the edit."""

    @cached_property
    def editor(self) -> ControlNetEditor:
        """The bundled editor."""
        return load_editor(self.settings.editor, "cpu")

    @cached_property
    def chosen(self) -> Tensor:
        """Indices of the views."""
        return torch.linspace(0, len(self._names) - 1, self.count).round().long()

    @cached_property
    def _names(self) -> list[str]:
        return load_truth(self.capture, "train").names

    @cached_property
    def prompts(self) -> Prompts:
        """Encoded prompts."""
        edit = load_edit(self.capture / "edit.json")
        return self.editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)

    @cached_property
    def controls(self) -> tuple[Tensor, Tensor]:
        """Source and target control images."""
        views, edit = views_of(self.capture), load_edit(self.capture / "edit.json")
        drawn = control_images(edit, self.capture, views, self._names, torch.eye(4)[:3], views.size)
        return drawn[0][self.chosen], drawn[1][self.chosen]

    @cached_property
    def sources(self) -> list[Tensor]:
        """The photos' trajectory."""
        photos = read_views(self.capture / "images")[self.chosen]
        return invert(self.editor, self.prompts, photos, self.controls[0], self.count)

    @cached_property
    def truths(self) -> list[Tensor]:
        """The true edited views' trajectory, under the target prompt and control."""
        images = load_truth(self.capture, "train").images[self.chosen]
        prompts = replace(self.prompts, source=self.prompts.target)
        return invert(self.editor, prompts, images, self.controls[1], self.count)

    @torch.no_grad()
    def true_queries(self, step: int) -> QueryMaps:
        """The true edited views' query maps at a timestep."""
        captured: dict[str, Tensor] = {}
        state = AttentionState(captured=captured, stop_after_capture=True)
        self.editor._predict(self.truths[step], step, self.prompts.target, self.controls[1], state)
        return self.editor._to_maps(captured, self.truths[step])

    def targets(self, step: int, width: int) -> QueryTargets:
        """The true queries in a code of their own."""
        maps = self.true_queries(step)
        fit = CodecFit(width)
        fit.add(maps)
        codec = fit.codec()
        return QueryTargets(codec, codec.encode(maps), torch.ones(self.count))

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
            unlifted = ("--pipeline.start", "inverted", "--pipeline.lift-controls", "False")
            return recipe.edited_views(BY_FIELD[name], *unlifted)[self.chosen]
        if name == "the true views through the VAE":
            return self.editor.decode(self.truths[-1])
        if name == "from the true views' noise":
            return self.edit(lambda step: None, start=self.truths[0])
        if name == "drawn to the true views by half":
            drawn = {"render_weight": 0.5, "render_stop": 1.0}
            return self.edit(lambda step: replace(self.targets(step, 1), clean=self.truths[-1]), drawn)
        if name == "view by view":
            return self.edit(lambda step: None)
        steps = range(4, 12) if name.endswith("steps 4 to 12") else range(self.editor.num_steps)
        width = 12 if "12 channels" in name else WIDE
        if name.startswith("guided"):
            settings: dict[str, object] = {"guidance_strength": float(name.split(", ")[1])}
        else:
            settings = {"mode": "blend" if "blended" in name else "replace"}
        return self.edit(lambda step: self.targets(step, width) if step in steps else None, settings)


def main(config: Benchmark) -> None:
    """Fill the figures that are missing, then write the table."""
    console = Console()
    found: dict[Row, list[float]] = {}
    for seed in config.seeds:
        folder = config.out / config.setting / str(seed)
        if not (folder / "capture/done").exists():
            write_scene(folder / "capture", seed, config.captured_views, config.setting)
            (folder / "capture/done").touch()
        leverage = Leverage(folder / "capture", folder / "runs", seed, config.views)
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
