"""How much of its queries a QNeRF explains, beside what needs no field: the mean over the other views at each place."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from qnerf_nerfstudio.diffusion.queries import QueryCodec
from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.tensor_file import TensorFile


@dataclass(frozen=True)
class Explained:
    """Shares of the variance of a layer's queries, in the directions of its code; at most 1, below 0 where worse than
    one mean for all places and views."""

    layer: str
    """Name of the layer."""
    others: float
    """Explained by the mean over the other views at each place, in training views."""
    others_held_out: float | None
    """The same in held-out views; None: there are none."""
    field: float
    """Explained by that mean and what the field renders, in training views."""
    field_held_out: float | None
    """The same in held-out views."""


def explained_by_fit(artifacts: EditArtifacts, num_train: int) -> Iterator[tuple[int, list[Explained]]]:
    """What every fit whose renders are complete explains, by interval.

    Args:
        artifacts: The run's files.
        num_train: Number of training views; they come first.
    """
    for interval, extracted, rendered in artifacts.query_files():
        # One training view is its own mean over all of them: nothing varies that could be explained.
        if num_train > 1 and extracted and len(rendered) == len(extracted):
            tensors = artifacts.codec(interval).load()
            if not any(name.endswith("/screen") for name in tensors):
                continue  # a run of 0.1: one mean for all places
            codec = QueryCodec.from_tensors(tensors)
            own, found = ([TensorFile(path).load() for path in files] for files in (extracted, rendered))
            yield interval, explained(codec, _joined(codec, own), _joined(codec, found), num_train)


def explained(
    codec: QueryCodec,
    own: dict[str, Float[Tensor, "V H W K"]],
    rendered: dict[str, Float[Tensor, "V H W K"]],
    num_train: int,
) -> list[Explained]:
    """What rendered codes explain of the views' own, layer by layer.

    Args:
        codec: The code.
        own: Codes of all views, training views first.
        rendered: What the field renders for them.
        num_train: Number of training views, at least 2.
    """
    rows = []
    for name, layer in codec.layers.items():
        energy = own[name].square().sum((1, 2, 3))
        missed = (own[name] - rendered[name]).square().sum((1, 2, 3))
        # Deviations from the screen mean make up this share of the variance.
        scale = (1 - layer.screen) / energy[:num_train].mean()
        # The screen mean holds every training view itself: without it, deviations are longer by V / (V - 1).
        without = (num_train / (num_train - 1)) ** 2
        parts = (without * energy[:num_train], energy[num_train:], missed[:num_train], missed[num_train:])
        shares = [1 - scale * part for part in parts]
        means = [float(share.mean()) if len(share) else None for share in shares]
        assert means[0] is not None and means[2] is not None
        rows.append(Explained(name, means[0], means[1], means[2], means[3]))
    return rows


def mean_row(rows: list[Explained]) -> Explained:
    """The mean over layers."""

    def mean(key: str) -> float | None:
        values = [getattr(row, key) for row in rows]
        return None if None in values else fmean(values)

    others, field = mean("others"), mean("field")
    assert others is not None and field is not None
    return Explained("mean", others, mean("others_held_out"), field, mean("field_held_out"))


def summary(artifacts: EditArtifacts, num_train: int) -> str | None:
    """What the latest fit with complete renders explains, in a sentence; None before the first."""
    *_, latest = (None, *explained_by_fit(artifacts, num_train))
    if latest is None:
        return None
    interval, row = latest[0], mean_row(latest[1])
    field, others = shares(row.field, row.field_held_out), shares(row.others, row.others_held_out)
    return (
        f"The field of interval {interval + 1} explains {field} of its queries' variance, the mean over the other "
        f"views at each place {others}."
    )


def shares(training: float, held_out: float | None) -> str:
    """Shares in training and held-out views, in words."""
    return f"{training:.0%}" if held_out is None else f"{training:.0%} ({held_out:.0%} in held-out views)"


def _joined(codec: QueryCodec, chunks: list[dict[str, Tensor]]) -> dict[str, Float[Tensor, "V H W K"]]:
    return {name: torch.cat([chunk[name].float() for chunk in chunks]) for name in codec.layers}
