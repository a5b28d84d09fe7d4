"""Held-out pairs from the procedural domain, by its exact renderer: one body, one camera, two poses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.controls.solids import box_mesh, depth_images, placement_matrix, raycast, transform_mesh
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.edit.schema import Kind
from qnerf_nerfstudio.toy.capture import SOURCE_RANGES, TARGET_RANGES, focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import POSE_RANGES, Body, Pose, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.proxy import capsule_mesh, limb_boxes
from qnerf_nerfstudio.toy.render import Frame, render

HELD_OUT = 1_000_000
"""Index of the first held-out pair. Training draws its pairs from other random streams, see `pairs.py`."""
POSE_KINDS = (SOURCE_RANGES, TARGET_RANGES, POSE_RANGES, POSE_RANGES)
"""Each pose is drawn from one of these: half are those of captures (at rest, arms raised), half any."""
CAMERAS = ((0.0, 360.0), (3.0, 45.0), (3.5, 0.8), (0.95, 0.1))
"""Start and extent of the cameras' azimuths, elevations (degrees), distances and heights (metres)."""
LIMB_BONES = tuple(bone for bone in OPENPOSE_BONES if bone[1].endswith(("elbow", "wrist", "knee", "ankle")))
"""The bones of arms and legs, which a loose control may leave out."""
DROPPED_BONE_SHARE = 0.4
"""Share of the limb bones that a loose control leaves out."""
BOX_PROXY_SHARE = 0.3
"""Share of the depth controls' proxies that are made of boxes; the others are made of capsules, as the figure is."""
PROXY_THICKNESS = (0.8, 1.25)
"""Range of a proxy's thickness, relative to the figure's."""


@dataclass(frozen=True)
class Pair:
    """Two images of one body from one camera."""

    images: UInt8[Tensor, "2 H W 3"]
    """The photos."""
    controls: UInt8[Tensor, "2 H W 3"]
    """Their control images."""
    masks: Bool[Tensor, "2 H W"]
    """Their silhouettes."""
    room: UInt8[Tensor, "H W 3"] | None
    """The room without the figure, where asked for."""
    caption: str
    """The prompt that names the colours."""
    palette: Float[Tensor, "4 3"]
    """Colours of the figure's parts."""


def draw_loosely(
    views: Views, skeleton: Mapping[str, Float[Tensor, "3"]], dropped: float, generator: torch.Generator
) -> UInt8[Tensor, "V H W 3"]:
    """Draw a skeleton of the figure into every view, leaving out a share of the limb bones, other ones in every view.

    This is what a pose detector does to limbs that it does not see: a joint that no bone is left of goes with them.
    """
    images = []
    for index in range(len(views)):
        drawn = torch.rand(len(LIMB_BONES), generator=generator) >= dropped
        hidden = {bone for bone, kept in zip(LIMB_BONES, drawn.tolist(), strict=True) if not kept}
        bones = [bone for bone in OPENPOSE_BONES if set(bone) <= set(skeleton) and bone not in hidden]
        names = {name for bone in bones for name in bone}
        visible = {name: at for name, at in skeleton.items() if name in names}
        images.append(draw_skeleton(views[index : index + 1], visible, bones))
    return torch.cat(images)


def draw_depth(views: Views, body: Body, poses: list[Pose], generator: torch.Generator) -> UInt8[Tensor, "P H W 3"]:
    """Draw proxies of the figure in several poses as depth: capsules or boxes, thicker or thinner than it."""
    thickness = PROXY_THICKNESS[0] + (PROXY_THICKNESS[1] - PROXY_THICKNESS[0]) * float(
        torch.rand((), generator=generator)
    )
    boxes = bool(torch.rand((), generator=generator) < BOX_PROXY_SHARE)
    surfaces = []
    for pose in poses:
        if boxes:
            placed = [placement_matrix(*box) for box in limb_boxes(body, pose, thickness)]
            meshes = [transform_mesh(box_mesh(), matrix) for matrix in placed]
        else:
            meshes = [capsule_mesh(body, pose, thickness)]
        surfaces.append(raycast(views, meshes))
    return to_bytes(torch.cat(depth_images(surfaces)))


def render_pair(index: int, size: int, with_room: bool = False, dropped: float = 0.0, kind: Kind = "openpose") -> Pair:
    """The pair with this index, always the same: body, camera and two poses are drawn with it as the seed.

    Args:
        index: Number of the pair; held-out ones start at HELD_OUT.
        size: Width and height of the images in pixels.
        with_room: Render the empty room too.
        dropped: Share of the limb bones that both controls leave out.
        kind: What the controls show, "openpose" or "depth".
    """
    generator = torch.Generator().manual_seed(index)
    body = sample_body(generator)
    chosen = torch.randint(len(POSE_KINDS), (2,), generator=generator)
    poses = [sample_pose(generator, POSE_KINDS[int(k)]) for k in chosen]
    draws = torch.rand(len(CAMERAS), generator=generator).tolist()
    c2w = orbit_camera(*(start + extent * draw for (start, extent), draw in zip(CAMERAS, draws, strict=True)))
    focal = focal_length(size)
    views = Views(c2w[None], torch.tensor([[focal, focal, size / 2, size / 2]]), torch.zeros(1, 6), (size, size))
    frames = [render(body, pose, c2w, focal, (size, size)) for pose in poses]
    room = render(body, None, c2w, focal, (size, size)) if with_room else None
    if kind == "depth":
        controls = draw_depth(views, body, poses, generator)
    else:
        controls = torch.cat([draw_loosely(views, joints(body, pose), dropped, generator) for pose in poses])
    return Pair(
        images=torch.stack([_bytes(frame) for frame in frames]),
        controls=controls,
        masks=torch.stack([frame.mask for frame in frames]),
        room=None if room is None else _bytes(room),
        caption=body.caption(),
        palette=body.palette(),
    )


def _bytes(frame: Frame) -> UInt8[Tensor, "H W 3"]:
    return to_bytes(frame.rgb.movedim(-1, 0))
