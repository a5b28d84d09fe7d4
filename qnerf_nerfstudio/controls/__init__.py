"""Controls: the 3D statement of an edit, and its projection into every view."""

from qnerf_nerfstudio.controls.cameras import Views
from qnerf_nerfstudio.controls.draw import changed, control_images
from qnerf_nerfstudio.controls.edit import Edit, Kind, control_kind
from qnerf_nerfstudio.controls.images import grow, load_control_images, to_unit
from qnerf_nerfstudio.controls.loading import load_edit
from qnerf_nerfstudio.controls.skeleton import OPENPOSE_BONES, OPENPOSE_COLOURS, OPENPOSE_JOINTS, draw_skeleton

__all__ = [
    "OPENPOSE_BONES",
    "OPENPOSE_COLOURS",
    "OPENPOSE_JOINTS",
    "Edit",
    "Kind",
    "Views",
    "changed",
    "control_images",
    "control_kind",
    "draw_skeleton",
    "grow",
    "load_control_images",
    "load_edit",
    "to_unit",
]
