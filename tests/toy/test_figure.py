"""The procedural figure."""

import torch

from qnerf_nerfstudio.toy.figure import Body, joints, sample_body, sample_pose


def test_bones_keep_their_length_in_every_pose() -> None:
    generator = torch.Generator().manual_seed(5)
    body = sample_body(generator)
    for pair in (("r_shoulder", "r_elbow"), ("l_elbow", "l_wrist"), ("r_hip", "r_knee"), ("l_knee", "l_ankle")):
        lengths = []
        for _ in range(5):
            at = joints(body, sample_pose(generator))
            lengths.append(float((at[pair[0]] - at[pair[1]]).norm()))
        assert max(lengths) - min(lengths) < 1e-5


def test_captions_name_the_colours() -> None:
    body = Body(shirt="red", trousers="green", hat="blue", floor="grey", wall="pink", skin="brown")
    for colour in ("red", "green", "blue", "grey", "pink", "brown"):
        assert colour in body.caption()
