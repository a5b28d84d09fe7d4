"""What stands around the control on the page of `qnerf pose`: cameras, photos as backdrop, points, floor, region."""

import math
from collections.abc import Callable

import numpy as np
import torch
import viser
import viser.transforms as vtf
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch.nn import functional as F

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.spread import evenly_spread
from qnerf_nerfstudio.pages.viser_safety import atomic

SHOWN_CAMERAS = 8
"""Cameras that are shown at first, evenly spread; more of them hide the scene."""
FRUSTUM = 0.12
"""Size of a camera on the page."""
FLOOR = 0.02
"""The floor lies above this share of the points."""
MOVED = 1e-3
"""A client whose camera is farther than this from a photo's looks through it no more."""
NOTHING = np.full((1, 1, 3), 255, dtype=np.uint8)
"""A backdrop that shows none."""


class Surroundings:
    """Draws what stands around the control.

    Args:
        server: The server to draw in.
        names: File names of the photos.
        views: Their cameras in the coordinates of transforms.json.
        scale: Length on the page of one unit of these.
        up: Upwards, a unit vector.
        focus: What the cameras look at.
        points: Sparse points and their colours, if any.
        on_frustum: Called with the client and the photo's index when a camera is clicked.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        names: list[str],
        views: Views,
        scale: float,
        up: Float[torch.Tensor, "3"],
        focus: Float[torch.Tensor, "3"],
        points: tuple[Float[NDArray, "P 3"], UInt8[NDArray, "P 3"]] | None,
        on_frustum: Callable[[viser.ClientHandle | None, int], None],
    ) -> None:
        self._server, self._names, self._views, self._scale = server, names, views, scale
        self._on_frustum = on_frustum
        self._all_cameras = False
        self._chosen = 0
        self._looking: dict[int, int] = {}
        """The photo that each client looks through."""
        self._followed: set[int] = set()
        """Clients whose camera moves are listened to."""
        self._arrived: set[int] = set()
        """Clients whose camera has come to where their photo was taken."""
        self._frustums: dict[int, viser.CameraFrustumHandle] = {}
        self._scenery: list[viser.SceneNodeHandle] = []
        self._few = set(evenly_spread(SHOWN_CAMERAS, len(names)))
        if points is not None:
            placed = points[0] * scale
            self._scenery.append(server.scene.add_point_cloud("/points", placed, points[1], point_size=0.01))
        self._add_floor(up.double().numpy(), focus.double().numpy(), None if points is None else points[0])

    def add_frustum(self, index: int, image: UInt8[NDArray, "H W 3"]) -> None:
        """Draw a camera with its photo, in the place of the one before."""
        views = self._views
        height, width = views.size
        c2w = views.c2w[index].double().numpy()
        rotation = vtf.SO3.from_matrix(c2w[:, :3]) @ vtf.SO3.from_x_radians(math.pi)
        handle = self._server.scene.add_camera_frustum(
            f"/cameras/{self._names[index]}",
            fov=self.fov(index),
            aspect=width / height,
            scale=FRUSTUM,
            image=image,
            wxyz=rotation.wxyz,
            position=c2w[:, 3] * self._scale,
            visible=self._is_shown(index),
        )
        handle.on_click(lambda event: self._on_frustum(event.client, index))
        self._frustums[index] = handle

    def fov(self, index: int) -> float:
        """A camera's vertical field of view in radians."""
        return 2 * math.atan(self._views.size[0] / 2 / float(self._views.intrinsics[index, 1]))

    def show_cameras(self, every: bool, chosen: int) -> None:
        """Show every camera, or a few and the chosen one."""
        self._all_cameras, self._chosen = every, chosen
        self._draw_visibility()

    def look_through(self, client: viser.ClientHandle, index: int, image: UInt8[NDArray, "H W 3"]) -> None:
        """Move a client's camera to where a photo was taken, with the photo behind the scene."""
        frustum, (height, width) = self._frustums[index], self._views.size
        # A window that is narrower than the photo sees more of what is above and below.
        widening = max(1.0, width / height / client.camera.aspect)
        with atomic(client):
            client.camera.position = frustum.position
            client.camera.wxyz = frustum.wxyz
            client.camera.fov = 2 * math.atan(math.tan(self.fov(index) / 2) * widening)
        if client.client_id not in self._followed:
            self._followed.add(client.client_id)
            client.camera.on_update(lambda camera: self._leave_if_moved(client))
        self._looking[client.client_id] = index
        self._arrived.discard(client.client_id)
        self.draw_backdrop(index, image)
        self._draw_visibility()

    def draw_backdrop(self, index: int, image: UInt8[NDArray, "H W 3"]) -> None:
        """Put a photo behind the scene of the clients that look through it."""
        for client_id, client in self._server.get_clients().items():
            if self._looking.get(client_id) == index:
                client.scene.set_background_image(framed(flat(self._views, index, image), client.camera.aspect))

    def draw_region(self, centres: Float[NDArray, "P 3"] | None) -> None:
        """Draw the region of influence by the centres of its cells; None draws none."""
        shown = np.zeros((1, 3)) if centres is None else centres * self._scale
        colours = np.full((len(shown), 3), (255, 170, 60), dtype=np.uint8)
        self._server.scene.add_point_cloud(
            "/region", shown, colours, point_size=0.015, visible=centres is not None and len(centres) > 0
        )

    def _leave_if_moved(self, client: viser.ClientHandle) -> None:
        index = self._looking.get(client.client_id)
        if index is None:
            return
        frustum = self._frustums[index]
        away = np.linalg.norm(np.asarray(client.camera.position) - frustum.position)
        turned = 1 - abs(float(np.dot(client.camera.wxyz, frustum.wxyz)))
        if away <= MOVED and turned <= MOVED:
            self._arrived.add(client.client_id)
        elif client.client_id in self._arrived:
            del self._looking[client.client_id]
            client.scene.set_background_image(NOTHING, format="png")
            self._draw_visibility()

    def _is_shown(self, index: int) -> bool:
        # From inside a camera its own picture, and those beside it, would hide everything.
        if self._looking:
            return False
        return self._all_cameras or index in self._few or index == self._chosen

    def _draw_visibility(self) -> None:
        for index, handle in self._frustums.items():
            if handle.visible != self._is_shown(index):
                handle.visible = self._is_shown(index)
        for handle in self._scenery:
            handle.visible = not self._looking

    def _add_floor(self, up: NDArray, focus: NDArray, points: NDArray | None) -> None:
        """A grid at the height of the lowest points near what the cameras look at."""
        centres = self._views.c2w[:, :, 3].double().numpy()
        reach = float(np.median(np.linalg.norm(centres - focus, axis=1)))
        height = float(focus @ up) - reach / 4
        if points is not None:
            near = points[np.linalg.norm(points - focus, axis=1) < reach]
            if len(near) >= 100:
                height = float(np.quantile(near @ up, FLOOR))
        at = focus + (height - focus @ up) * up
        aside = np.eye(3)[np.abs(up).argmin()]
        across = np.cross(up, aside) / np.linalg.norm(np.cross(up, aside))
        frame = np.stack([np.cross(across, up), across, up], axis=1)
        self._scenery.append(
            self._server.scene.add_grid(
                "/floor",
                width=6.0,
                height=6.0,
                plane="xy",
                cell_size=0.25,
                wxyz=vtf.SO3.from_matrix(frame).wxyz,
                position=at * self._scale,
            )
        )


