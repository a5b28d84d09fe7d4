"""What a stage teaches the field: targets from the run's files to the datamanager."""

import torch

from qnerf_nerfstudio.common.images import load_images
from qnerf_nerfstudio.field.datamanager import QNerfDataManager
from qnerf_nerfstudio.run.artifacts import EditStore


def set_targets(data: QNerfDataManager, store: EditStore, chunks: int, fitted: int | None, final: bool) -> None:
    """Point the datamanager at the photos, at the previews and codes of a fit, or at the edited views.

    Args:
        data: Gets the targets.
        store: The run's edit/ folder.
        chunks: Number of chunks that the views are cut into.
        fitted: Number of the interval whose fit is trained or stays, None before the first.
        final: Whether the final field is trained.
    """
    from qnerf_nerfstudio.run.slices import load_codec, load_joined_codes

    data.images = data.codes = None
    folder = "images" if final else f"previews/{fitted}"
    if final or fitted is not None:
        paths = [store.root / folder / f"{path.stem}.png" for path in data.filenames[: data.num_train]]
        data.images = data.photos_outside(torch.stack(load_images(paths)))
    if fitted is not None:
        codec = load_codec(store, fitted)
        data.codes = load_joined_codes(store, fitted, chunks, codec)[: data.num_train]
        data.code_widths = [layer.width for layer in codec.layers.values()]
