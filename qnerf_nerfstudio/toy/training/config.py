"""Settings of `qnerf toy train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class TrainEditorConfig:
    """Train the bundled editor from the procedural domain."""

    out: Path = Path("editor-tiny")
    """Folder for the exported model set."""
    work: Path = Path("editor-training")
    """Folder for checkpoints, curves and sample sheets; a second call goes on from its checkpoints."""
    initial: Path | None = None
    """Model set whose weights training starts from, instead of random ones; --vae-steps 0 keeps its VAE."""
    evaluate: bool = False
    """Only measure the model set in --out; its card is written anew where --work tells how it was trained."""
    evaluate_pairs: int = 64
    """Number of held-out pairs to measure on."""
    trained: Literal["all", "controlnet", "decoder"] = "all"
    """UNet, ControlNet and text encoder; or the ControlNet or the UNet's decoder alone, the rest as in --initial."""
    vae_steps: int = 1200
    """Training steps of the VAE."""
    vae_batch: int = 8
    """Crops in a step of the VAE; in the last quarter of the steps, half as many whole images."""
    vae_lr: float = 4e-4
    """Peak learning rate of the VAE."""
    denoiser_steps: int = 4200
    """Training steps of UNet, ControlNet and text encoder."""
    minutes: float | None = None
    """Train the denoiser for this time, over all calls with the same --work, instead of --denoiser-steps."""
    denoiser_batch: int = 12
    """Pairs in a step of the denoiser; each is two images."""
    denoiser_lr: float = 6e-4
    """Peak learning rate of the denoiser."""
    bf16: bool = True
    """Train the denoiser in bfloat16 mixed precision; slower on hardware without it."""
    injected: float = 0.6
    """Share of the steps in which the pair's own keys and values are injected."""
    followed: float = 0.0
    """Share of the steps that teach to follow queries: the target's control is wrong, its queries are right."""
    kept: float = 0.0
    """Share of --initial's weights in the exported ones, which forget less; 0: none."""
    caption_dropout: float = 0.15
    """Share of captions replaced by the empty one."""
    pool: int = 4096
    """Largest number of pairs that are kept on the device; new ones replace the oldest."""
    report_every: int = 50
    """Steps between checkpoints, curve points and printed lines."""
    seed: int = 0
    """Seed of pairs, weights, batches and noise."""
    device: str = "cuda"
    """Torch device, such as cuda or cpu."""
