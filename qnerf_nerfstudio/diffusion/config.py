"""Settings of the editor. Imports neither diffusers nor transformers, so that `ns-*` commands stay fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "toy/weights"


@dataclass
class EditorConfig:
    """A diffusers model set and how it is sampled."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Hub id or local folder of a Stable Diffusion 1.x model set with safetensors, or "bundled"."""
    controlnet: str = "auto"
    """Hub id or local folder of the ControlNet with safetensors, "bundled", or "auto": ControlNet 1.1's for openpose,
    depth or normals, whichever edit.json's control is drawn as."""
    revision: str | None = None
    """Revision of the model on the hub."""
    variant: str | None = None
    """Variant of the weight files, such as "fp16"."""
    resolution: int = 512
    """Length in pixels of the shorter side of the images that are edited. The other one follows the photo's shape;
    both are rounded to multiples of the model's stride. Time and memory grow with its square."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the diffusion models. CPUs want float32."""
    device: str | None = None
    """Torch device of the diffusion models; by default that of the field."""
    vae_slicing: bool = True
    """The VAE takes one view at a time, so that its memory does not grow with the chunk."""
    vae_tiling: bool = False
    """The VAE works in overlapping tiles of the size that it was trained at: less memory for larger images."""
    checkpointing: bool = False
    """Guidance computes the UNet's activations twice in the place of keeping them: less memory, slower."""
    num_steps: int = 50
    """Number of DDIM timesteps, T, of inversion and of sampling."""
    guidance_scale: float = 5.0
    """Classifier-free guidance scale of the edited branch. 1 switches it off and halves its cost."""
    controlnet_scale: float = 1.0
    """Weight of the ControlNet's residuals."""
    injection_start: float = 0.1
    """Appearance injection starts after this share of the timesteps."""
    inversion_iterations: int = 1
    """Fixed-point iterations per inversion step: the cost of inversion grows with them, its round trip gets exact."""
    mode: Literal["guidance", "blend", "replace"] = "guidance"
    """How rendered queries enter: a gradient step on the latents (the paper's), mixed into the queries, or in their
    place."""
    guidance_strength: float = 0.05
    """Step length of guidance, alpha, as a share of the latents' norm where queries are one standard deviation off;
    it shrinks with that difference."""
    blend_weight: float = 0.5
    """Share of the rendered queries in "blend"."""
    render_weight: float = 0.5
    """How far the clean latents that a timestep predicts are drawn to those of the field's render of the view, 0 to 1,
    at the timesteps that are drawn to rendered queries. With the bundled editor edited views of eight captures
    gained 0.6 dB by it on the mean over views edited one by one under the same controls (1.3 to 1.9 in five, -1.0 and
    -2.9 in two), and agreed better by 4.8 dB; 0.8 did no better (benchmarks/README.md). 0 leaves consolidation to the
    queries alone, as in the paper."""
    render_stop: float = 0.6
    """Views are drawn to renders during this share of the timesteps; the later ones add detail that a field blurs, and
    that views do not share. The bundled editor, whose detail is small, gains by 1 (benchmarks/README.md)."""

    def validate(self) -> None:
        """Check ranges.

        Raises:
            ValueError: A field is out of its range; the message names it.
        """
        checks = {
            "resolution": (self.resolution >= 64, "at least 64"),
            "num_steps": (1 <= self.num_steps <= 1000, "1 to 1000"),
            "guidance_scale": (self.guidance_scale >= 1, "at least 1"),
            "controlnet_scale": (self.controlnet_scale >= 0, "at least 0"),
            "injection_start": (0 <= self.injection_start <= 1, "0 to 1"),
            "inversion_iterations": (self.inversion_iterations >= 1, "at least 1"),
            "render_weight": (0 <= self.render_weight <= 1, "0 to 1"),
            "render_stop": (0 <= self.render_stop <= 1, "0 to 1"),
            "guidance_strength": (self.guidance_strength >= 0, "at least 0"),
            "blend_weight": (0 <= self.blend_weight <= 1, "0 to 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"editor.{name} is {getattr(self, name)}; expected {expected}")
