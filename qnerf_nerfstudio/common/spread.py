"""A few of many."""

import numpy as np


def evenly_spread(count: int, length: int) -> list[int]:
    """Indices of `count` of `length` things, or of all where there are no more, from the first one on to the last."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
