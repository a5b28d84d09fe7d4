"""The settings that a run depends on, so that it only goes on with those that it was begun with."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from nerfstudio.engine.trainer import TrainerConfig

COMPARED = ("pipeline", "optimizers", "mixed_precision", "use_grad_scaler", "gradient_accumulation_steps")
"""Parts of the settings that a run's result depends on."""
NOT_COMPARED = (
    "pipeline.edit",
    "pipeline.model.prompt",
    "pipeline.datamanager.data",
    "pipeline.datamanager.dataparser.data",
    "pipeline.datamanager.dataparser.photos",
    "pipeline.datamanager.edited_images",
    "pipeline.editor.device",
    "pipeline.keep_latents",
)
"""Settings that may change: where files lie (their contents are compared), where models run, and what is kept."""


def run_options(config: TrainerConfig, processes: int) -> dict[str, str]:
    """The options that a run's result depends on, by the name of their option.

    Args:
        config: Settings of the run.
        processes: Number of processes that share it.
    """
    parts = {name: getattr(config, name) for name in COMPARED}
    found = {
        name: value for key, part in parts.items() for name, value in flatten(key, part) if name not in NOT_COMPARED
    }
    found |= {"machine.seed": repr(config.machine.seed), "machine.num_devices": repr(processes)}
    return {"--" + name.replace("_", "-"): value for name, value in found.items()}


def flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A setting, or a JSON document, as the values in it by their dotted names."""
    if is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from flatten(f"{name}.{each.name}", getattr(value, each.name))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from flatten(f"{name}.{key}", each)
    elif isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):
        # Not as they are written: the same keys in another order are the same settings.
        for number, each in enumerate(value):
            yield from flatten(f"{name}.{number}", each)
    elif isinstance(value, type) or callable(value):
        yield name, f"{value.__module__}.{value.__qualname__}"
    else:
        yield name, repr(value)


def differences(before: Mapping[str, str], now: Mapping[str, str], limit: int = 4) -> str:
    """What differs, in words; empty where nothing does.

    Args:
        before: Values by name as they were.
        now: As they are.
        limit: Differences that are spelt out.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    words = [f"{name} (was {before.get(name, 'absent')}, is {now.get(name, 'absent')})" for name in names[:limit]]
    return ", ".join(words) + (f" and {len(names) - limit} more" if len(names) > limit else "")
