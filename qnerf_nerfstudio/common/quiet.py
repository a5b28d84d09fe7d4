"""Warnings of third parties about their own code."""

import warnings


def ignore_third_party_warnings() -> None:
    """Keep three known warnings, which nobody who edits a scene can act on, out of the terminal; others are shown."""
    # nerfstudio 1.1.5 calls names that newer torch deprecates, at import and in its trainer.
    warnings.filterwarnings("ignore", message=r"`torch\.(jit|cuda\.amp)\.", category=FutureWarning)
    # Its cameras index with lists, once for every field of a camera; torch says so for each.
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)
    # It asks for four data loading workers, whatever the number of cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
