"""Make a whole edit without the command line, as `ns-train qnerf-edit-tiny` does.

The settings of a method are a nerfstudio config: copy them, change fields, and let nerfstudio's trainer run. The run's
folder holds the final field and, in `edit/`, the edited views as a dataset. The defaults take minutes on a CPU.

    qnerf toy capture scene
    python examples/3_edit_from_python.py --data scene --out outputs
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import tyro

from qnerf_nerfstudio.common.seeds import seed_everything
from qnerf_nerfstudio.methods import qnerf_edit_tiny


def main(data: Path, out: Path, resolution: int = 256, num_steps: int = 20, iterations: int = 1000) -> None:
    """Edit a capture.

    Args:
        data: The capture, a nerfstudio dataset with an edit.json.
        out: Gets the run.
        resolution: Shorter side of the edited images in pixels.
        num_steps: Number of diffusion timesteps.
        iterations: Training steps of the fields of the photos, of the intermediate views, and of the edited views.
    """
    # The types of nerfstudio's configs are those of the base classes.
    config: Any = deepcopy(qnerf_edit_tiny.config)
    config.pipeline.datamanager.data = config.data = data
    config.output_dir, config.vis = out, "tensorboard"
    settings = config.pipeline
    settings.editor.resolution, settings.editor.num_steps = resolution, num_steps
    settings.source_iterations = settings.fit_iterations = settings.final_iterations = iterations
    config.set_timestamp()
    config.save_config()
    seed_everything(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    print(f"run: {config.get_base_dir()}")


if __name__ == "__main__":
    tyro.cli(main)
