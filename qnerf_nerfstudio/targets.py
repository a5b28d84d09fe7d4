"""What a stage teaches the field, and where: targets from the run's files to the datamanager."""

import torch
from jaxtyping import Bool
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from qnerf_nerfstudio.controls import Views
from qnerf_nerfstudio.datamanager import QNerfDataManager
from qnerf_nerfstudio.model import QNerfModel
from qnerf_nerfstudio.region import visual_hull
from qnerf_nerfstudio.store import EditStore, load_images


def set_targets(data: QNerfDataManager, store: EditStore, chunks: int, fitted: int, final: bool) -> None:
    """Point the datamanager at the photos, at the previews and codes of a fit, or at the edited views.

    Args:
        data: Gets the targets.
        store: The run's edit/ folder.
        chunks: Number of chunks that the views are cut into.
        fitted: Number of the interval whose fit is trained or stays, -1 before the first.
        final: Whether the final field is trained.
    """
    from qnerf_nerfstudio.slices import load_codec, load_joined_codes

    data.images = data.codes = None
    folder = "images" if final else f"previews/{fitted}"
    if final or fitted >= 0:
        paths = [store.root / folder / f"{path.stem}.png" for path in data.filenames[: data.num_train]]
        data.images = data.photos_outside(torch.stack(load_images(paths)))
    if fitted >= 0:
        codec = load_codec(store, fitted)
        data.codes = load_joined_codes(store, fitted, chunks, codec)[: data.num_train]
        data.code_widths = [layer.width for layer in codec.layers.values()]


def restrict_edit(
    model: QNerfModel, datamanager: QNerfDataManager, views: Views, different: Bool[Tensor, "V h w"]
) -> None:
    """Restrict an edit to the visual hull of what its control images change.

    Args:
        model: Gets the region.
        datamanager: Gets the pixels that see it.
        views: Cameras of all views, training views first.
        different: Where control images of source and target differ.
    """
    training, different = views[: datamanager.num_train], different[: datamanager.num_train]
    if not different.any():
        return
    region = visual_hull(training, different, model.scene_box.aabb)
    if region is None:
        CONSOLE.print(
            "The control images change no part of the scene box that most views see: the edit may change all of the "
            "scene.",
            style="yellow",
            soft_wrap=True,
        )
        return
    model.region = region.to(model.device)
    datamanager.changed = region.seen(training.resized((different.shape[1], different.shape[2])))
