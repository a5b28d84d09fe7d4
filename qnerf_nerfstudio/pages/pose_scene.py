"""What the page of `qnerf pose` draws in viser: cameras with their photos, sparse points, the control and its gizmo."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import viser
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike, NDArray

from qnerf_nerfstudio.capture.cameras import Views, focus_of
from qnerf_nerfstudio.capture.capture import read_capture
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.draw import control_images, overlaid
from qnerf_nerfstudio.controls.projection import project_edit
from qnerf_nerfstudio.controls.rigged import rigged_mesh
from qnerf_nerfstudio.controls.skeleton import skeleton_colours
from qnerf_nerfstudio.controls.solids import box_mesh, load_mesh
from qnerf_nerfstudio.edit.schema import BoxPlacement, Edit, JointedControl, MeshPlacement, RigControl
from qnerf_nerfstudio.pages.posing import PoseDocument, Side, quaternion
from qnerf_nerfstudio.pages.surroundings import Surroundings

THUMBNAIL = 256
"""Longer side in pixels of the photos on the page."""
RADIUS = 3.0
"""The page's scale puts the cameras at about this distance from what they look at."""
GREY = (150, 150, 150)
"""Colour of what is not being edited."""
IDENTITY = torch.eye(4)[:3]


@dataclass(frozen=True)
class Photos:
    """The photos of a capture as the page shows them."""

    names: list[str]
    """Their file names."""
    views: Views
    """Their cameras in the coordinates of transforms.json, at full size."""
    images: list[UInt8[NDArray, "H W 3"]]
    """The photos at the page's size."""

    def with_control(self, index: int, edit: Edit, folder: Path, side: Side) -> UInt8[NDArray, "H W 3"]:
        """A photo with the control of an edit, in one pose, drawn over it; `folder` is that of edit.json."""
        photo = self.images[index]
        size = (photo.shape[0], photo.shape[1])
        views, names = self.views[index : index + 1].resized(size), [self.names[index]]
        try:
            drawn = control_images(edit, folder, views, names, IDENTITY, size)
        except UserError:
            # The control need not be in this photo.
            return photo
        control = (overlaid(drawn[side == "target"])[0].movedim(0, -1) * 255).numpy()
        shown = control.max(axis=-1, keepdims=True) > 0
        return np.where(shown, 0.35 * photo + 0.65 * control, photo).astype(np.uint8)

    def region(self, edit: Edit, folder: Path) -> Float[NDArray, "P 3"]:
        """Centres of the cells where an edit may change the scene, in the dataset's coordinates; none where it may
        change everything.

        Raises:
            UserError: The edit has no region.
        """
        size = (self.images[0].shape[0], self.images[0].shape[1])
        focus, distance = focus_of(self.views)
        box = torch.stack([focus - distance, focus + distance])
        projected = project_edit(edit, folder, self.views, self.names, len(self.views), IDENTITY, size, box)
        voxels = projected.influence.voxels
        return np.zeros((0, 3)) if voxels is None else voxels.centres().numpy()


def read_photos(data: Path) -> Photos:
    """Read the photos and cameras of a capture.

    Raises:
        UserError: The capture cannot be used.
    """
    capture = read_capture(data)
    views = capture.dataset_views()
    shrink = THUMBNAIL / max(views.size)
    size = (max(1, round(views.size[0] * shrink)), max(1, round(views.size[1] * shrink)))
    images = to_bytes(capture.photos(range(len(views)), size))
    return Photos(capture.names, views, list(images.numpy()))


@dataclass(frozen=True)
class _Drawn:
    """A joint or a bone as it is drawn."""

    handle: Any
    colour: tuple[int, int, int]
    places: tuple[tuple[float, float, float], ...]


