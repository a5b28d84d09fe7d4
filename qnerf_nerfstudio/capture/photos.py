"""The photos of a capture, or their edited views."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from torch import Tensor


class EditedDataset(InputDataset):
    """The capture's photos, or their edited views where there are any."""

    edited_images: Path | None = None

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """The edited view of a photo where there is one, else the photo; [H, W, 3 or 4], bytes."""
        photo = self._dataparser_outputs.image_filenames[image_idx]
        edited = None if self.edited_images is None else self.edited_images / f"{photo.stem}.png"
        if edited is None or not edited.exists():
            return super().get_numpy_image(image_idx)
        with Image.open(edited) as image:
            return np.array(image.convert("RGB"), dtype="uint8")

    def photo(self, image_idx: int) -> Float[Tensor, "H W C"]:
        """The photo itself in [0, 1], whether there is an edited view of it or not."""
        folder, self.edited_images = self.edited_images, None
        try:
            return self.get_image_float32(image_idx)
        finally:
            self.edited_images = folder
