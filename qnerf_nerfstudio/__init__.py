"""3D-consistent geometric editing of captured scenes, as a nerfstudio method."""

__version__ = "0.1.0"
