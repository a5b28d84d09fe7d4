"""An edit as every view of a capture sees it: control images, and where the edit may change anything."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.capture.coordinates import dataset_to_scene
from qnerf_nerfstudio.controls.draw import changed, control_images
from qnerf_nerfstudio.controls.influence import Influence, find_influence
from qnerf_nerfstudio.controls.lifting import lift_skeleton
from qnerf_nerfstudio.edit.schema import Edit, Everywhere, ImagesControl, control_kind
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.field.model import QNerfModel


@dataclass(frozen=True)
class ProjectedEdit:
    """An edit in all views, training views first."""

    views: Views
    """Their cameras, in scene coordinates."""
    names: list[str]
    """File names of their photos."""
    source: Float[Tensor, "V 3 H W"]
    """Control images of the captured scene, in [0, 1]."""
    target: Float[Tensor, "V 3 H W"]
    """Control images of the edited scene."""
    changes: bool
    """Whether the control changes anything."""
    influence: Influence
    """Where the edit may change the scene and its views."""


def project_edit(
    edit: Edit,
    folder: Path,
    data: QNerfDataManager,
    size: tuple[int, int],
    scene_box: Float[Tensor, "2 3"],
    restrict: bool = True,
    lift: bool = False,
) -> ProjectedEdit:
    """Draw an edit's control into all views, and find where it may change them.

    Args:
        edit: The edit.
        folder: Folder of edit.json, that relative paths start from.
        data: The capture.
        size: Height and width of the control images.
        scene_box: Lower and upper corner of the scene box.
        restrict: False lets the edit change everything, whatever it states.
        lift: Redraw ready-made OpenPose images from the skeleton that those of the training views agree on.

    Raises:
        UserError: Control, region or masks do not fit the capture.
    """
    views, names = data.views(), [path.name for path in data.filenames]
    to_scene = dataset_to_scene(data.train_dataparser_outputs, Path(data.config.dataparser.data))
    source, target = control_images(edit, folder, views, names, to_scene, size)
    if lift and isinstance(edit.control, ImagesControl) and control_kind(edit.control) == "openpose":
        source, target = _lift_controls(views.resized(size), source, target, data.num_train)
    if not restrict:
        edit = edit.model_copy(update={"region": Everywhere(type="everywhere"), "masks": None})
    different = changed(source, target)
    influence = find_influence(edit, folder, views, names, different, data.num_train, to_scene, scene_box)
    return ProjectedEdit(views, names, source, target, bool(different.any()), influence)


def _lift_controls(
    views: Views, source: Float[Tensor, "V 3 H W"], target: Float[Tensor, "V 3 H W"], training: int
) -> tuple[Float[Tensor, "V 3 H W"], Float[Tensor, "V 3 H W"]]:
    """Control images of the two skeletons that training views show; those given where they show no such skeletons."""
    before, after = (lift_skeleton(views[:training], images[:training]) for images in (source, target))
    if before is None or after is None:
        CONSOLE.print(
            f"The control images of the {'source' if before is None else 'target'} show no single OpenPose skeleton "
            f"that the views agree on: all of them are used as they are.",
            style="yellow",
            soft_wrap=True,
        )
        return source, target
    CONSOLE.print(
        f"Control images are drawn anew from skeletons lifted to 3D: {len(before.bones)} bones in the source, "
        f"{len(after.bones)} in the target.",
        soft_wrap=True,
    )
    return before.draw(views), after.draw(views)


def restrict_field(influence: Influence, data: QNerfDataManager, model: QNerfModel) -> None:
    """Let edited views change the field only where the edit may; elsewhere the photos go on to teach it."""
    model.region = None if influence.region is None else influence.region.to(model.device)
    data.changed = None if influence.masks is None else influence.masks[: data.num_train]
