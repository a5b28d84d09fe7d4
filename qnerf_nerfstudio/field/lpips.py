"""LPIPS."""

from collections.abc import Callable
from typing import Any
from urllib.error import URLError

from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor


class LazyLpips:
    """LPIPS that loads its network at first use, and says so once where its weights cannot be had."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs
        self.network: Callable[[Tensor, Tensor], Tensor] | None = None
        self.failed = False

    def __call__(self, truth: Tensor, image: Tensor) -> Tensor:
        """LPIPS of image batches in [0, 1]; NaN where the weights cannot be had."""
        if self.network is None and not self.failed:
            from torchmetrics.image import lpip

            try:
                self.network = lpip.LearnedPerceptualImagePatchSimilarity(**self.kwargs).to(image.device)
            except (URLError, OSError) as error:
                self.failed = True
                CONSOLE.print(f"LPIPS is left out: its weights cannot be downloaded ({error}).", style="yellow")
        return image.new_tensor(float("nan")) if self.network is None else self.network(truth, image)
