"""The editor: a diffusers ControlNet model set and what the method does with it."""

from qnerf_nerfstudio.editor.config import BUNDLED, EditorConfig

__all__ = ["BUNDLED", "EditorConfig"]
