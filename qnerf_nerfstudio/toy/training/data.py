"""Training pairs from the procedural domain: one body, one camera, two poses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qnerf_nerfstudio.capture.cameras import Views
from qnerf_nerfstudio.common.errors import UserError
from qnerf_nerfstudio.common.images import to_bytes
from qnerf_nerfstudio.controls.skeleton import draw_skeleton
from qnerf_nerfstudio.controls.solids import box_mesh, depth_images, placement_matrix, raycast, transform_mesh
from qnerf_nerfstudio.edit.openpose import OPENPOSE_BONES
from qnerf_nerfstudio.edit.schema import Kind
from qnerf_nerfstudio.toy.capture import SOURCE_RANGES, TARGET_RANGES, focal_length, orbit_camera
from qnerf_nerfstudio.toy.figure import POSE_RANGES, Body, Pose, joints, sample_body, sample_pose
from qnerf_nerfstudio.toy.proxy import capsule_mesh, limb_boxes
from qnerf_nerfstudio.toy.render import Frame, render
from qnerf_nerfstudio.toy.training.config import TrainEditorConfig
from qnerf_nerfstudio.toy.training.models import IMAGE_SIZE

HELD_OUT = 1_000_000
"""Pairs from this index on are never trained on."""
LIMB_BONES = tuple(bone for bone in OPENPOSE_BONES if bone[1].endswith(("elbow", "wrist", "knee", "ankle")))
"""The bones of arms and legs, which a loose control may leave out."""
LOOSE_CONTROL_SHARE = 0.5
"""Share of the training images whose control is a loose one."""
DROPPED_BONE_SHARE = 0.4
"""Share of the limb bones that a loose control leaves out."""
DEPTH_CONTROL_SHARE = 0.5
"""Share of the training pairs whose controls are depths of a proxy, instead of skeletons."""
BOX_PROXY_SHARE = 0.3
"""Share of these proxies that are made of boxes; the others are made of capsules, as the figure is."""
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


def render_pair(
    index: int, size: int, with_room: bool = False, dropped: float | None = None, kind: Kind | None = None
) -> Pair:
    """The training pair with this index, always the same: body, camera and two poses are drawn with it as the seed.

    Half of the poses are those of captures (at rest, arms raised), half come from the whole range of poses.

    Args:
        index: Number of the pair.
        size: Width and height of the images in pixels.
        with_room: Render the empty room too.
        dropped: Share of the limb bones that both controls leave out; by default that of training for training pairs,
            none for held-out ones.
        kind: What the controls show, "openpose" or "depth"; by default either for training pairs, skeletons for
            held-out ones.
    """
    generator = torch.Generator().manual_seed(index)
    body = sample_body(generator)
    ranges = (SOURCE_RANGES, TARGET_RANGES, POSE_RANGES, POSE_RANGES)
    chosen = torch.randint(len(ranges), (2,), generator=generator)
    poses = [sample_pose(generator, ranges[int(k)]) for k in chosen]
    azimuth, elevation, distance, height = torch.rand(4, generator=generator).tolist()
    c2w = orbit_camera(360 * azimuth, 3 + 45 * elevation, 3.5 + 0.8 * distance, 0.95 + 0.1 * height)
    focal = focal_length(size)
    views = Views(c2w[None], torch.tensor([[focal, focal, size / 2, size / 2]]), torch.zeros(1, 6), (size, size))
    frames = [render(body, pose, c2w, focal, (size, size)) for pose in poses]
    skeletons = [joints(body, pose) for pose in poses]
    shares = [dropped or 0.0] * 2
    if dropped is None and index < HELD_OUT:
        shares = [
            DROPPED_BONE_SHARE if value < LOOSE_CONTROL_SHARE else 0.0 for value in torch.rand(2, generator=generator)
        ]
    room = render(body, None, c2w, focal, (size, size)) if with_room else None
    if kind is None:
        solid = index < HELD_OUT and float(torch.rand((), generator=generator)) < DEPTH_CONTROL_SHARE
        kind = "depth" if solid else "openpose"
    if kind == "depth":
        controls = draw_depth(views, body, poses, generator)
    else:
        drawn = [draw_loosely(views, each, share, generator) for each, share in zip(skeletons, shares, strict=True)]
        controls = torch.cat(drawn)
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


class Pool:
    """A growing pool of pairs, so that training starts at once and never runs out of new ones.

    Args:
        size: Width and height of the images in pixels.
        limit: The pool stops growing at this number of pairs.
        first: Index of its first pair.
    """

    def __init__(self, size: int, limit: int, first: int = 0) -> None:
        self.size, self.limit, self.first = size, limit, first
        self.pairs: list[Pair] = []

    def grow(self, count: int) -> list[Pair]:
        """Render up to `count` more pairs and return them."""
        start = len(self.pairs)
        new = [render_pair(self.first + i, self.size) for i in range(start, min(start + count, self.limit))]
        self.pairs += new
        return new

    def sample(self, count: int, generator: torch.Generator) -> list[Pair]:
        """Draw `count` pairs with replacement."""
        return [self.pairs[int(i)] for i in torch.randint(len(self.pairs), (count,), generator=generator)]


def training_pool(config: TrainEditorConfig) -> Pool:
    """The pairs that training with these settings draws from: each seed has its own, and none is held out.

    Raises:
        UserError: The seed's pairs would reach into the held-out ones.
    """
    first = config.seed * config.pool
    if not 0 <= first <= HELD_OUT - config.pool:
        raise UserError(
            f"--seed is {config.seed}; with --pool {config.pool} expected 0 to {HELD_OUT // config.pool - 1}, "
            f"later pairs are held out"
        )
    return Pool(IMAGE_SIZE, config.pool, first)
