"""An edit as every view of a capture sees it: control images, and where the edit may change anything."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.controls.draw import Controls, control_images, differing_pixels, head_pixels, placed_skeletons
from qnerf_nerfstudio.controls.images import load_drawings
from qnerf_nerfstudio.controls.influence import RegionOfInfluence, find_region_of_influence
from qnerf_nerfstudio.controls.lifting import LiftedSkeleton, NoSkeletonError, lift_skeleton
from qnerf_nerfstudio.edit.schema import Edit, Everywhere, ImagesControl, control_kinds, skeleton_parts


@dataclass(frozen=True)
class ProjectedEdit:
    """An edit in all views, training views first."""

    source: Controls
    """Control images of the captured scene, in [0, 1]."""
    target: Controls
    """Control images of the edited scene, in [0, 1]."""
    has_changes: bool
    """Whether the control changes anything."""
    influence: RegionOfInfluence
    """Where the edit may change the scene and its views."""
    lifted: tuple[LiftedSkeleton, LiftedSkeleton] | None
    """The skeletons that control images show in the captured and the edited scene, where they were drawn anew."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the control images."""
        return self.source.shape[-2], self.source.shape[-1]


def project_edit(
    edit: Edit,
    folder: Path,
    views: Views,
    names: list[str],
    num_train: int,
    to_scene: Float[Tensor, "3 4"],
    size: tuple[int, int],
    scene_box: Float[Tensor, "2 3"],
    restrict: bool = True,
    lift: bool = False,
) -> ProjectedEdit:
    """Draw an edit's control into all views, and find where it may change them.

    Args:
        edit: The edit.
        folder: Folder of edit.json, that relative paths start from.
        views: Cameras of all views in scene coordinates, training views first.
        names: File name of every view's photo.
        num_train: Number of training views.
        to_scene: Takes points of the dataset's coordinates to scene coordinates.
        size: Height and width of the control images.
        scene_box: Lower and upper corner of the scene box.
        restrict: False lets the edit change everything, whatever it states.
        lift: Redraw ready-made OpenPose images from the skeleton that those of the training views agree on.

    Raises:
        UserError: Control, region or masks do not fit the capture.
    """
    source, target = control_images(edit, folder, views, names, to_scene, size)
    lifted = None
    if lift and isinstance(edit.control, ImagesControl) and control_kinds(edit.control) == ("openpose",):
        lifted = _lift_controls(edit.control, folder, views[:num_train], names, size)
        if lifted is not None:
            source, target = (skeleton.draw(views.resized(size)) for skeleton in lifted)
    if not restrict:
        edit = edit.model_copy(update={"region": Everywhere(type="everywhere"), "masks": None})
    different = differing_pixels(source, target)
    if lifted is not None:
        before, after = ([(each.joints, each.bones)] for each in lifted)
    else:
        before, after = placed_skeletons(skeleton_parts(edit.control), to_scene)
    different |= head_pixels(before, after, views.resized(size))
    influence = find_region_of_influence(edit, folder, views, names, different, num_train, to_scene, scene_box)
    return ProjectedEdit(source, target, bool(different.any()), influence, lifted)


def _lift_controls(
    control: ImagesControl, folder: Path, views: Views, names: list[str], size: tuple[int, int]
) -> tuple[LiftedSkeleton, LiftedSkeleton] | None:
    """The two skeletons that control images of the training views show; None where they show none.

    Args:
        control: The control.
        folder: Folder of edit.json.
        views: Cameras of the training views.
        names: File name of every view's photo, those of training views first.
        size: Height and width of the control images as they are drawn anew.
    """
    skeletons = []
    for key, images in (("source", control.source), ("target", control.target)):
        try:
            drawings = load_drawings(folder / images, names, views.size)[: len(views)]
            skeletons.append(lift_skeleton(views.resized(size), drawings))
        except NoSkeletonError as error:
            CONSOLE.print(
                f"The control images of the {key} show no single OpenPose skeleton: {error}. All of them are used as "
                f"they are.",
                style="yellow",
                soft_wrap=True,
                markup=False,
            )
            return None
    before, after = skeletons
    CONSOLE.print(
        f"Control images are drawn anew from skeletons lifted to 3D: {len(before.bones)} bones in the source, "
        f"{len(after.bones)} in the target.",
        soft_wrap=True,
    )
    return before, after
