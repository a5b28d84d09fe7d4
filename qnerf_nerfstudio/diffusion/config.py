"""Settings of the editor. Imports neither diffusers nor transformers, so that `ns-*` commands stay fast."""

from dataclasses import dataclass
from typing import Literal

from qnerf_nerfstudio.common.errors import UserError


@dataclass
class EditorConfig:
    """A diffusers model set and how it is sampled. docs/options.md gives the reasons of the defaults."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Hub id, folder or .safetensors file of Stable Diffusion 1.x, 2.x or XL, or "bundled"."""
    controlnet: tuple[str, ...] = ("auto",)
    """Hub id, folder or file of each ControlNet, "bundled", or "auto": those that read the edit's control."""
    config: str | None = None
    """Folder of a model set without weights, whose settings a single file of --model is read with; else the hub's."""
    vae: str | None = None
    """Hub id, folder or file of a VAE instead of the model's own."""
    lora: str | None = None
    """Hub id, folder or file of LoRA weights, fused into the model before the run."""
    lora_scale: float = 1.0
    """Weight of the LoRA."""
    revision: str | None = None
    """Revision of the model on the hub."""
    variant: str | None = None
    """Variant of the weight files, such as "fp16"."""
    resolution: int = 512
    """Shorter side in pixels of the images that are edited; time and memory grow with its square."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the diffusion models. CPUs want float32."""
    device: str | None = None
    """Torch device of the diffusion models; by default that of the field."""
    vae_slicing: bool = True
    """The VAE takes one view at a time: less memory."""
    vae_tiling: bool = False
    """The VAE works in overlapping tiles: less memory for large images."""
    checkpointing: bool | Literal["auto"] = "auto"
    """Guidance computes activations twice instead of keeping them: less memory, slower; "auto": where it has to."""
    compile: bool = False
    """Compile passes without queries: pays on a GPU from some hundred views on; needs a C++ compiler."""
    query_blocks: Literal["first", "all"] = "first"
    """Whose queries are consolidated where an attention block holds several transformer blocks, as in SDXL."""
    num_steps: int = 50
    """Number of DDIM timesteps of inversion and of sampling."""
    guidance_scale: float = 5.0
    """Classifier-free guidance scale of the edited branch; 1 switches it off and halves its cost."""
    controlnet_scale: tuple[float, ...] = (1.0,)
    """Weight of each ControlNet's residuals, or one for all."""
    injection_start: float = 0.1
    """Appearance injection starts after this share of the timesteps."""
    inversion_iterations: int = 1
    """Fixed-point iterations per inversion step: more invert more exactly, at as much more cost."""
    mode: Literal["guidance", "blend", "replace"] = "guidance"
    """How rendered queries enter: "guidance" (a step on the latents), "blend", or "replace" (in the attention)."""
    guidance_strength: float = 0.05
    """Step length of guidance as a share of the latents' norm where queries are one deviation off."""
    blend_weight: float = 0.5
    """Share of the rendered queries in "blend"."""
    render_weight: float = 0.5
    """How far views are drawn to the field's renders, 0 to 1; 0 is the paper's method."""
    render_stop: float = 0.6
    """Views are drawn to renders during this share of the timesteps."""

    @property
    def stated_models(self) -> list[str]:
        """Hub ids, folders and files of all models."""
        return [each for each in (self.model, *self.controlnet, self.config, self.vae, self.lora) if each is not None]

    @property
    def branches(self) -> int:
        """Branches of a denoising step at most: source, unconditional and conditional."""
        return 1 + (self.guidance_scale > 1) + (self.injection_start < 1)

    @property
    def guides(self) -> bool:
        """Whether rendered queries enter by steps on the latents."""
        return self.mode == "guidance" and self.guidance_strength > 0

    def validate(self) -> None:
        """Check ranges.

        Raises:
            UserError: A field is out of its range; the message names it.
        """
        checks = {
            "resolution": (self.resolution >= 64, "at least 64"),
            "num_steps": (1 <= self.num_steps <= 1000, "1 to 1000"),
            "guidance_scale": (self.guidance_scale >= 1, "at least 1"),
            "controlnet_scale": (bool(self.controlnet_scale) and min(self.controlnet_scale) >= 0, "at least 0"),
            "injection_start": (0 <= self.injection_start <= 1, "0 to 1"),
            "inversion_iterations": (self.inversion_iterations >= 1, "at least 1"),
            "render_weight": (0 <= self.render_weight <= 1, "0 to 1"),
            "render_stop": (0 <= self.render_stop <= 1, "0 to 1"),
            "guidance_strength": (self.guidance_strength >= 0, "at least 0"),
            "blend_weight": (0 <= self.blend_weight <= 1, "0 to 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise UserError(f"editor.{name} is {getattr(self, name)}; expected {expected}")
