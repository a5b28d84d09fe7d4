"""The region of influence: its shapes against closed forms, its seams, and that nothing leaks out of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cameras import SCENE_BOX, ball_masks, ring
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.controls.influence import (
    RegionOfInfluence,
    composite,
    find_region_of_influence,
    keep_unchanged,
)
from qnerf_nerfstudio.controls.region import shape_region
from qnerf_nerfstudio.controls.solids import placement_matrix
from qnerf_nerfstudio.edit.schema import BoxRegion, Edit

IDENTITY = torch.eye(4)[:3]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(-180, 180), min_size=3, max_size=3), st.integers(0, 1000))
def test_a_box_region_holds_the_points_of_the_box_under_any_scene_transform(angles: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    box = BoxRegion(type="box", position=(0.2, -0.1, 0.3), rotation=tuple(angles), size=(0.8, 0.4, 0.6))
    to_scene = placement_matrix((0.5, 0.1, -0.2), torch.rand(3, generator=generator).tolist(), [0.3] * 3)[:3]
    region = shape_region(box, to_scene, None)
    local = 3 * torch.rand(4000, 3, generator=generator) - 1.5
    matrix = to_scene @ placement_matrix(box.position, box.rotation, [side / 2 for side in box.size])
    points = local @ matrix[:, :3].T + matrix[:, 3]
    inside, near = local.abs().amax(-1) < 1, (local.abs().amax(-1) - 1).abs() < 0.15
    assert torch.equal(region.contains(points)[~near], inside[~near])


def test_a_sphere_region_inside_the_hull_of_the_control() -> None:
    views, centre = ring(12), torch.tensor([0.0, 0.05, 0.0])
    different = ball_masks(views, centre, 0.12)
    region = {"type": "sphere", "position": [0.0, 0.15, 0.0], "radius": 0.1}
    influence = find_region_of_influence(
        edit(region=region), Path(), views, names(12), different, 12, IDENTITY, SCENE_BOX
    )
    assert influence.voxels is not None and influence.masks is not None
    assert influence.voxels.contains(torch.tensor([0.0, 0.12, 0.0]))
    assert not influence.voxels.contains(torch.tensor([[0.0, 0.23, 0.0], [0.0, -0.03, 0.0]])).any()
    hull = find_region_of_influence(edit(), Path(), views, names(12), different, 12, IDENTITY, SCENE_BOX).masks
    assert hull is not None and (influence.masks & ~hull).sum() <= 0.01 * hull.sum()
    assert influence.masks.sum() < 0.7 * hull.sum()
    far = {"type": "sphere", "position": [0.7, 0.7, 0.0], "radius": 0.1}
    with pytest.raises(UserError, match="holds nothing of what the control changes"):
        find_region_of_influence(edit(region=far), Path(), views, names(12), different, 12, IDENTITY, SCENE_BOX)
    everywhere = find_region_of_influence(
        edit(region={"type": "everywhere"}), Path(), views, names(12), different, 12, IDENTITY, SCENE_BOX
    )
    assert everywhere == RegionOfInfluence(None, None)


def test_masks_narrow_the_region_and_are_checked(tmp_path: Path) -> None:
    views = ring(6)
    different = ball_masks(views, torch.zeros(3), 0.2)
    (tmp_path / "masks").mkdir()
    stated = np.zeros((64, 64), np.uint8)
    stated[:, 32:] = 255
    for name in names(6):
        Image.fromarray(stated).save(tmp_path / "masks" / name)

    def found(region: str) -> torch.Tensor:
        statement = edit(region={"type": region}, masks="masks")
        influence = find_region_of_influence(statement, tmp_path, views, names(6), different, 6, IDENTITY, SCENE_BOX)
        assert influence.masks is not None
        return influence.masks

    assert torch.equal(found("everywhere"), torch.from_numpy(stated > 0).expand(6, -1, -1))
    both = found("control")
    assert both.any() and not both[:, :, :32].any()
    for name in names(6):
        Image.fromarray(0 * stated).save(tmp_path / "masks" / name)
    with pytest.raises(UserError, match="leave no pixel"):
        found("everywhere")
    (tmp_path / "masks" / names(6)[0]).unlink()
    with pytest.raises(UserError, match=r"masks: .* has 5 images for 6 photos"):
        found("everywhere")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 0.3), st.sampled_from([(64, 64), (48, 80), (128, 128)]))
def test_seams_are_soft_inside_and_nothing_outside(seed: int, feather: float, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 4, 4, generator=generator) > 0.5
    masks = torch.nn.functional.interpolate(coarse.float(), (64, 64)).squeeze(1) > 0
    weights = RegionOfInfluence(None, masks).blend_weights(size, feather)
    assert weights is not None and weights.shape == (2, 1, *size)
    outside = torch.nn.functional.interpolate(masks[:, None].float(), size) == 0
    assert not weights[outside].any() and weights.min() >= 0 and weights.max() <= 1 + 1e-5
    photos, edited = torch.rand(2, 2, 3, *size, generator=generator)
    mixed = composite(edited, photos, weights)
    assert torch.equal(mixed.movedim(1, -1)[outside[:, 0]], photos.movedim(1, -1)[outside[:, 0]])
    full = weights.squeeze(1) >= 1
    torch.testing.assert_close(mixed.movedim(1, -1)[full], edited.movedim(1, -1)[full])
    assert torch.equal(composite(edited, photos, None), edited)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.01, 1), st.sampled_from([(16, 16), (64, 64), (128, 96)]))
def test_what_the_editor_leaves_alone_stays_as_it_was(seed: int, change: float, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    begun, coded, other = torch.rand(3, 2, 3, *size, generator=generator)
    assert torch.equal(keep_unchanged(coded, begun, coded, change), begun)
    # The left half is changed by far, the right half is not.
    edited = torch.where(torch.arange(size[1]) < size[1] // 2, coded + 4 * change, coded)
    kept, reach = keep_unchanged(edited, begun, coded, change), 2
    torch.testing.assert_close(
        kept[..., : size[1] // 2 - reach], edited[..., : size[1] // 2 - reach], atol=1e-5, rtol=0
    )
    assert torch.equal(kept[..., size[1] // 2 + reach :], begun[..., size[1] // 2 + reach :])
    # The more may change unnoticed, the more stays; nothing lies outside of both.
    shares = [(keep_unchanged(other, begun, coded, each) - other).abs() for each in (change, 2 * change)]
    assert (shares[1] >= shares[0] - 1e-6).all() and (shares[1] <= (begun - other).abs() + 1e-6).all()


def test_a_latent_may_change_where_any_of_its_pixels_may() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 7, 8] = True
    latents = RegionOfInfluence(None, masks).latent_masks(8)
    assert latents is not None and latents.tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]


def edit(**more: object) -> Edit:
    control = {
        "type": "skeleton",
        "source": {"neck": [0, 0, 0], "nose": [0, 0, 1]},
        "target": {"neck": [0, 0, 0], "nose": [0, 1, 0]},
    }
    return Edit.model_validate(
        json.loads(json.dumps({"prompt": "b", "source_prompt": "a", "control": control, **more}))
    )


def names(count: int) -> list[str]:
    return [f"{index}.png" for index in range(count)]
