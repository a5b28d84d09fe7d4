"""Random numbers of libraries that take no generator."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators, which nerfstudio's samplers draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
