"""The edit's part of the nerfstudio viewer: status, what the camera frustums show, and buttons that steer the run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import viser
import viser.transforms as vtf
from nerfstudio.engine.trainer import Trainer
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerDropdown,
    ViewerElement,
    ViewerSlider,
    ViewerText,
)
from PIL import Image
from torch import nn

from qnerf_nerfstudio.pages.viser_safety import atomic, plain
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.progress import Status
from qnerf_nerfstudio.run.run import Scene

THUMBNAIL = 100
"""Height in pixels of the images in camera frustums, as nerfstudio's."""


class ViewerMarkdown(ViewerElement[str]):
    """A text that the viewer shows and nobody edits."""

    def __init__(self, name: str, content: str) -> None:
        super().__init__(name)
        self._content = content
        self._handle: viser.GuiMarkdownHandle | None = None

    @property
    def content(self) -> str:
        """The text, in markdown."""
        return self._content

    @content.setter
    def content(self, content: str) -> None:
        if content != self._content and self._handle is not None:
            self._handle.content = content
        self._content = content

    def _create_gui_handle(self, viser_server: viser.ViserServer) -> None:
        self._handle = viser_server.gui.add_markdown(self._content)

    def install(self, viser_server: viser.ViserServer) -> None:
        """Add the text to the viewer."""
        self._create_gui_handle(viser_server)


class PromptButton(ViewerButton):
    """A button that is answered at once.

    Nerfstudio calls the hooks of others under the trainer's lock, which a render or a slice may hold for a minute.

    Args:
        name: What stands on it.
        pressed: Called in a thread of the viewer when it is pressed. It must not touch the model.
        visible: Whether it is shown.
    """

    def __init__(self, name: str, pressed: Callable[[], None], visible: bool = True) -> None:
        super().__init__(name, cb_hook=lambda _: None, visible=visible)
        self._pressed = pressed

    def install(self, viser_server: viser.ViserServer) -> None:
        """Add the button to the viewer."""
        self._create_gui_handle(viser_server)
        self.gui_handle.on_click(lambda _: self._pressed())


@dataclass(frozen=True)
class Request:
    """What somebody at the viewer asked for."""

    kind: Literal["finish", "again"]
    """What is to be done; see Revision."""
    prompt: str = ""
    """Target prompt of another attempt."""
    guidance_scale: float = 1.0
    """Its classifier-free guidance scale."""


