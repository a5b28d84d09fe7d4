"""LPIPS, which downloads a network that most runs never use: loaded when it is first asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError

from torch import Tensor

from qnerf_nerfstudio.common.console import CONSOLE


class LazyLpips:
    """torchmetrics' LPIPS, loaded at first use; says so once where its weights cannot be had."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs
        self.network: Callable[[Tensor, Tensor], Tensor] | None = None
        self.failed = False

    def __call__(self, truth: Tensor, image: Tensor) -> Tensor:
        """LPIPS of image batches in [0, 1]; NaN where the weights cannot be had."""
        if self.network is None and not self.failed:
            from torchmetrics.image import lpip  # noqa: PLC0415 - transformers, out of ns-* start-up

            try:
                self.network = lpip.LearnedPerceptualImagePatchSimilarity(**self.kwargs).to(image.device)
            except (URLError, OSError) as error:
                self.failed = True
                CONSOLE.print(f"LPIPS is left out: its weights cannot be downloaded ({error}).", style="yellow")
        return image.new_tensor(float("nan")) if self.network is None else self.network(truth, image)


@contextmanager
def lazy_lpips() -> Iterator[None]:
    """Let nerfacto, which imports LPIPS where it builds it, build LazyLpips meanwhile."""
    from torchmetrics.image import lpip  # noqa: PLC0415 - transformers, out of ns-* start-up

    stock = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = LazyLpips
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = stock