class PoseScene:
    """The 3D part of the page. It draws the document and reports clicks and drags; it never changes the document.

    Args:
        server: The server to draw in.
        photos: The capture's photos.
        points: The capture's sparse points and their colours, if any.
        document: The edit.
        on_frustum: Called with the client and the photo's index when a photo is clicked.
        on_joint: Called with the name of a joint that is clicked.
        on_drag: Called with the gizmo's position in the dataset's coordinates and its orientation as a quaternion.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        photos: Photos,
        points: tuple[Float[NDArray, "P 3"], UInt8[NDArray, "P 3"]] | None,
        document: PoseDocument,
        on_frustum: Callable[[viser.ClientHandle | None, int], None],
        on_joint: Callable[[str], None],
        on_drag: Callable[[list[float], NDArray], None],
    ) -> None:
        self._server = server
        self._photos = photos
        self._document = document
        self._on_joint, self._on_drag = on_joint, on_drag
        self._gizmo: viser.TransformControlsHandle | None = None
        self._gizmo_of: tuple[int, Side] | None = None
        self._overlaid: int | None = None
        self._drawn: dict[str, dict[str, _Drawn]] = {}
        """Joints and bones that are drawn of each skeleton in each pose."""
        self._meshes: dict[str, tuple[trimesh.Trimesh, bool]] = {}
        """Meshes of rigs that are drawn, and whether in colour."""
        views = photos.views
        self._focus, distance = focus_of(views)
        self.scale = RADIUS / distance
        """Length on the page of one unit of the dataset."""
        self._up = torch.nn.functional.normalize(views.c2w[:, :, 1].mean(0), dim=0)
        towards = torch.nn.functional.normalize(views.c2w[0, :, 3] - self._focus, dim=0)
        self._eye = self._focus + distance * (1.3 * towards + 0.4 * self._up)
        server.scene.set_up_direction(self._up.numpy())
        self.around = Surroundings(server, photos.names, views, self.scale, self._up, self._focus, points, on_frustum)
        """What stands around the control."""
        for index, image in enumerate(photos.images):
            self.around.add_frustum(index, image)
        server.on_client_connect(self._place_camera)

    def draw_control(self, number: int, side: Side) -> None:
        """Draw all parts of the control in both poses, the chosen part and pose in colour."""
        for each, part in enumerate(self._document.parts):
            for pose in ("source", "target"):
                name, active = f"/control/{each}/{pose}", (each, pose) == (number, side)
                if isinstance(part, RigControl):
                    self._draw_mesh(f"{name}/mesh", rigged_mesh(part, self._document.path.parent, pose), active)
                if isinstance(part, JointedControl):
                    self._draw_skeleton(name, part, pose, active)
                else:
                    self._draw_solid(name, getattr(part, pose), active)

    def draw_gizmo(self, number: int, side: Side, position: ArrayLike, wxyz: ArrayLike, turns: bool) -> None:
        """Draw the gizmo of a part in one pose, in the dataset's coordinates; `turns` gives it rings to turn by."""
        key = (number, side)
        if self._gizmo is not None and self._gizmo_of == key:
            self._gizmo.position, self._gizmo.wxyz = self._to_page(position), np.asarray(wxyz)
            return
        self._gizmo_of = key
        self._gizmo = self._server.scene.add_transform_controls(
            "/gizmo",
            scale=0.5,
            disable_rotations=not turns,
            depth_test=False,
            position=self._to_page(position),
            wxyz=np.asarray(wxyz),
        )
        self._gizmo.on_update(lambda gizmo: self._on_drag(self._to_dataset(gizmo.position), gizmo.wxyz))

    def draw_overlay(self, index: int, image: UInt8[NDArray, "H W 3"]) -> None:
        """Draw one photo with the control in it; the photo before it loses its drawing."""
        if self._overlaid is not None and self._overlaid != index:
            self.around.add_frustum(self._overlaid, self._photos.images[self._overlaid])
        self._overlaid = index
        self.around.add_frustum(index, image)
        self.around.draw_backdrop(index, image)

    def look_through(self, client: viser.ClientHandle, index: int, side: Side, shown: bool) -> None:
        """Let a client look through a photo, with the control drawn over it if it is to be shown."""
        self.around.look_through(client, index, self.photo(index, side, shown))

    def photo(self, index: int, side: Side, shown: bool) -> UInt8[NDArray, "H W 3"]:
        """A photo, with the control in one pose drawn over it if it is to be shown."""
        if not shown:
            return self._photos.images[index]
        return self._photos.with_control(index, self._document.edit, self._document.path.parent, side)

    def _to_page(self, point: ArrayLike) -> NDArray:
        """Points of the dataset at the page's scale."""
        return np.asarray(point, dtype=float) * self.scale

    def _to_dataset(self, position: Any) -> list[float]:
        """A position on the page in the dataset's coordinates."""
        return [round(float(value) / self.scale, 6) for value in position]

    def _place_camera(self, client: viser.ClientHandle) -> None:
        """Let a new client look at the scene from beyond the first camera."""
        client.camera.up_direction = self._up.numpy()
        client.camera.position = self._to_page(self._eye)
        client.camera.look_at = self._to_page(self._focus)

    def _draw_skeleton(self, name: str, control: JointedControl, side: Side, active: bool) -> None:
        """Draw what has changed of a skeleton: a drag moves a few joints of it."""
        joints = getattr(control, side)
        colours = skeleton_colours(list(joints), control.all_bones)
        before, drawn = self._drawn.get(name, {}), {}
        for joint, at in joints.items():
            node, colour = f"{name}/joints/{joint}", colours[joint] if active else GREY
            known = before.get(node)
            if known is None or known.colour != colour:
                size = 0.03 if active else 0.018
                handle = self._server.scene.add_icosphere(node, size, colour, 2, position=self._to_page(at))
                if active:
                    handle.on_click(lambda _, joint=joint: self._on_joint(joint))
                known = _Drawn(handle, colour, (at,))
            elif known.places != (at,):
                known.handle.position = self._to_page(at)
                known = replace(known, places=(at,))
            drawn[node] = known
        for first, second in control.all_bones:
            node, colour = f"{name}/bones/{first}-{second}", colours[first, second] if active else GREY
            stated = (colour, (joints[first], joints[second]))
            known = before.get(node)
            if known is None or (known.colour, known.places) != stated:
                ends = np.stack([self._to_page(joint) for joint in stated[1]])
                width = 4.0 if active else 1.5
                handle = self._server.scene.add_spline_catmull_rom(node, ends, color=colour, line_width=width)
                known = _Drawn(handle, *stated)
            drawn[node] = known
        for node in set(before) - set(drawn):
            before[node].handle.remove()
        self._drawn[name] = drawn

    def _draw_solid(self, name: str, placed: MeshPlacement | BoxPlacement, active: bool) -> None:
        if isinstance(placed, BoxPlacement):
            mesh, factors = box_mesh(), placed.size
        else:
            mesh, factors = load_mesh(self._document.path.parent / placed.mesh), placed.factors
        self._server.scene.add_mesh_simple(
            name,
            np.asarray(mesh.vertices) * np.asarray(factors) * self.scale,
            np.asarray(mesh.faces),
            color=(90, 200, 255) if active else GREY,
            opacity=0.6 if active else 0.25,
            wxyz=quaternion(placed.rotation),
            position=self._to_page(placed.position),
        )

    def _draw_mesh(self, name: str, mesh: trimesh.Trimesh, active: bool) -> None:
        if name in self._meshes and self._meshes[name][0] is mesh and self._meshes[name][1] == active:
            return
        self._meshes[name] = (mesh, active)
        self._server.scene.add_mesh_simple(
            name,
            np.asarray(mesh.vertices) * self.scale,
            np.asarray(mesh.faces),
            color=(90, 200, 255) if active else GREY,
            opacity=0.6 if active else 0.15,
        )
