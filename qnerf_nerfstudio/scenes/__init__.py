"""The procedural capture: an articulated figure with exact images, depth and silhouettes in any pose."""

from qnerf_nerfstudio.scenes.capture import CaptureConfig, write_capture
from qnerf_nerfstudio.scenes.figure import Body, Pose, sample_body, sample_pose
from qnerf_nerfstudio.scenes.render import Frame, render

__all__ = ["Body", "CaptureConfig", "Frame", "Pose", "render", "sample_body", "sample_pose", "write_capture"]
