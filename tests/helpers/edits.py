"""Settings of short edits that run in the process of a test."""

import copy
from pathlib import Path
from typing import Any

from qnerf_nerfstudio.methods import qnerf_edit_tiny


def short_edit(capture: Path, out: Path, num_steps: int, editor: Path | None = None) -> Any:
    """The tiny method's settings with few iterations, and a model set's folder; see `commands.RUN` for the run's."""
    config: Any = copy.deepcopy(qnerf_edit_tiny.config)
    config.data, config.output_dir, config.vis = capture, out, "tensorboard"
    config.experiment_name, config.timestamp = "e", "t"
    pipeline = config.pipeline
    pipeline.editor.num_steps, pipeline.editor.resolution, pipeline.tau = num_steps, 64, 2
    if editor is not None:
        pipeline.editor.model, pipeline.editor.controlnet = str(editor), (str(editor / "controlnet"),)
    pipeline.start, pipeline.consolidation, pipeline.stop = "inverted", "progressive", 0.4
    pipeline.source_iterations, pipeline.fit_iterations, pipeline.final_iterations = 3, 4, 8
    pipeline.datamanager.train_num_rays_per_batch = 64
    pipeline.model.num_proposal_samples_per_ray, pipeline.model.num_nerf_samples_per_ray = (16,), 12
    return config
