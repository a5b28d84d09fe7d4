"""What edited views keep of the carried ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qnerf_nerfstudio.run.artifacts import EditArtifacts
from qnerf_nerfstudio.run.plan import Slice, Task
from qnerf_nerfstudio.run.settings import RunSettings
from qnerf_nerfstudio.run.stages import with_unchanged


def test_edited_views_keep_carried_pixels_where_the_editor_changes_nothing(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    carried = 0.25 + 0.5 * torch.rand(2, 3, 32, 32, generator=generator)
    coded = carried + 0.1 * torch.randn(carried.shape, generator=generator)
    edited = coded.clone()
    edited[1, :, :16] = 1 - edited[1, :, :16]
    edited[1, :, :16] += torch.where(edited[1, :, :16] > 0.5, 0.4, -0.4)
    artifacts, settings = EditArtifacts(tmp_path), RunSettings()
    run: Any = SimpleNamespace(
        artifacts=artifacts,
        prepared=SimpleNamespace(settings=settings),
        slices=lambda attempt: SimpleNamespace(coded=lambda item: coded),
    )
    item = Slice(Task.DECODE, 0, 4, chunk=1)
    # Views that begin from photos are as the editor makes them.
    assert with_unchanged(run, item, edited) is edited
    artifacts.carried(1).save({"images": carried})
    kept = with_unchanged(run, item, edited)
    assert torch.equal(kept[0], carried[0]) and torch.equal(kept[1, :, 17:], carried[1, :, 17:])
    assert (kept[1, :, :15] - edited[1, :, :15]).abs().max() < 0.01
    settings.keep_unchanged = 0.0
    assert with_unchanged(run, item, edited) is edited
