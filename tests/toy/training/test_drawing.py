"""Images and controls in batches are those of the exact renderer and of the controls."""

import pytest
import torch

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.toy.capture import focal_length
from qnerf_nerfstudio.toy.figure import Pose, joints
from qnerf_nerfstudio.toy.render import render
from qnerf_nerfstudio.toy.training import data
from qnerf_nerfstudio.toy.training.drawing import BONES, draw_depths, draw_images, draw_skeletons
from qnerf_nerfstudio.toy.training.figures import Scenes, place_capsules, place_joints, sample_scenes

SIZE = 96
FOCAL = focal_length(SIZE)


def scenes() -> Scenes:
    """Some scenes; the first figure wears a hat, the second does not."""
    found = sample_scenes(6, torch.Generator().manual_seed(3))
    assert set(found.bodies.wears_hat.tolist()) == {False, True}
    return found


def views(c2w: torch.Tensor) -> Views:
    """One camera."""
    return Views(c2w[None], torch.tensor([[FOCAL, FOCAL, SIZE / 2, SIZE / 2]]), torch.zeros(1, 6), (SIZE, SIZE))


def test_images_are_those_of_the_exact_renderer() -> None:
    drawn = scenes()
    capsules = place_capsules(drawn.bodies, place_joints(drawn.bodies, drawn.poses[:, 0]))
    images, masks = draw_images(drawn.bodies, capsules, drawn.c2w, SIZE)
    for index, body in enumerate(drawn.bodies.single()):
        frame = render(body, Pose(*drawn.poses[index, 0].tolist()), drawn.c2w[index], FOCAL, (SIZE, SIZE))
        apart = (images[index].int() - to_bytes(frame.rgb.movedim(-1, 0)).int()).abs().amax(-1)
        assert (apart > 1).float().mean() < 0.01
        # The exact silhouette is that of pixel centres.
        assert (masks[index] != frame.mask).float().mean() < 0.01
        assert (masks[index] & frame.mask).sum() > 0.95 * (masks[index] | frame.mask).sum()


@pytest.mark.parametrize("loose", [False, True])
def test_skeletons_are_those_of_the_control(loose: bool) -> None:
    drawn = scenes()
    placed = place_joints(drawn.bodies, drawn.poses[:, 1])
    kept = torch.ones(6, len(BONES), dtype=torch.bool)
    if loose:
        limbs = torch.tensor([bone in data.LIMB_BONES for bone in BONES])
        kept = ~(limbs & (torch.rand(kept.shape, generator=torch.Generator().manual_seed(4)) < 0.5))
    images = draw_skeletons(placed, kept, drawn.c2w, SIZE)
    for index, body in enumerate(drawn.bodies.single()):
        bones = [bone for bone, keep in zip(BONES, kept[index].tolist(), strict=True) if keep]
        names = {name for bone in bones for name in bone}
        skeleton = joints(body, Pose(*drawn.poses[index, 1].tolist()))
        visible = {name: at for name, at in skeleton.items() if name in names}
        true = draw_skeleton(views(drawn.c2w[index]), visible, bones)[0]
        apart = (images[index].float() - true.float()).abs()
        assert apart.mean() < min(0.4, 0.25 * true.float().mean())
        covered, wanted = images[index].amax(-1) > 60, true.amax(-1) > 60
        assert (covered & wanted).sum() > 0.8 * (covered | wanted).sum()


@pytest.mark.parametrize("boxes", [False, True])
def test_depths_are_those_of_the_control(boxes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, thickness = scenes(), 1.1
    placed = [place_capsules(drawn.bodies, place_joints(drawn.bodies, pose)) for pose in drawn.poses.unbind(1)]
    images = draw_depths(placed, torch.full((6,), thickness), torch.full((6,), boxes), drawn.c2w, SIZE)
    monkeypatch.setattr(data, "PROXY_THICKNESS", (thickness, thickness))
    monkeypatch.setattr(data, "BOX_PROXY_SHARE", float(boxes))
    for index, body in enumerate(drawn.bodies.single()):
        poses = [Pose(*angles) for angles in drawn.poses[index].tolist()]
        true = data.draw_depth(views(drawn.c2w[index]), body, poses, torch.Generator().manual_seed(0))
        seen, wanted = images[index, ..., 0] > 0, true[..., 0] > 0
        assert (seen & wanted).sum() > 0.96 * (seen | wanted).sum()
        apart = (images[index].float() - true.float()).abs()[seen & wanted]
        assert apart.mean() < (0.1 if boxes else 2.0)  # the mesh of a capsule has facets
        assert apart.quantile(0.9) <= (0.0 if boxes else 3.0)
