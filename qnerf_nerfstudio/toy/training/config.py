"""Settings of `qnerf train-editor`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class TrainEditorConfig:
    """Train the bundled editor from the procedural domain."""

    out: Path = Path("editor-tiny")
    """Folder for the exported model set."""
    work: Path = Path("editor-training")
    """Folder for checkpoints, curves and sample sheets. A second call goes on from its checkpoints."""
    initial: Path | None = None
    """Model set whose weights training starts from, in the place of random ones. With --codec-steps 0 its VAE stays."""
    evaluate: bool = False
    """Only print the quality figures of the model set in --out."""
    evaluate_pairs: int = 64
    """Number of held-out pairs that the figures are measured on."""
    control_only: bool = False
    """Train the ControlNet alone; VAE, UNet and text encoder stay those of --initial."""
    codec_steps: int = 1200
    """Training steps of the VAE."""
    codec_batch: int = 8
    """Crops in a step of the VAE; in the last quarter of the steps, half as many whole images."""
    codec_lr: float = 4e-4
    """Peak learning rate of the VAE."""
    denoiser_steps: int = 4200
    """Training steps of UNet, ControlNet and text encoder."""
    denoiser_batch: int = 12
    """Pairs in a step of the denoiser; each is two images."""
    denoiser_lr: float = 6e-4
    """Peak learning rate of the denoiser."""
    bf16: bool = True
    """Train the denoiser in mixed precision (bfloat16). 1.6 times as fast on a CPU with AVX512-BF16; slower on one
    without."""
    injected: float = 0.6
    """Share of the steps in which the pair's own keys and values are injected."""
    caption_dropout: float = 0.15
    """Share of captions replaced by the empty one, so that guidance has something to lean on."""
    pool: int = 5000
    """The pool of rendered pairs grows up to this number. Each seed has pairs of its own, so that training which goes
    on from a model set under another seed sees new ones."""
    report_every: int = 50
    """Steps between checkpoints, curve points and printed lines; sample sheets come every fourth time."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    device: str = "cuda"
    """Torch device; "cpu" where there is no GPU."""
