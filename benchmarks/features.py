"""KID on features that are at hand offline: those of the bundled VAE's encoder.

No figure of the literature is comparable with it; it tells recipes of one table apart.
"""

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from qnerf_nerfstudio.diffusion.bundled import BUNDLED_FOLDER


class EncoderFeatures(nn.Module):
    """Means and spreads over each image of the features before the VAE's last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(BUNDLED_FOLDER / "vae", torch_dtype=torch.float32).eval()
        self.num_features = 2 * self.vae.encoder.conv_norm_out.num_channels

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V F"]:
        """Features of images in [0, 1]."""
        found: list[Tensor] = []
        hook = self.vae.encoder.conv_norm_out.register_forward_hook(lambda _, __, output: found.append(output))
        self.vae.encode(images * 2 - 1)
        hook.remove()
        return torch.cat([found[0].mean(dim=(2, 3)), found[0].std(dim=(2, 3))], dim=1)


def kernel_distance(real: Float[Tensor, "V 3 H W"], edited: Float[Tensor, "V 3 H W"]) -> float:
    """KID (mean over subsets of half the views, cubic kernel) of edited against original views."""
    metric = KernelInceptionDistance(feature=EncoderFeatures(), subset_size=len(real) // 2, normalize=True)
    torch.manual_seed(0)  # draws the subsets
    metric.update(real, real=True)
    metric.update(edited, real=False)
    return float(metric.compute()[0])
