"""What stands for the held-out views of a run without any: nerfstudio's commands that need one end in a sentence."""

from typing import NoReturn

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from qnerf_nerfstudio.common.errors import UserError, exit_on_user_error


def _refuse() -> NoReturn:
    with exit_on_user_error():
        raise UserError(
            "the run held no views out, so there is none to render; use ns-render interpolate --pose-source train, "
            "ns-render dataset --split train, or a camera path of the viewer"
        )
    raise AssertionError


class NoCameras(Cameras):
    """No cameras; what paths and loaders begin with ends the program."""

    def __init__(self) -> None:
        none = torch.zeros(0, 1)
        super().__init__(torch.zeros(0, 3, 4), fx=none, fy=none, cx=none, cy=none)

    def to(self, device: torch.device | str) -> NoReturn:
        """Ends the program: a loader of views was asked for."""
        _refuse()

    def get_intrinsics_matrices(self) -> Float[Tensor, "*num_cameras 3 3"]:
        """Ends the program: a path through the views was asked for."""
        _refuse()


class NoViews:
    """No loader of views."""

    def get_camera(self, image_idx: int = 0) -> NoReturn:
        """Ends the program: the camera of a view was asked for."""
        _refuse()
