"""The model card of a trained set: what is known of its training, and its figures."""

import json
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from qnerf_nerfstudio.common.files import atomic_write, write_json
from qnerf_nerfstudio.toy.training.checkpoint import Progress

RECORD = "training.json"
"""What --work keeps of the training for the card."""
CARD = "README.md"
PARTS = {
    "all": "UNet, ControlNet and text encoder together",
    "controlnet": "the ControlNet alone",
    "decoder": "the UNet's decoder alone",
}
"""Parts in words, see TrainEditorConfig.trained."""


@dataclass(frozen=True)
class Stage:
    """What one part of the training did."""

    earlier_steps: int
    """Steps of earlier calls with the same --work."""
    steps: int
    """Steps of the last call."""
    minutes: float
    """Time of all calls."""
    batch: int
    """Images or pairs in a step."""
    learning_rate: float
    """Its peak."""

    @classmethod
    def between(cls, before: Progress, after: Progress, batch: int, learning_rate: float) -> "Stage":
        """The stage that led from one progress to another."""
        return cls(before.steps, after.steps - before.steps, after.seconds / 60, batch, learning_rate)

    def line(self, unit: str) -> str:
        """The stage in words, `unit` is what a batch holds."""
        if not self.earlier_steps + self.steps:
            return "not trained"
        earlier = f" after {self.earlier_steps} in earlier calls" if self.earlier_steps else ""
        return (
            f"{self.steps} steps of {self.batch} {unit}{earlier}, learning rate up to {self.learning_rate:g}, "
            f"{self.minutes:.1f} minutes in all"
        )


@dataclass(frozen=True)
class Record:
    """What a card tells of a training."""

    image_size: int
    """Width and height of the images in pixels."""
    initial: str | None
    """Name of the model set that training started from; None for random weights."""
    before: str | None
    """The card of that set, where it has one."""
    vae: Stage
    """Training of the VAE."""
    denoiser: Stage
    """Training of the other parts."""
    trained: str
    """Which parts those were, see TrainEditorConfig."""
    followed: float
    """Share of the steps that taught to follow queries."""
    kept: float
    """Share of the weights that training started from in the exported ones."""
    pairs: int
    """Pairs that were rendered for the denoiser."""
    seed: int
    """Seed of pairs, weights, batches and noise."""
    machine: str
    """Where the last call ran."""

    def save(self, work: Path) -> None:
        """Write the record to --work."""
        write_json(work / RECORD, asdict(self))

    @classmethod
    def load(cls, work: Path) -> "Record | None":
        """The record in --work; None where nothing was trained."""
        path = work / RECORD
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        # Earlier records knew two choices of parts.
        document.setdefault("trained", "controlnet" if document.pop("control_only", False) else "all")
        document = {"followed": 0.0, "kept": 0.0, **document}
        stages = {key: Stage(**document.pop(key)) for key in ("vae", "denoiser")}
        return cls(**document, **stages)


def write_card(out: Path, record: Record, figures: dict[str, dict[str, float]], pairs: int, machine: str) -> None:
    """Write the card of the model set in `out`.

    Args:
        out: Folder of the set.
        record: What is known of its training.
        figures: Figures by name, by kind of control.
        pairs: Number of held-out pairs that they were measured on.
        machine: Where they were measured.
    """
    names = next(iter(figures.values()))
    rows = [f"| {name} | {' | '.join(f'{each[name]:.3f}' for each in figures.values())} |" for name in names]
    text = TEMPLATE.format(
        image_size=record.image_size,
        facts="\n".join(
            textwrap.fill("- " + fact, 120, subsequent_indent="  ") for fact in _facts(out, record, machine)
        ),
        pairs=pairs,
        kinds=" | ".join(figures),
        rule="---|" * len(figures),
        rows="\n".join(rows),
    )
    if record.before:
        text += f"\n## Before\n\nThe card of `{record.initial}`:\n\n{quoted(record.before)}\n"
    with atomic_write(out / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _facts(out: Path, record: Record, machine: str) -> list[str]:
    """What is known of the set, one sentence each."""
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors")) / 2**20
    start = "random weights"
    if record.initial is not None:
        start = f"the weights of another model set, `{record.initial}`, "
        start += "whose card is quoted below" if record.before else "which has no card"
    parts = PARTS[record.trained]
    followed = "; in {:g} of the steps the target's control is absent, loose or the source's, and its decoder gets the "
    followed += "queries of a pass that sees the right one"
    return [
        f"**Start**: {start}.",
        f"**Data**: about {record.pairs} rendered pairs (one body, one camera, two poses) of `qnerf_nerfstudio.toy`, "
        f"seed {record.seed}; captions name the colours of the figure and its room. Controls are skeletons in one half "
        "of the pairs, of which one half leaves out some limb bones, and depths of proxies in the other.",
        f"**Training of the VAE**: {record.vae.line('crops, half as many whole images in the last quarter')}.",
        f"**Training of {parts}**: {record.denoiser.line('pairs')}; v-prediction, moving average of the weights; in "
        "part of the steps the pair's own keys and values are injected into the decoder's self-attention, as the "
        f"method does{followed.format(record.followed) if record.followed else ''}"
        f"{f'; exported with {record.kept:g} of the weights it started from' if record.kept else ''}.",
        f"**Trained on**: {record.machine}; evaluated on {machine}.",
        f"**Size**: {size:.1f} MiB of half-precision safetensors.",
    ]


def quoted(card: str) -> str:
    """A card as a quotation, without its metadata."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
    return "\n".join(f"> {line}".rstrip() for line in body.splitlines())


TEMPLATE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
---
# An editor of the procedural domain of qnerf-nerfstudio

A small Stable-Diffusion-shaped model set (AutoencoderKL, CLIP text model, UNet with self-attention at every decoder
level, one ControlNet that reads OpenPose skeletons and depths of proxies) for {image_size}-pixel images of the
procedural articulated figure. It exists so that qnerf-edit runs end to end on a CPU without downloads: for the demo,
the tests and the benchmarks. It knows nothing of real photos.

{facts}

Figures over {pairs} pairs with bodies, poses and cameras that training never saw (20 DDIM timesteps, one view at a
time, source inverted and its appearance injected, control in the target pose):

| figure | {kinds} |
|---|{rule}
{rows}
"""
