"""The page of `qnerf pose`: a capture's cameras, photos and points in viser, and the control to drag."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import viser
import viser.transforms as vtf
from jaxtyping import UInt8
from rich.console import Console
from torch import Tensor

from qnerf_nerfstudio.capture.capture import focus_of, in_dataset_coordinates, read_capture, sparse_points
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.draw import control_images
from qnerf_nerfstudio.controls.skeleton import skeleton_colours
from qnerf_nerfstudio.controls.solids import box_mesh, load_mesh
from qnerf_nerfstudio.edit.schema import BoxPlacement, MeshPlacement, SkeletonControl
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.pages.posing import (
    PoseDocument,
    Side,
    degrees,
    intersect_rays,
    mirror,
    move_joint,
    pixel_under,
    quaternion,
)
from qnerf_nerfstudio.pages.viser_safety import atomic, plain

THUMBNAIL = 256
"""Longer side in pixels of the photos on the page."""
DRAG_PAUSE = 2.0
"""Seconds without a move after which a drag counts as ended; a drag is undone as a whole."""
RADIUS = 3.0
"""The capture is shown at a scale at which its cameras stand about so far from what they look at."""
GREY = (150, 150, 150)
IDENTITY = torch.eye(4)[:3]


class PosePage:
    """A viser page on which an edit's control is placed, in the coordinates of transforms.json.

    Args:
        data: The capture's folder, or its transforms file.
        document: The edit.
        host: Address to listen at.
        port: Port to listen at.
    """

    def __init__(self, data: Path, document: PoseDocument, host: str, port: int) -> None:
        self.document = document
        capture = read_capture(data)
        self._names = [path.name for path in capture.filenames]
        self._views = in_dataset_coordinates(capture.views(), dataset_to_scene(capture.train_dataparser_outputs, data))
        height, width = self._views.size
        shrink = THUMBNAIL / max(height, width)
        self._size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        self._small = self._views.resized(self._size)
        photos = capture.photos(range(len(self._names)), self._size)
        self._photos = [(photo.movedim(0, -1) * 255).round().byte().numpy() for photo in photos]
        focus, distance = focus_of(self._views)
        self.scale = RADIUS / distance
        self._selected = ""
        self._clicks: list[tuple[int, Tensor, Tensor]] = []
        self._lock = threading.RLock()
        self._dragged: tuple[list[float], Any] | None = None
        self._dragged_at = -math.inf
        self._gizmo: viser.TransformControlsHandle | None = None
        self._gizmo_of: tuple[int, str] | None = None
        self._overlaid: int | None = None
        self.server = viser.ViserServer(host=host, port=port)
        up = torch.nn.functional.normalize(self._views.c2w[:, :, 1].mean(0), dim=0)
        self.server.scene.set_up_direction(up.numpy())
        self._add_capture(data, capture)
        self._add_controls()
        towards = torch.nn.functional.normalize(self._views.c2w[0, :, 3] - focus, dim=0)
        eye = focus + distance * (1.3 * towards + 0.4 * up)

        @self.server.on_client_connect
        def _(client: viser.ClientHandle) -> None:
            client.camera.up_direction = up.numpy()
            client.camera.position = self._shown(eye)
            client.camera.look_at = self._shown(focus)

        self.refresh()

    def _shown(self, point: Any) -> np.ndarray:
        """A point of the dataset in the page's scale."""
        return np.asarray(point, dtype=float) * self.scale

    def _stated(self, position: Any) -> list[float]:
        """A position on the page in the dataset's coordinates."""
        return [round(float(value) / self.scale, 6) for value in position]

    def _add_capture(self, data: Path, capture: QNerfDataManager) -> None:
        self._frustums: dict[int, viser.CameraFrustumHandle] = {}
        for index in range(len(self._names)):
            self._add_frustum(index, self._photos[index])
        points = sparse_points(data)
        if points is not None:
            self.server.scene.add_point_cloud("/points", self._shown(points[0]), points[1], point_size=0.01)

    def _add_frustum(self, index: int, image: np.ndarray) -> None:
        height, width = self._views.size
        c2w = self._views.c2w[index].double().numpy()
        rotation = vtf.SO3.from_matrix(c2w[:, :3]) @ vtf.SO3.from_x_radians(math.pi)
        handle = self.server.scene.add_camera_frustum(
            f"/cameras/{self._names[index]}",
            fov=2 * math.atan(height / 2 / float(self._views.intrinsics[index, 1])),
            aspect=width / height,
            scale=0.25,
            image=image,
            wxyz=rotation.wxyz,
            position=self._shown(c2w[:, 3]),
        )
        handle.on_click(lambda event: self._look_through(event.client, index))
        self._frustums[index] = handle

    def _add_controls(self) -> None:
        gui, parts = self.server.gui, self.document.parts
        labels = [f"{index + 1}: {part.type}" for index, part in enumerate(parts)]
        self._status = gui.add_markdown("Drag the control, then save.")
        with gui.add_folder("Edit"):
            self._prompt = gui.add_text("Prompt", self.document.edit.prompt)
            self._source_prompt = gui.add_text("Source prompt", self.document.edit.source_prompt)
        with gui.add_folder("Control"):
            self._side = gui.add_dropdown("Place in", ("target", "source"))
            self._part = gui.add_dropdown("Part", tuple(labels), visible=len(parts) > 1)
            self._joint = gui.add_dropdown("Joint", ("",))
            self._position = gui.add_vector3("Position", (0.0, 0.0, 0.0), step=0.001)
            self._rotation = gui.add_vector3("Rotation", (0.0, 0.0, 0.0), step=1.0)
            self._extent = gui.add_vector3("Size or scale", (1.0, 1.0, 1.0), step=0.001)
            self._lengths = gui.add_checkbox("Keep bone lengths", True)
            self._mirror = gui.add_button("Mirror left and right")
        with gui.add_folder("Photo"):
            self._photo = gui.add_dropdown("Photo", tuple(self._names))
            self._overlay = gui.add_checkbox("Show control on it", True)
            self._through = gui.add_button("Look through it")
            self._pick = gui.add_button("Place joint by clicks in two photos")
        self._undo = gui.add_button("Undo")
        self._reset = gui.add_button("Reset")
        self._save = gui.add_button("Save edit.json", color="green")
        self._prompt.on_update(self._guarded(lambda: self.document.change(prompt=self._prompt.value)))
        self._source_prompt.on_update(
            self._guarded(lambda: self.document.change(source_prompt=self._source_prompt.value))
        )
        for chooser in (self._side, self._part):
            chooser.on_update(self._guarded(lambda: None))
        self._joint.on_update(self._guarded(lambda: self._select(self._joint.value)))
        for vector in (self._position, self._rotation, self._extent):
            vector.on_update(self._guarded(self._place_by_numbers))
        self._mirror.on_click(self._guarded(self._mirror_pose))
        self._photo.on_update(self._guarded(lambda: None))
        self._overlay.on_update(self._guarded(lambda: None))
        self._through.on_click(lambda event: self._look_through(event.client, self._index))
        self._pick.on_click(self._guarded(self._begin_picking))
        self._undo.on_click(self._guarded(self._take_back))
        self._reset.on_click(self._guarded(self.document.reset))
        self._save.on_click(self._guarded(self._write))

    @property
    def _index(self) -> int:
        return self._names.index(self._photo.value)

    @property
    def _number(self) -> int:
        return int(self._part.value.split(":")[0]) - 1

    @property
    def _pose(self) -> Side:
        return "source" if self._side.value == "source" else "target"

    def say(self, text: str) -> None:
        """Show a sentence at the top of the page."""
        self._status.content = text

    def _guarded(self, action: Callable[[], object]) -> Callable[[Any], None]:
        """An action of the page: one at a time, mistakes as a sentence, and the page brought up to date after it."""

        def run(event: Any) -> None:
            # Values that the page itself sets come back as events, too, but of no client.
            if isinstance(event, viser.GuiEvent) and event.client_id is None:
                return
            with self._lock:
                self._dragged_at = -math.inf
                try:
                    action()
                except (UserError, OSError) as error:
                    self.say(f"**{plain(str(error))}**")
                self.refresh()

        return run

    def refresh(self) -> None:
        """Draw the control as the document has it."""
        with self._lock, atomic(self.server):
            self._draw()

    def _draw(self) -> None:
        part = self.document.parts[self._number]
        skeleton = isinstance(part, SkeletonControl)
        for element, visible in (
            (self._joint, skeleton),
            (self._lengths, skeleton),
            (self._mirror, skeleton),
            (self._pick, skeleton),
            (self._rotation, not skeleton),
            (self._extent, not skeleton),
        ):
            element.visible = visible
        for number, each in enumerate(self.document.parts):
            for side in ("source", "target"):
                active = number == self._number and side == self._pose
                if isinstance(each, SkeletonControl):
                    self._draw_skeleton(f"/control/{number}/{side}", each, side, active)
                else:
                    self._draw_solid(f"/control/{number}/{side}", getattr(each, side), active)
        if isinstance(part, SkeletonControl):
            joints = getattr(part, self._pose)
            if self._selected not in joints:
                self._selected = "neck" if "neck" in joints else next(iter(joints))
            _set_options(self._joint, tuple(joints), self._selected)
            position, wxyz = joints[self._selected], (1.0, 0.0, 0.0, 0.0)
        else:
            placed: MeshPlacement | BoxPlacement = getattr(part, self._pose)
            position, wxyz = placed.position, quaternion(placed.rotation)
            _set(self._rotation, placed.rotation)
            _set(self._extent, placed.size if isinstance(placed, BoxPlacement) else placed.factors)
        _set(self._position, position)
        _set(self._prompt, self.document.edit.prompt)
        _set(self._source_prompt, self.document.edit.source_prompt)
        self._draw_gizmo(position, wxyz, turns=not skeleton)
        self._draw_overlay()

    def _draw_skeleton(self, name: str, control: SkeletonControl, side: str, active: bool) -> None:
        joints = getattr(control, side)
        colours = skeleton_colours(list(joints), control.all_bones)
        size = 0.03 if active else 0.018
        for joint, at in joints.items():
            handle = self.server.scene.add_icosphere(
                f"{name}/joints/{joint}",
                size,
                colours[joint] if active else GREY,
                2,
                position=self._shown(at),
            )
            if active:
                handle.on_click(self._guarded(lambda joint=joint: self._select(joint)))
        for first, second in control.all_bones:
            self.server.scene.add_spline_catmull_rom(
                f"{name}/bones/{first}-{second}",
                np.stack([self._shown(joints[first]), self._shown(joints[second])]),
                color=colours[first, second] if active else GREY,
                line_width=4.0 if active else 1.5,
            )

    def _draw_solid(self, name: str, placed: MeshPlacement | BoxPlacement, active: bool) -> None:
        if isinstance(placed, BoxPlacement):
            mesh, factors = box_mesh(), placed.size
        else:
            mesh, factors = load_mesh(self.document.path.parent / placed.mesh), placed.factors
        self.server.scene.add_mesh_simple(
            name,
            np.asarray(mesh.vertices) * np.asarray(factors) * self.scale,
            np.asarray(mesh.faces),
            color=(90, 200, 255) if active else GREY,
            opacity=0.6 if active else 0.25,
            wxyz=quaternion(placed.rotation),
            position=self._shown(placed.position),
        )

    def _draw_gizmo(self, position: Any, wxyz: Any, turns: bool) -> None:
        key = (self._number, self._pose)
        if self._gizmo is not None and self._gizmo_of == key:
            self._gizmo.position, self._gizmo.wxyz = self._shown(position), np.asarray(wxyz)
            return
        self._gizmo_of = key
        self._gizmo = self.server.scene.add_transform_controls(
            "/gizmo",
            scale=0.5,
            disable_rotations=not turns,
            depth_test=False,
            position=self._shown(position),
            wxyz=wxyz,
        )
        self._gizmo.on_update(self._drag)

    def _drag(self, gizmo: viser.TransformControlsHandle) -> None:
        """Follow the gizmo. Moves come faster than they can be drawn: only the latest counts."""
        self._dragged = (self._stated(gizmo.position), gizmo.wxyz)
        with self._lock:
            dragged, self._dragged = self._dragged, None
            if dragged is None:
                return
            now = time.monotonic()
            merge = now - self._dragged_at < DRAG_PAUSE
            self._guarded(lambda: self._place(*dragged, merge=merge))(None)
            self._dragged_at = now

    def _draw_overlay(self) -> None:
        """The control as it is drawn into the chosen photo."""
        if self._overlaid is not None and self._overlaid != self._index:
            self._add_frustum(self._overlaid, self._photos[self._overlaid])
        self._overlaid = self._index
        self._add_frustum(self._index, self.overlaid(self._index) if self._overlay.value else self._photos[self._index])

    def overlaid(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """A photo with the control in the chosen pose drawn over it."""
        photo = self._photos[index]
        views, names = self._small[index : index + 1], [self._names[index]]
        edit = self.document.edit
        try:
            drawn = control_images(edit, self.document.path.parent, views, names, IDENTITY, self._size)
        except UserError:
            # It need not be in this photo.
            return photo
        control = (drawn[self._pose == "target"][0].movedim(0, -1) * 255).numpy()
        shown = control.max(axis=-1, keepdims=True) > 0
        return np.where(shown, 0.35 * photo + 0.65 * control, photo).astype(np.uint8)

    def _select(self, joint: str) -> None:
        self._selected = joint

    def _place_by_numbers(self) -> None:
        part = self.document.parts[self._number]
        if isinstance(part, SkeletonControl):
            self._place(list(self._position.value), None)
            return
        placed: MeshPlacement | BoxPlacement = getattr(part, self._pose)
        key = "size" if isinstance(placed, BoxPlacement) else "scale"
        self._change_solid(
            {"position": self._position.value, "rotation": self._rotation.value, key: self._extent.value}
        )

    def _place(self, position: list[float], wxyz: Any, merge: bool = False) -> None:
        """Put the selected joint, or the solid, at a position; `merge` makes it one change with the one before."""
        part = self.document.parts[self._number]
        if isinstance(part, SkeletonControl):
            joints = self.document.joints(self._number, self._pose)
            moved = move_joint(joints, part.all_bones, self._selected, position, self._lengths.value)
            self.document.set_joints(self._number, self._pose, moved, merge)
            return
        self._change_solid({"position": position, "rotation": degrees(wxyz)}, merge)

    def _change_solid(self, values: dict[str, Any], merge: bool = False) -> None:
        placed = getattr(self.document.parts[self._number], self._pose).model_dump(mode="json")
        plain = {name: [float(value) for value in vector] for name, vector in values.items()}
        self.document.change_part(self._number, merge, **{self._pose: {**placed, **plain}})

    def _mirror_pose(self) -> None:
        mirrored = mirror(self.document.joints(self._number, self._pose))
        self.document.set_joints(self._number, self._pose, mirrored)

    def _take_back(self) -> None:
        self.say("Taken back." if self.document.undo() else "There is nothing to take back.")

    def _write(self) -> None:
        backup = self.document.save()
        kept = f"; the one before is {backup.name}" if backup is not None else ""
        self.say(f"Saved {plain(str(self.document.path))}{kept}.")

    def _look_through(self, client: viser.ClientHandle | None, index: int) -> None:
        if client is None:
            return
        handle = self._frustums[index]
        with atomic(client):
            client.camera.position = handle.position
            client.camera.wxyz = handle.wxyz
        _set(self._photo, self._names[index])

    def _begin_picking(self) -> None:
        self._clicks = []
        self.say(
            f"Click **{plain(self._selected)}** in the photo **{plain(self._photo.value)}**; then choose another "
            f"photo, look through it, and click there. The click is read where the photo shows it."
        )

        @self.server.scene.on_pointer_event("click")
        def _(event: viser.ScenePointerEvent) -> None:
            self._guarded(lambda: self._click(event))(None)

    def _click(self, event: viser.ScenePointerEvent) -> None:
        """Take a click for the pixel of the chosen photo that lies under it."""
        index = self._index
        if any(each == index for each, _, _ in self._clicks):
            raise UserError("that is the same photo; choose another one and look through it")
        pixel = pixel_under(self._views, index, torch.tensor(event.ray_direction))
        origins, directions = self._views[index : index + 1].rays_through(pixel[None, None])
        if not directions.isfinite().all():
            raise UserError("the lens shows nothing there; click inside the photo")
        self._clicks.append((index, origins[0, 0], directions[0, 0]))
        if len(self._clicks) < 2:
            self.say(f"Now choose another photo, look through it, and click **{plain(self._selected)}** there.")
            return
        self.server.scene.remove_pointer_callback()
        _, origins, directions = zip(*self._clicks, strict=True)
        self._clicks = []
        point, gap = intersect_rays(torch.stack(origins), torch.stack(directions))
        self._place(point.tolist(), None)
        kept = " as far as its bone reaches" if self._lengths.value else ""
        self.say(f"**{plain(self._selected)}** placed{kept}; the two clicks miss each other by {2 * gap:.3g}.")


def _set(element: Any, value: Any) -> None:
    """Set an element's value where it is another one."""
    if isinstance(value, tuple | list):
        value = tuple(float(each) for each in value)
        if np.allclose(value, element.value, atol=1e-9):
            return
    if element.value != value:
        element.value = value


def _set_options(element: Any, options: tuple[str, ...], value: str) -> None:
    if tuple(element.options) != options:
        element.options = options
    _set(element, value)


def serve(page: PosePage, console: Console) -> None:
    """Tell where the page is, and wait for Ctrl-C."""
    console.print(
        f"Pose the edit at http://{page.server.get_host()}:{page.server.get_port()}; Save writes {page.document.path}. "
        f"Ctrl-C ends the page.",
        soft_wrap=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.server.stop()
