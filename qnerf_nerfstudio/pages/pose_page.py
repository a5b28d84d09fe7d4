"""The page of `qnerf pose`: its panel, and what clicks, drags and numbers do to the edit."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import viser
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from rich.console import Console

from qnerf_nerfstudio.capture.capture import sparse_points
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.edit.schema import BoxPlacement, Edit, JointedControl, MeshPlacement
from qnerf_nerfstudio.pages.pose_scene import PoseScene, read_photos
from qnerf_nerfstudio.pages.posing import (
    PhotoClicks,
    PoseDocument,
    Side,
    degrees,
    mirror,
    move_joint,
    quaternion,
    with_joint,
    with_name,
    with_or_without_bone,
    without_joint,
)
from qnerf_nerfstudio.pages.viser_safety import atomic, plain

SETTLED = 0.3
"""Seconds after the last move of a drag after which photos and region are drawn again."""
DRAG_PAUSE = 2.0
"""Seconds without a move after which a drag counts as ended; a drag is undone as a whole."""


class PosePage:
    """A viser page on which an edit's control is placed, in the coordinates of transforms.json.

    Args:
        data: The capture's folder, or its transforms file.
        document: The edit.
        host: Address to listen at.
        port: Port to listen at.
        points: Points and their colours instead of the capture's sparse ones.
    """

    def __init__(
        self,
        data: Path,
        document: PoseDocument,
        host: str,
        port: int,
        points: tuple[Float[NDArray, "P 3"], UInt8[NDArray, "P 3"]] | None = None,
    ) -> None:
        self.document = document
        self._photos = read_photos(data)
        self._selected = ""
        self._clicks = PhotoClicks(self._photos.views)
        self._lock = threading.RLock()
        self._dragged: tuple[list[float], NDArray] | None = None
        self._dragged_at = -math.inf
        self._dragging = False
        self.server = viser.ViserServer(host=host, port=port)
        self.scene = PoseScene(
            self.server,
            self._photos,
            sparse_points(data) if points is None else points,
            document,
            on_frustum=self._look_through,
            on_joint=lambda joint: self._perform(lambda: self._select(joint)),
            on_drag=self._drag,
        )
        self._region_of: tuple[Edit, Any] | None = None
        self._add_panel()
        self.refresh()

    def _add_panel(self) -> None:
        gui, parts = self.server.gui, self.document.parts
        labels = [f"{index + 1}: {part.type}" for index, part in enumerate(parts)]
        self._status = gui.add_markdown("Drag the control, then save.")
        with gui.add_folder("Edit"):
            self._prompt = gui.add_text("Prompt", self.document.edit.prompt)
            self._source_prompt = gui.add_text("Source prompt", self.document.edit.source_prompt)
        with gui.add_folder("Control"):
            self._side_menu = gui.add_dropdown("Place in", ("target", "source"))
            self._part_menu = gui.add_dropdown("Part", tuple(labels), visible=len(parts) > 1)
            self._joint_menu = gui.add_dropdown("Joint", ("",))
            self._position = gui.add_vector3("Position", (0.0, 0.0, 0.0), step=0.001)
            self._rotation = gui.add_vector3("Rotation", (0.0, 0.0, 0.0), step=1.0)
            self._extent = gui.add_vector3("Size or scale", (1.0, 1.0, 1.0), step=0.001)
            self._keep_lengths = gui.add_checkbox("Keep bone lengths", True)
            self._mirror = gui.add_button("Mirror left and right")
            self._region = gui.add_checkbox("Show region of influence", False)
        with gui.add_folder("Joints and bones", expand_by_default=False):
            self._name = gui.add_text("Name", "")
            self._add_joint = gui.add_button("Add joint")
            self._remove_joint = gui.add_button("Remove joint")
            self._other_joint = gui.add_dropdown("Bone to", ("",))
            self._toggle_bone = gui.add_button("Add or remove bone")
        buttons = (self._add_joint, self._remove_joint, self._toggle_bone)
        self._skeleton_elements: tuple[Any, ...] = (self._name, self._other_joint, *buttons)
        with gui.add_folder("Photo"):
            self._photo_menu = gui.add_dropdown("Photo", tuple(self._photos.names))
            self._overlay = gui.add_checkbox("Show control on it", True)
            self._through = gui.add_button("Look through it")
            self._all_cameras = gui.add_checkbox("Show all cameras", False)
            self._pick = gui.add_button("Place joint by clicks in two photos")
        self._undo = gui.add_button("Undo")
        self._reset = gui.add_button("Reset")
        self._save = gui.add_button("Save edit.json", color="green")
        self._connect_panel()

    def _connect_panel(self) -> None:
        """Say what happens when an element of the panel is changed or clicked."""
        self._prompt.on_update(self._handler(lambda: self.document.change(prompt=self._prompt.value)))
        self._source_prompt.on_update(
            self._handler(lambda: self.document.change(source_prompt=self._source_prompt.value))
        )
        for element in (self._side_menu, self._part_menu, self._photo_menu, self._overlay, self._region):
            element.on_update(self._handler(lambda: None))
        self._all_cameras.on_update(self._handler(lambda: None))
        self._name.on_update(self._handler(self._rename))
        self._add_joint.on_click(self._handler(self._add_a_joint))
        self._remove_joint.on_click(self._handler(self._remove_a_joint))
        self._toggle_bone.on_click(self._handler(self._toggle_a_bone))
        self._joint_menu.on_update(self._handler(lambda: self._select(self._joint_menu.value)))
        for vector in (self._position, self._rotation, self._extent):
            vector.on_update(self._handler(self._place_by_numbers))
        self._mirror.on_click(self._handler(self._mirror_pose))
        self._through.on_click(lambda event: self._look_through(event.client, self._photo_index))
        self._pick.on_click(self._handler(self._begin_picking))
        self._undo.on_click(self._handler(self._undo_change))
        self._reset.on_click(self._handler(self.document.reset))
        self._save.on_click(self._handler(self._write))

    @property
    def _photo_index(self) -> int:
        return self._photos.names.index(self._photo_menu.value)

    @property
    def _part_index(self) -> int:
        return int(self._part_menu.value.split(":")[0]) - 1

    @property
    def _side(self) -> Side:
        return "source" if self._side_menu.value == "source" else "target"

    def say(self, text: str) -> None:
        """Show a sentence at the top of the page."""
        self._status.content = text

    def _handler(self, action: Callable[[], object]) -> Callable[[Any], None]:
        """An action of the panel as viser calls it."""

        def run(event: viser.GuiEvent) -> None:
            # Values that the page itself sets come back as events, too, but of no client.
            if event.client_id is not None:
                self._perform(action)

        return run

    def _perform(self, action: Callable[[], object]) -> None:
        """Perform an action, one at a time: show its mistakes as a sentence, and bring the page up to date after it."""
        with self._lock:
            self._dragged_at = -math.inf
            try:
                action()
            except (UserError, OSError) as error:
                self.say(f"**{plain(str(error))}**")
            self.refresh()

    def refresh(self) -> None:
        """Bring panel and scene up to date with the document."""
        with self._lock, atomic(self.server):
            self._draw()

    def _draw(self) -> None:
        number, side = self._part_index, self._side
        part = self.document.parts[number]
        skeleton = isinstance(part, JointedControl)
        for element in (self._joint_menu, self._keep_lengths, self._mirror, self._pick, *self._skeleton_elements):
            element.visible = skeleton
        for element in (self._rotation, self._extent):
            element.visible = not skeleton
        self.scene.draw_control(number, side)
        if isinstance(part, JointedControl):
            joints = getattr(part, side)
            if self._selected not in joints:
                self._selected = "neck" if "neck" in joints else next(iter(joints))
            _set_options(self._joint_menu, tuple(joints), self._selected)
            other = self._other_joint.value
            _set_options(self._other_joint, tuple(joints), other if other in joints else self._selected)
            _set(self._name, self._selected)
            position, wxyz = joints[self._selected], (1.0, 0.0, 0.0, 0.0)
        else:
            placed: MeshPlacement | BoxPlacement = getattr(part, side)
            position, wxyz = placed.position, quaternion(placed.rotation)
            _set(self._rotation, placed.rotation)
            _set(self._extent, placed.size if isinstance(placed, BoxPlacement) else placed.factors)
        _set(self._position, position)
        _set(self._prompt, self.document.edit.prompt)
        _set(self._source_prompt, self.document.edit.source_prompt)
        self.scene.draw_gizmo(number, side, position, wxyz, turns=not skeleton)
        self.scene.around.show_cameras(self._all_cameras.value, self._photo_index)
        if not self._dragging:
            # It takes longer than the rest together, and is drawn when the drag pauses.
            self._draw_projections(*self._projections())

    def _projections(self) -> tuple[int, Any, Any]:
        """The number of the chosen photo, that photo with the control, and the region of influence, as they are now."""
        index = self._photo_index
        return index, self.scene.photo(index, self._side, self._overlay.value), self._region_centres()

    def _draw_projections(self, index: int, image: Any, centres: Any) -> None:
        self.scene.draw_overlay(index, image)
        self.scene.around.draw_region(centres)

    def _region_centres(self) -> Any:
        """Where the edit may change the scene, if that is to be shown; computed anew where the edit has changed."""
        edit = self.document.edit
        if not self._region.value:
            return None
        if self._region_of is None or self._region_of[0] != edit:
            try:
                self._region_of = edit, self._photos.region(edit, self.document.path.parent)
            except UserError as error:
                self.say(f"**{plain(str(error))}**")
                self._region_of = edit, None
        return self._region_of[1]

    def _drag(self, position: list[float], wxyz: NDArray) -> None:
        """Follow the gizmo. Moves come faster than they can be drawn: only the latest counts."""
        self._dragged = (position, wxyz)
        with self._lock:
            dragged, self._dragged = self._dragged, None
            if dragged is None:
                return
            now = time.monotonic()
            merge = now - self._dragged_at < DRAG_PAUSE
            self._dragging = True
            try:
                self._perform(lambda: self._place(*dragged, merge=merge))
            finally:
                self._dragging = False
            self._dragged_at = now
        self._settle(now)

    def _settle(self, moved: float) -> None:
        """Draw what a drag leaves out when it has paused; a drag that goes on meanwhile does not wait for it."""

        def draw() -> None:
            if self._dragged_at != moved:
                return
            projections = self._projections()
            with self._lock, atomic(self.server):
                if self._dragged_at == moved:
                    self._draw_projections(*projections)

        timer = threading.Timer(SETTLED, draw)
        timer.daemon = True
        timer.start()

    def _select(self, joint: str) -> None:
        self._selected = joint

    def _place_by_numbers(self) -> None:
        part = self.document.parts[self._part_index]
        if isinstance(part, JointedControl):
            self._place(list(self._position.value), None)
            return
        placed: MeshPlacement | BoxPlacement = getattr(part, self._side)
        key = "size" if isinstance(placed, BoxPlacement) else "scale"
        values = {"position": self._position.value, "rotation": self._rotation.value, key: self._extent.value}
        self.document.set_placement(self._part_index, self._side, values)

    def _place(self, position: list[float], wxyz: NDArray | None, merge: bool = False) -> None:
        """Put the selected joint, or the solid, at a position; with `merge` both changes are undone together."""
        part = self.document.parts[self._part_index]
        if isinstance(part, JointedControl):
            joints = self.document.joints(self._part_index, self._side)
            moved = move_joint(joints, part.all_bones, self._selected, position, self._keep_lengths.value)
            self.document.set_joints(self._part_index, self._side, moved, merge)
            return
        assert wxyz is not None
        values = {"position": position, "rotation": degrees(wxyz)}
        self.document.set_placement(self._part_index, self._side, values, merge)

    def _jointed(self) -> JointedControl:
        part = self.document.parts[self._part_index]
        assert isinstance(part, JointedControl)
        return part

    def _rename(self) -> None:
        if self._name.value != self._selected:
            new = self._name.value.strip()
            self.document.change_part(self._part_index, **with_name(self._jointed(), self._selected, new))
            self._selected = new

    def _add_a_joint(self) -> None:
        values, name = with_joint(self._jointed(), self._selected)
        self.document.change_part(self._part_index, **values)
        self._selected = name
        self.say(f"**{plain(name)}** added in both poses; drag it, and give it a name.")

    def _remove_a_joint(self) -> None:
        self.document.change_part(self._part_index, **without_joint(self._jointed(), self._selected))

    def _toggle_a_bone(self) -> None:
        values = with_or_without_bone(self._jointed(), self._selected, self._other_joint.value)
        self.document.change_part(self._part_index, **values)

    def _mirror_pose(self) -> None:
        mirrored = mirror(self.document.joints(self._part_index, self._side))
        self.document.set_joints(self._part_index, self._side, mirrored)

    def _undo_change(self) -> None:
        self.say("Undone." if self.document.undo() else "There is nothing to undo.")

    def _write(self) -> None:
        backup = self.document.save()
        kept = f"; the one before is {backup.name}" if backup is not None else ""
        self.say(f"Saved {plain(str(self.document.path))}{kept}.")

    def _look_through(self, client: viser.ClientHandle | None, index: int) -> None:
        if client is None:
            return
        self.scene.look_through(client, index, self._side, self._overlay.value)
        _set(self._photo_menu, self._photos.names[index])

    def _begin_picking(self) -> None:
        self._clicks = PhotoClicks(self._photos.views)
        self.say(
            f"Click **{plain(self._selected)}** in the photo **{plain(self._photo_menu.value)}**; then choose another "
            f"photo, look through it, and click there. The click is read where the photo shows it."
        )

        @self.server.scene.on_pointer_event("click")
        def _(event: viser.ScenePointerEvent) -> None:
            self._perform(lambda: self._pick_pixel(event))

    def _pick_pixel(self, event: viser.ScenePointerEvent) -> None:
        """Take a click for the pixel of the chosen photo that lies under it; the second click places the joint."""
        if not self._clicks.add(self._photo_index, torch.tensor(event.ray_direction)):
            self.say(f"Now choose another photo, look through it, and click **{plain(self._selected)}** there.")
            return
        self.server.scene.remove_pointer_callback()
        point, gap = self._clicks.point()
        self._place(point.tolist(), None)
        kept = " as far as its bone reaches" if self._keep_lengths.value else ""
        self.say(f"**{plain(self._selected)}** placed{kept}; the two clicks miss each other by {2 * gap:.3g}.")


def _set(element: Any, value: Any) -> None:
    """Set an element's value, but only where it differs: setting it sends an event."""
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
    """Print where the page is, and wait for Ctrl-C."""
    console.print(
        f"Pose the edit at http://{page.server.get_host()}:{page.server.get_port()}; Save writes {page.document.path}. "
        f"Ctrl-C ends the page.",
        soft_wrap=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.server.stop()
