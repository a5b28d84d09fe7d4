"""What a run of an edit is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qnerf_nerfstudio.diffusion.config import EditorConfig
from qnerf_nerfstudio.run.plan import Consolidation, Editing, PlanConfig, Start


@dataclass
class RunSettings:
    """Settings of a run; the pipeline's options are these. docs/options.md gives the reasons of the defaults."""

    editor: EditorConfig = field(default_factory=EditorConfig)
    """The diffusion models and how they are sampled."""
    edit: Path | None = None
    """The edit; by default edit.json in the data folder."""
    outside_paths: bool = False
    """Let edit.json and transforms.json name files outside of their own folders."""
    consolidation: Consolidation = "one-shot"
    """How views are made to agree: "one-shot" (one early fit), "progressive" (interval by interval), or "none"."""
    editing: Editing = "diffusion"
    """How views are edited: by the "diffusion" models, or only "carried" along the control's motion, without them."""
    start: Start = "carried"
    """Noise that views begin from: that of "carried" views, where the control is a motion, or of "inverted" photos."""
    tau: int = 10
    """Timesteps of an interval's guided part and of its look-ahead."""
    stop: float = 0.8
    """No interval starts after this share of the timesteps."""
    chunk: int | Literal["auto"] = "auto"
    """Views that go through the diffusion models at once; "auto" takes as many as fit, at most 16 (4 on a CPU)."""
    source_iterations: int = 2000
    """Training steps on the source photos alone, at most; fewer once held-out photos gain nothing."""
    fit_iterations: int = 500
    """Training steps of each QNeRF fit."""
    final_iterations: int = 15000
    """Training steps of the final RGB field."""
    lift_controls: bool = True
    """Redraw control images of kind "openpose" from the one 3D skeleton that most views agree on."""
    warm_start: bool = True
    """Start fits and the final field from what the field learned before, instead of afresh."""
    region: bool = True
    """Restrict the edit to edit.json's region and masks, by default the visual hull of what the control changes."""
    composite: bool = True
    """Keep the photos' own pixels outside the region in the edited views."""
    feather: float = 0.04
    """Width of the seam between edited view and photo, as a share of the image's shorter side."""
    keep_unchanged: float = 0.06
    """Edited views keep the carried view's pixels where the editor changes colours by less, 0 to 1; 0: nowhere."""
    relight: bool = True
    """Shade matter that turns by the light of the capture, where the field of the photos tells it."""
    keep_latents: bool = True
    """Keep the latents and queries of a finished run, which nothing but a look at them needs."""
    deterministic: bool = False
    """Let a GPU sum in a fixed order, which is slower, so that equal seeds give equal runs; a CPU always does."""

    def plan_config(self, num_views: int, ranks: int, moves: bool, chunk: int) -> PlanConfig:
        """What the plan of a run depends on.

        Args:
            num_views: Number of views.
            ranks: Number of processes.
            moves: Whether the control states a motion.
            chunk: Views that go through the diffusion models at once, at most.

        Raises:
            ValueError: A setting is out of its range; the message begins with its name.
        """
        self.editor.validate()
        if not 0 <= self.feather <= 0.5:
            raise ValueError(f"feather is {self.feather}; expected 0 to 0.5")
        if not 0 <= self.keep_unchanged <= 1:
            raise ValueError(f"keep_unchanged is {self.keep_unchanged}; expected 0 to 1")
        names = ("tau", "source_iterations", "fit_iterations", "final_iterations", "consolidation", "editing", "stop")
        # No process is to stay without views while another one has a whole chunk of them.
        chunk = min(chunk, -(-num_views // ranks))
        shared = {name: getattr(self, name) for name in names}
        return PlanConfig(
            num_views=num_views,
            num_steps=self.editor.num_steps,
            chunk=chunk,
            start=self.start if moves else "inverted",
            ranks=ranks,
            **shared,
        )
