"""The photos of a capture, or their edited views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from torch import Tensor

from qnerf_nerfstudio.common.images import FORMATS, WHITE, coverage, opaque, open_image, upright


class EditedDataset(InputDataset):
    """The capture's photos, or their edited views where there are any.

    Photos are read upright where their cameras are, and over white where they are transparent; so are masks.
    """

    edited_images: Path | None = None

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        # Nerfstudio's reader of masks takes palettes for colours, and refuses alpha.
        self._masks = dataparser_outputs.mask_filenames
        super().__init__(replace(dataparser_outputs, mask_filenames=None), scale_factor)
        self._mask_color, self.mask_color = self.mask_color, None

    @property
    def masks(self) -> list[Path]:
        """Masks of the photos, where they have some."""
        return list(self._masks or ())

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """The edited view of a photo where there is one, else the photo; [H, W, 3], bytes."""
        photo = self._dataparser_outputs.image_filenames[image_idx]
        edited = None if self.edited_images is None else self.edited_images / f"{photo.stem}.png"
        if edited is None or not edited.exists():
            edited = photo
        with open_image(edited, FORMATS) as image:
            size = self._size(image_idx)
            shown = opaque(upright(image, size), self._background)
            return np.array(shown if shown.size == size else shown.resize(size, Image.Resampling.BILINEAR))

    def get_metadata(self, data: dict) -> dict:
        """The mask of a photo, where it has one, and the photo over the dataparser's mask colour."""
        if self._masks is None:
            return {}
        size = self._size(data["image_idx"])
        with open_image(self._masks[data["image_idx"]], FORMATS) as image:
            shown = coverage(upright(image, size)).resize(size, Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.array(shown) > 0)[..., None]
        if self._mask_color is None:
            return {"mask": mask}
        return {"mask": mask, "image": torch.where(mask, data["image"], torch.tensor(self._mask_color))}

    def photo(self, image_idx: int) -> Float[Tensor, "H W C"]:
        """The photo itself in [0, 1], whether there is an edited view of it or not."""
        folder, self.edited_images = self.edited_images, None
        try:
            return self.get_image_float32(image_idx)
        finally:
            self.edited_images = folder

    @property
    def _background(self) -> tuple[int, int, int]:
        colour = self._dataparser_outputs.alpha_color
        return WHITE if colour is None else tuple((255 * colour).round().int().tolist())

    def _size(self, image_idx: int) -> tuple[int, int]:
        camera = self.cameras[image_idx]
        return int(camera.width), int(camera.height)
