"""Show the self-attention queries of a photo: what the field learns, and what makes the views agree.

The photo is inverted to a diffusion timestep, where the queries of the UNet's decoder are captured. The three strongest
principal components of every layer become red, green and blue. One picture shows the photo and its layers, coarse
to fine.

    qnerf toy capture scene
    python examples/4_query_maps.py --data scene --view 3 --out queries.png
"""

from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import save_image

from qnerf_nerfstudio import EditorConfig, control_images, control_kinds, load_edit, load_editor, read_capture

CONFIG = EditorConfig(model="bundled", resolution=256, dtype="float32", num_steps=20, guidance_scale=1.0)


def in_colours(queries: Tensor) -> Tensor:
    """A query map [H, W, C] as a picture [3, H, W]."""
    flat = queries.flatten(0, 1)
    basis = torch.pca_lowrank(flat, 3)[2]
    code = ((flat - flat.mean(0)) @ basis).unflatten(0, queries.shape[:2]).movedim(-1, 0)
    low, high = code.amin((1, 2), keepdim=True), code.amax((1, 2), keepdim=True)
    return (code - low) / (high - low)


def main(data: Path, view: int = 0, index: int = 12, out: Path = Path("queries.png")) -> None:
    """Write a picture of the queries.

    Args:
        data: The capture, a nerfstudio dataset with an edit.json.
        view: Number of the photo; training views come first.
        index: The timestep, from 0 (noise) to 19.
        out: The picture.
    """
    torch.manual_seed(0)  # the principal components are found by a randomised method
    capture, edit = read_capture(data), load_edit(data / "edit.json")
    editor = load_editor(CONFIG, "cpu", control_kinds(edit.control))
    views = capture.views()
    size = editor.image_size(*views.size)
    source, _ = control_images(edit, data, views, capture.names, capture.to_scene, size)
    control = source[view : view + 1]
    prompts = editor.encode_prompts(edit.source_prompt, edit.source_prompt, edit.negative_prompt)
    photo = capture.photos(range(view, view + 1), size)
    latents = editor.encode(photo)
    for step in range(editor.num_steps - 1, index - 1, -1):
        latents = editor.invert_step(latents, step, prompts.source, control)
    queries = editor.extract(latents, index, prompts, control).queries
    maps = sorted((queries[name][0] for name in editor.layer_names), key=len)
    pictures = [interpolate(in_colours(each)[None], size, mode="nearest")[0] for each in maps]
    save_image([photo[0], *pictures], out, nrow=1 + len(pictures))
    print(f"photo and {len(pictures)} layers: {out}")


if __name__ == "__main__":
    tyro.cli(main)
