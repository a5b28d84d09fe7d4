"""3D-consistent geometric editing of captured scenes, as a nerfstudio method."""

from qnerf_nerfstudio.common.version import __version__ as __version__