class EditPanel(nn.Module):
    """Elements of the nerfstudio viewer, which looks for them in modules only, and orders them by attribute.

    Callbacks run in the viewer's threads; they leave a request that the run takes up between two training steps.

    Args:
        prompt: Target prompt of the edit.
        guidance_scale: Classifier-free guidance scale of the edit.
    """

    def __init__(self, prompt: str, guidance_scale: float) -> None:
        super().__init__()
        self.activity = ViewerMarkdown("Status", "not started")
        self.cameras = ViewerDropdown(
            "Cameras show", "edited", ["source", "control", "edited"], cb_hook=lambda _: self._show_all()
        )
        self.chosen_scene = ViewerDropdown[Scene](
            "Scene shows", "edited", ["captured", "carried", "edited"], cb_hook=lambda _: self.show_scene()
        )
        self.editing_off = PromptButton("Pause editing", lambda: self._pause(True))
        self.editing_on = PromptButton("Continue editing", lambda: self._pause(False), visible=False)
        self.finish = PromptButton("Keep views, train final NeRF now", lambda: self._ask(Request("finish")))
        self.new_prompt = ViewerText("Prompt", prompt)
        self.new_guidance_scale = ViewerSlider("Guidance scale", guidance_scale, 1.0, max(15.0, guidance_scale), 0.5)
        self.restart = PromptButton("Edit again with these", self._ask_again)
        self.explained: str | None = None
        """What the field explains of queries, in a sentence; None: nothing is fitted yet."""
        self._request: Request | None = None
        self._choose_scene: Callable[[Scene], None] | None = None
        self._note = ""
        self._trainer: Trainer | None = None
        self._artifacts: EditArtifacts | None = None
        self._photos: list[Path] = []
        self._edited: dict[int, Path] = {}

    def connect(
        self,
        trainer: Trainer,
        artifacts: EditArtifacts,
        photos: list[Path],
        choose_scene: Callable[[Scene], None],
    ) -> None:
        """Begin.

        Args:
            trainer: The trainer, whose viewer shows the panel.
            artifacts: The run's edit/ folder.
            photos: Photos of the training views.
            choose_scene: Lets the viewer render a scene; a ValueError says why it cannot.
        """
        self._trainer, self._artifacts, self._photos = trainer, artifacts, photos
        self._choose_scene = choose_scene

    def show_scene(self) -> None:
        """Let the viewer render the scene that is chosen, now that it or the run has changed."""
        if self._choose_scene is None:
            return
        scene, self._note = self.chosen_scene.value, ""
        try:
            self._choose_scene(scene)
        except ValueError as error:
            self._note = plain(f"Nothing {scene} to see: {error}.")

    def take_request(self) -> Request | None:
        """What was asked for since the last call."""
        request, self._request = self._request, None
        return request

    def show(self, status: Status) -> None:
        """Show where the run is."""
        lines = [f"**Stage {status.stage} of {status.stages}**: {status.description}"]
        lines.append(f"{status.timestep or 'field training'}, {100 * status.share:.0f} % of the stage")
        lines += [note for note in (status.remains, self._note, self.explained) if note]
        self.activity.content = "  \n".join(lines)

    def say(self, text: str) -> None:
        """Show a message, which may hold markdown, instead of the status."""
        self.activity.content = text

    def add_edited(self, view_indices: range, folder: Path) -> None:
        """Edited views arrived in a folder."""
        for index in view_indices:
            if index < len(self._photos):
                self._edited[index] = EditArtifacts.view(folder, self._photos[index])
                if self.cameras.value == "edited":
                    self._show(index)

    @property
    def _viewer(self) -> Viewer | None:
        viewer = None if self._trainer is None else self._trainer.viewer_state
        return viewer if isinstance(viewer, Viewer) else None

    def _pause(self, paused: bool) -> None:
        viewer, trainer = self._viewer, self._trainer
        if viewer is None or trainer is None or trainer.training_state == "completed":
            return
        trainer.training_state = "paused" if paused else "training"
        for button, visible in ((self.editing_off, not paused), (self.editing_on, paused)):
            button.set_visible(visible)
        viewer.pause_train.visible, viewer.resume_train.visible = not paused, paused

    def _ask(self, request: Request) -> None:
        self._request = request
        self.say("asked for; the views at hand are brought to the same timestep first")
        self._pause(False)

    def _ask_again(self) -> None:
        if not self.new_prompt.value.strip():
            self.say("the prompt is empty; describe the edited scene")
            return
        self._ask(Request("again", self.new_prompt.value, float(self.new_guidance_scale.value)))

    def _show_all(self) -> None:
        for index in range(len(self._photos)):
            self._show(index)

    def _show(self, index: int) -> None:
        """Put the chosen image into a view's frustum, where the viewer draws one."""
        viewer = self._viewer
        # Before training starts there are no frustums yet.
        if viewer is None or self._artifacts is None or index not in getattr(viewer, "camera_handles", ()):
            return
        photo = self._photos[index]
        shown = {
            "source": photo,
            "control": EditArtifacts.view(self._artifacts.controls("target"), photo),
            "edited": self._edited.get(index, photo),
        }[self.cameras.value]
        with Image.open(shown) as image:
            image.thumbnail((THUMBNAIL * 4, THUMBNAIL))
            pixels = np.array(image.convert("RGB"))
        old = viewer.camera_handles[index]
        assert viewer.trainer is not None
        camera = viewer.trainer.pipeline.datamanager.train_dataset.cameras[index]  # pyright: ignore
        c2w = viewer.original_c2w[index]
        rotation = vtf.SO3.from_matrix(c2w[:3, :3]) @ vtf.SO3.from_x_radians(np.pi)
        # viser has no way to change a frustum's image, but a node of the same name replaces it.
        handle = viewer.viser_server.scene.add_camera_frustum(
            name=f"/cameras/camera_{index:05d}",
            fov=float(2 * np.arctan(float(camera.cx / camera.fx[0]))),
            scale=viewer.config.camera_frustum_scale,
            aspect=float(camera.cx[0] / camera.cy[0]),
            image=pixels,
            wxyz=rotation.wxyz,
            position=c2w[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO,
            visible=old.visible,
        )
        handle.on_click(_look_through(viewer, index))
        viewer.camera_handles[index] = handle


def _look_through(viewer: Viewer, index: int) -> Callable[[viser.SceneNodePointerEvent], None]:
    """What nerfstudio does when a frustum is clicked."""

    def on_click(event: viser.SceneNodePointerEvent) -> None:
        with atomic(event.client):
            event.client.camera.position = event.target.position
            event.client.camera.wxyz = event.target.wxyz
            viewer.current_camera_idx = index

    return on_click
