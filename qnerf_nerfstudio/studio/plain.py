"""A plain field on a dataset, trained like the final field of an edit: what an edit is compared with."""

import copy
from collections.abc import Callable
from pathlib import Path

from nerfstudio.configs.base_config import LoggingConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import writer

from qnerf_nerfstudio.common.seeds import seed_everything
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.studio.pipeline import QNerfPipelineConfig


def train_plain(
    data: Path,
    out: Path,
    edit: TrainerConfig,
    prepare: Callable[[VanillaPipeline], None] | None = None,
    iterations: int | None = None,
) -> VanillaPipeline:
    """Train a field with an edit's settings on a dataset as it is.

    Args:
        data: A nerfstudio dataset.
        out: Gets the run.
        edit: Settings of the edit that the field is to be compared with.
        prepare: Called with the pipeline before training starts.
        iterations: Training steps; by default those of the fields of photos and of edited views together.
    """
    edit = copy.deepcopy(edit)
    assert isinstance(edit.pipeline, QNerfPipelineConfig)
    config = TrainerConfig(
        method_name="plain",
        experiment_name=data.name,
        timestamp="plain",
        output_dir=out,
        data=data,
        machine=edit.machine,
        max_num_iterations=iterations or edit.pipeline.source_iterations + edit.pipeline.final_iterations,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        steps_per_save=0,
        logging=LoggingConfig(steps_per_log=100),
        mixed_precision=edit.mixed_precision,
        pipeline=VanillaPipelineConfig(
            datamanager=QNerfDataManagerConfig(
                data=data,
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=edit.pipeline.datamanager.train_num_rays_per_batch,
            ),
            model=edit.pipeline.model,
        ),
        optimizers=edit.optimizers,
        vis="tensorboard",
    )
    for group in config.optimizers.values():
        group["scheduler"].max_steps = config.max_num_iterations
    seed_everything(edit.machine.seed)
    trainer: Trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if prepare is not None:
        prepare(trainer.pipeline)  # pyright: ignore[reportArgumentType]
    trainer.train()
    # Nerfstudio never drops the log writers of a process: the next field would write here too.
    for each in writer.EVENT_WRITERS:
        if isinstance(each, writer.TensorboardWriter):
            each.tb_writer.close()
    writer.EVENT_WRITERS.clear()
    pipeline = trainer.pipeline
    assert isinstance(pipeline, VanillaPipeline)
    return pipeline
