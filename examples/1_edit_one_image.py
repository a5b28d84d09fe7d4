"""Edit one photo of a capture with the diffusion editor alone: no field, no other views.

The photo is inverted under its own control image and sampled again under the control image of the edit, while the
UNet attends to keys and values of the photo. The result is written into the capture's folder.

    qnerf toy capture scene
    python examples/1_edit_one_image.py --data scene --view 3

The default is the bundled editor. Weights from the hub, with the ControlNet that reads the edit's control, need a GPU:

    python examples/1_edit_one_image.py --data scene --model stable-diffusion-v1-5/stable-diffusion-v1-5
"""

from pathlib import Path

import torch
import tyro
from torchvision.utils import save_image

from qnerf_nerfstudio import (
    EditorConfig,
    SourceBranch,
    control_images,
    control_kinds,
    load_edit,
    load_editor,
    read_capture,
)

BUNDLED = {
    "resolution": 256,
    "dtype": "float32",
    "guidance_scale": 1.0,
    "injection_start": 0.0,
    "inversion_iterations": 2,
}
"""Settings of the bundled editor, those of qnerf-edit-tiny."""


def main(data: Path, view: int = 0, model: str = "bundled", num_steps: int = 20) -> None:
    """Edit one photo.

    Args:
        data: The capture, a nerfstudio dataset with an edit.json.
        view: Number of the photo; training views come first.
        model: "bundled", or hub id, folder or file of a Stable Diffusion model.
        num_steps: Number of diffusion timesteps.
    """
    capture, edit = read_capture(data), load_edit(data / "edit.json")
    config = EditorConfig(model=model, num_steps=num_steps, **(BUNDLED if model == "bundled" else {}))
    editor = load_editor(config, "cuda" if torch.cuda.is_available() else "cpu", control_kinds(edit.control))
    views = capture.views()
    size = editor.image_size(*views.size)
    controls = control_images(edit, data, views, capture.names, capture.to_scene, size)
    source, target = (images[view : view + 1].to(editor.device) for images in controls)
    prompts = editor.encode_prompts(edit.source_prompt, edit.prompt, edit.negative_prompt)
    trajectory = editor.invert(editor.encode(capture.photos(range(view, view + 1), size)), prompts.source, source)
    latents = trajectory[0]
    for index in range(editor.num_steps):
        latents = editor.denoise_step(latents, index, prompts, target, SourceBranch(trajectory[index], source))
    out = data / f"{Path(capture.names[view]).stem}-edited.png"
    save_image(editor.decode(latents), out)
    print(f"edited view: {out}")


if __name__ == "__main__":
    tyro.cli(main)
