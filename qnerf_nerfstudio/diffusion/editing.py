"""An edit of a few images from start to end, view by view."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.diffusion.conditions import SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.text import Prompts


@dataclass(frozen=True)
class InvertedImages:
    """Images with their trajectory, which edits of them begin from."""

    trajectory: list[Float[Tensor, "V C h w"]]
    """Their latents, noisiest first."""
    controls: Float[Tensor, "V K H W"]
    """Their control images."""


def invert_images(
    editor: ControlNetEditor,
    images: Float[Tensor, "V 3 H W"],
    controls: Float[Tensor, "V K H W"],
    prompts: Prompts,
) -> InvertedImages:
    """Invert images in [0, 1] under their own prompt and control images in [0, 1]."""
    return InvertedImages(editor.invert(editor.encode(images), prompts.source, controls), controls)


def edit_images(
    editor: ControlNetEditor,
    inverted: InvertedImages,
    controls: Float[Tensor, "V K H W"],
    prompts: Prompts,
    generator: torch.Generator | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Float[Tensor, "V 3 H W"]:
    """Edit inverted images by other control images, each by itself.

    Args:
        editor: The models.
        inverted: The images.
        controls: Control images of the edit in [0, 1].
        prompts: Encoded prompts.
        generator: Draws the noise that all images begin from; None: their own, inverted.
        progress: Called after every timestep.

    Returns:
        The edited images in [0, 1].
    """
    latents = inverted.trajectory[0]
    if generator is not None:
        latents = torch.randn(latents.shape[1:], generator=generator).to(latents).expand_as(latents)
    for index in range(editor.num_steps):
        source = SourceBranch(inverted.trajectory[index], inverted.controls)
        latents = editor.denoise_step(latents, index, prompts, controls, source)
        progress()
    return editor.decode(latents)