def flat(views: Views, index: int, image: UInt8[NDArray, "H W 3"]) -> UInt8[NDArray, "H W 3"]:
    """A photo as the page's camera sees it: without lens distortion, its principal point in the middle."""
    height, width = image.shape[:2]
    view = views[index : index + 1].resized((height, width))
    focal = view.intrinsics[0, 1]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    local = torch.stack([(columns - width / 2) / focal, -(rows - height / 2) / focal, -torch.ones_like(rows)], dim=-1)
    points = view.c2w[0, :, 3] + local.reshape(-1, 3) @ view.c2w[0, :, :3].T
    pixels, valid = view.project(points)
    grid = 2 * pixels / torch.tensor([width, height]) - 1
    grid = torch.where(valid[..., None], grid, 2.0).reshape(1, height, width, 2)
    pixels = torch.from_numpy(image).movedim(-1, 0)[None].float() - 255
    # Beyond the photo there is white.
    seen = F.grid_sample(pixels, grid, align_corners=False) + 255
    return seen[0].movedim(0, -1).round().byte().numpy()


def framed(image: UInt8[NDArray, "H W 3"], aspect: float) -> UInt8[NDArray, "h w 3"]:
    """An image in the middle of a white one of another aspect ratio (width by height), as large as fits."""
    height, width = image.shape[:2]
    padding = (max(0, round(height * aspect) - width), max(0, round(width / aspect) - height))
    left, top = padding[0] // 2, padding[1] // 2
    sides = ((top, padding[1] - top), (left, padding[0] - left), (0, 0))
    return np.pad(image, sides, constant_values=255)
