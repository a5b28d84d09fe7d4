"""Settings that edit.json states, where the command line leaves them at their defaults."""

from pathlib import Path

from nerfstudio.engine.trainer import TrainerConfig

from qnerf_nerfstudio.common.console import CONSOLE
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.seeds import seed_everything
from qnerf_nerfstudio.edit.reading import edit_path, load_edit
from qnerf_nerfstudio.field.datamanager import QNerfDataManagerConfig
from qnerf_nerfstudio.run.settings import RunSettings


def take_stated_settings(config: TrainerConfig) -> None:
    """Change the settings of a run that edit.json states and the command line does not."""
    from nerfstudio.configs.method_configs import all_methods  # noqa: PLC0415 - it loads our methods

    pipeline, method = config.pipeline, all_methods.get(config.method_name or "")
    assert isinstance(pipeline, RunSettings) and isinstance(pipeline.datamanager, QNerfDataManagerConfig)
    manager = pipeline.datamanager
    try:
        path = edit_path(Path(manager.data or manager.dataparser.data), pipeline.edit)
        stated = load_edit(path, pipeline.outside_paths, tell=False).settings if path.exists() else None
    except UserError:
        return  # told where the edit is read to be used
    if stated is None or not isinstance(method, TrainerConfig):
        return
    usual = method.pipeline
    assert isinstance(usual, RunSettings)
    editors = (pipeline.editor, usual.editor)
    taken = {}
    for name, owner, default in (
        ("guidance_scale", *editors),
        ("controlnet_scale", *editors),
        ("seed", config.machine, method.machine),
    ):
        value = getattr(stated, name)
        if value is not None and getattr(owner, name) == getattr(default, name) != value:
            setattr(owner, name, value)
            taken[name] = value
    if "seed" in taken:
        seed_everything(taken["seed"])
    if taken:
        words = ", ".join(f"{name} {_shown(value)}" for name, value in taken.items())
        CONSOLE.print(f"Settings of {path}: {words}.", soft_wrap=True, markup=False)


def _shown(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
