"""Warnings of third parties about their own code."""

import warnings


def ignore_third_party_warnings() -> None:
    """Keep warnings that nobody who edits a scene can do anything about out of the terminal."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(nerfstudio|torch)\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"nerfstudio\.")
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
