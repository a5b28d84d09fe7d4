"""Training pairs, made in chunks on the training's device and kept there for a while."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from qnerf_nerfstudio.toy.training.data import BOX_PROXY_SHARE, DROPPED_BONE_SHARE, LIMB_BONES, PROXY_THICKNESS
from qnerf_nerfstudio.toy.training.drawing import BONES, draw_depths, draw_images, draw_skeletons
from qnerf_nerfstudio.toy.training.figures import Scenes, place_capsules, place_joints

CPU_CHUNK, GPU_CHUNK = 8, 64
"""Pairs that are made at once: a GPU idles on few, a CPU's cache holds few."""
SIGHTINGS = 6
"""How often training sees a pair on average before a new one replaces it."""
SEED_SPACING = 10_000_000
"""Seeds of a pool's chunks start at a multiple of this, beyond those of held-out pairs and captures."""
FIRST_PAIRS = 128
"""Where pairs are slow to make, on a CPU, training starts with so many of them."""
DEPTH_CONTROL_SHARE = 0.5
"""Share of the training pairs whose controls are depths of a proxy, instead of skeletons."""


@dataclass(frozen=True)
class ImagePairs:
    """What the VAE is trained on."""

    images: UInt8[Tensor, "B 2 H W 3"]
    """The photos of each body in its two poses."""
    masks: Bool[Tensor, "B 2 H W"]
    """Their silhouettes."""


@dataclass(frozen=True)
class LatentPairs:
    """What the denoiser is trained on."""

    latents: Float[Tensor, "B 2 C h w"]
    """Scaled latents of the photos, in half precision."""
    controls: UInt8[Tensor, "B 2 H W 3"]
    """Their control images."""
    loose: UInt8[Tensor, "B 2 H W 3"]
    """The same, some limb bones left out of skeletons."""
    masks: Bool[Tensor, "B 1 h w"]
    """Latents that see the figure in either pose."""
    tokens: Int[Tensor, "B L"]
    """Token numbers of the captions."""


Examples = TypeVar("Examples", ImagePairs, LatentPairs)


def draw_pairs(scenes: Scenes, size: int) -> ImagePairs:
    """Photos and silhouettes of scenes, `size` pixels wide and high."""
    drawn = []
    for pose in scenes.poses.unbind(1):
        capsules = place_capsules(scenes.bodies, place_joints(scenes.bodies, pose))
        drawn.append(draw_images(scenes.bodies, capsules, scenes.c2w, size))
    images, masks = zip(*drawn, strict=True)
    return ImagePairs(torch.stack(images, dim=1), torch.stack(masks, dim=1))


def draw_controls(
    scenes: Scenes, size: int, generator: torch.Generator
) -> tuple[UInt8[Tensor, "B 2 H W 3"], UInt8[Tensor, "B 2 H W 3"]]:
    """Controls of scenes, and loose ones: depths of proxies for the first scenes, skeletons for the others.

    Args:
        scenes: The scenes.
        size: Width and height of the images.
        generator: Random numbers, on the CPU.

    Returns:
        The controls, and the same with `data.DROPPED_BONE_SHARE` of the limb bones left out of skeletons.
    """
    device = scenes.c2w.device
    solid = round(DEPTH_CONTROL_SHARE * len(scenes.c2w))
    joints = [place_joints(scenes.bodies, pose) for pose in scenes.poses.unbind(1)]
    draws = torch.rand(2, solid, generator=generator).to(device)
    thickness = PROXY_THICKNESS[0] + (PROXY_THICKNESS[1] - PROXY_THICKNESS[0]) * draws[0]
    proxies = [place_capsules(scenes.bodies, each).first(solid) for each in joints]
    depths = draw_depths(proxies, thickness, draws[1] < BOX_PROXY_SHARE, scenes.c2w[:solid], size)
    limbs = torch.tensor([bone in LIMB_BONES for bone in BONES])
    skeletons, loose = [], []
    for each in joints:
        dropped = limbs & (torch.rand(len(each) - solid, len(BONES), generator=generator) < DROPPED_BONE_SHARE)
        for drawn, kept in ((skeletons, torch.ones_like(dropped)), (loose, ~dropped)):
            drawn.append(draw_skeletons(each[solid:], kept.to(device), scenes.c2w[solid:], size))
    whole, loosely = (torch.cat([depths, torch.stack(drawn, dim=1)]) for drawn in (skeletons, loose))
    return whole, loosely


class Pool(Generic[Examples]):
    """Training examples on one device, made in chunks; once it is full, new chunks replace the oldest ones.

    What it holds depends on the seed and on the number of chunks made alone, so that resumed training sees the same.

    Args:
        make: Makes a chunk, so many pairs on the device, from a generator on the CPU.
        limit: Number of pairs, rounded up to whole chunks, that are kept.
        seed: Seed of all pairs.
        device: Where they are kept.
    """

    def __init__(
        self, make: Callable[[int, torch.Generator], Examples], limit: int, seed: int, device: torch.device
    ) -> None:
        self.make, self.seed, self.device = make, seed, device
        self.chunk = GPU_CHUNK if device.type == "cuda" else CPU_CHUNK
        self.slots = max(1, math.ceil(limit / self.chunk))
        self.chunks = 0
        self.held: Any = None

    def __len__(self) -> int:
        return self.chunk * min(self.chunks, self.slots)

    def grow_to(self, pairs: int) -> None:
        """Make chunks until `pairs` pairs were made in all; those that later ones replace are skipped."""
        wanted = max(self.chunks, math.ceil(pairs / self.chunk))
        for number in range(max(self.chunks, wanted - self.slots), wanted):
            made = self.make(self.chunk, torch.Generator().manual_seed(SEED_SPACING * (1 + self.seed) + number))
            parts = {item.name: getattr(made, item.name) for item in fields(made)}
            if self.held is None:
                empty = {name: part.new_empty(self.slots * self.chunk, *part.shape[1:]) for name, part in parts.items()}
                self.held = type(made)(**empty)
            first = number % self.slots * self.chunk
            for name, part in parts.items():
                getattr(self.held, name)[first : first + self.chunk] = part
        self.chunks = wanted

    def sample(self, count: int, generator: torch.Generator) -> Examples:
        """Draw `count` pairs with replacement."""
        rows = torch.randint(len(self), (count,), generator=generator, device=self.device)
        return type(self.held)(**{item.name: getattr(self.held, item.name)[rows] for item in fields(self.held)})


def pairs_after(steps: int, per_step: int, limit: int, device: torch.device) -> int:
    """How many pairs to have made after so many training steps that see `per_step` pairs each.

    A GPU fills its pool before the first step; on a CPU the pool grows from FIRST_PAIRS while training goes on.
    """
    first = limit if device.type == "cuda" else min(limit, FIRST_PAIRS)
    return first + math.ceil(steps * per_step / SIGHTINGS)
