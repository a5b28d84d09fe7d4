"""Other recipes for consistent edits, on the product's own editor: what consolidation is compared with.

Each takes a Scene and returns the edited views. The recipes are those of Instruct-NeRF2NeRF (arXiv 2303.12789),
GaussCtrl (arXiv 2403.08733) and TokenFlow (arXiv 2307.10373), with this editor's control and appearance injection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qnerf_nerfstudio.diffusion.attention import AttentionState, attend, decoder_self_attention
from qnerf_nerfstudio.diffusion.conditions import SourceBranch
from qnerf_nerfstudio.diffusion.editor import ControlNetEditor
from qnerf_nerfstudio.diffusion.text import Prompts, TextStates

OWN_SHARE = 0.6
"""GaussCtrl's weight of a view's own attention; the mean over the reference views gets the rest."""
REFERENCES = 4
"""GaussCtrl's number of reference views."""
KEY_VIEWS = 6
"""Key views per timestep of token propagation."""


@dataclass
class Scene:
    """What every recipe starts from."""

    editor: ControlNetEditor
    """The product's editor; guidance scale 1."""
    prompts: Prompts
    """Encoded prompts."""
    photos: Float[Tensor, "V 3 H W"]
    """Source views in [0, 1]."""
    source_controls: Float[Tensor, "V 3 H W"]
    """Control images of the capture."""
    target_controls: Float[Tensor, "V 3 H W"]
    """Control images of the edit."""
    trajectory: list[Float[Tensor, "V C h w"]]
    """Inverted source latents, noisiest first."""


def invert(editor: ControlNetEditor, prompts: Prompts, photos: Tensor, controls: Tensor, chunk: int) -> list[Tensor]:
    """The source trajectory of all views, noisiest first."""
    parts = [
        editor.invert(editor.encode(photo), prompts.source, control)
        for photo, control in zip(photos.split(chunk), controls.split(chunk), strict=True)
    ]
    return [torch.cat(latents) for latents in zip(*parts, strict=True)]


class SharedAttnProcessor:
    """Self-attention of a batch [source views, edited views], in which edited views look at each other.

    Args:
        layer: How the edited views' attention is computed; called with the Attention layer and with the queries, keys,
            values and inputs of both halves.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attend; AttnProcessor2_0 explains the arguments."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        halves = [tuple(x.chunk(2)) for x in (query, key, value, hidden_states)]
        source = attend(attn, halves[0][0], halves[1][0], halves[2][0])
        mixed = torch.cat([source, self.layer(attn, *halves)])
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


@contextmanager
def shared_attention(editor: ControlNetEditor, layer: Any) -> Iterator[None]:
    """Put SharedAttnProcessors on the decoder's self-attention for a while."""
    before = editor.unet.attn_processors
    names = {f"{name}.processor" for name in decoder_self_attention(editor.unet)}
    editor.unet.set_attn_processor(
        {key: SharedAttnProcessor(layer) if key in names else AttnProcessor2_0() for key in before}
    )
    try:
        yield
    finally:
        editor.unet.set_attn_processor(before)


@torch.no_grad()
def sample(scene: Scene, layer_of_step: Callable[[], Any]) -> Float[Tensor, "V 3 H W"]:
    """Sample all views in one batch; `layer_of_step` makes each timestep's attention of the edited views."""
    editor, prompts = scene.editor, scene.prompts
    latents = scene.trajectory[0]
    count = len(latents)
    text = TextStates.joined([states.expand(count) for states in (prompts.source, prompts.target)])
    controls = torch.cat([scene.source_controls, scene.target_controls])
    for step in range(editor.num_steps):
        batch = torch.cat([scene.trajectory[step], latents])
        with shared_attention(editor, layer_of_step()):
            prediction = editor._predict(batch, step, text, controls, AttentionState())[count:]
        latents = editor.scheduler.step(prediction, int(editor.scheduler.timesteps[step]), latents).prev_sample
    return torch.cat([editor.decode(part) for part in latents.split(8)])


def reference_attention(scene: Scene) -> Float[Tensor, "V 3 H W"]:
    """GaussCtrl's recipe: 0.6 of a view's own attention and 0.4 of the mean attention to four edited views."""
    count = len(scene.photos)
    references = [round(i * (count - 1) / (REFERENCES - 1)) for i in range(REFERENCES)]

    def layer(attn: Any, query: Any, key: Any, value: Any, _: Any) -> Tensor:
        own = attend(attn, query[1], key[0], value[0])
        others = [
            attend(attn, query[1], key[1][r : r + 1].expand(count, -1, -1), value[1][r : r + 1].expand(count, -1, -1))
            for r in references
        ]
        return OWN_SHARE * own + (1 - OWN_SHARE) * torch.stack(others).mean(0)

    return sample(scene, lambda: layer)


def shared_appearance(scene: Scene) -> Float[Tensor, "V 3 H W"]:
    """Appearance injection that shares: the keys and values of a view's own source, joined by those of the edited views
    of the two cameras beside it, while cameras go around the scene."""

    def layer(attn: Any, query: Any, key: Any, value: Any, _: Any) -> Tensor:
        def joined(x: Any) -> Tensor:
            return torch.cat([x[0], x[1].roll(1, 0), x[1].roll(-1, 0)], dim=1)

        return attend(attn, query[1], joined(key), joined(value))

    return sample(scene, lambda: layer)


def token_propagation(scene: Scene, generator: torch.Generator) -> Float[Tensor, "V 3 H W"]:
    """TokenFlow's recipe: key views attend to all key views (and, for their appearance, to their own source); the
    other views take the outputs of the tokens of their two nearest key views whose source tokens are most alike.

    Views are taken in the order of their cameras; at every timestep key views are drawn anew, one from each of six
    equal stretches of that order.
    """
    count = len(scene.photos)
    bounds = [round(i * count / KEY_VIEWS) for i in range(KEY_VIEWS + 1)]

    def layer_of_step() -> Callable[..., Tensor]:
        keys = [int(torch.randint(low, high, (), generator=generator)) for low, high in pairwise(bounds)]

        def layer(attn: Any, query: Any, key: Any, value: Any, tokens: Any) -> Tensor:
            def extended(x: Any) -> Tensor:
                shared = x[1][keys].flatten(0, 1).expand(len(keys), -1, -1)
                return torch.cat([x[0][keys], shared], dim=1)

            attended = attend(attn, query[1][keys], extended(key), extended(value))
            features = F.normalize(tokens[0], dim=-1)
            outputs = []
            for view in range(count):
                nearest = sorted(range(len(keys)), key=lambda k: abs(keys[k] - view))[:2]
                distances = [abs(keys[k] - view) for k in nearest]
                mixed = torch.zeros_like(attended[0])
                for k, distance in zip(nearest, distances, strict=True):
                    match = (features[view] @ features[keys[k]].T).argmax(dim=-1)
                    mixed = mixed + (1 - distance / sum(distances)) * attended[k][match]
                outputs.append(attended[keys.index(view)] if view in keys else mixed)
            return torch.stack(outputs)

        return layer

    return sample(scene, layer_of_step)


@torch.no_grad()
def denoise_render(
    scene: Scene, view: int, render: Float[Tensor, "3 H W"], start: int, generator: torch.Generator
) -> Float[Tensor, "3 H W"]:
    """Instruct-NeRF2NeRF's update of one view: noise its render to timestep `start`, denoise it under the control."""
    editor = scene.editor
    latents = editor.encode(render[None])
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    latents = editor.scheduler.add_noise(latents, noise, editor.scheduler.timesteps[start : start + 1])
    chosen = slice(view, view + 1)
    for step in range(start, editor.num_steps):
        source = SourceBranch(scene.trajectory[step][chosen], scene.source_controls[chosen])
        latents = editor.denoise_step(latents, step, scene.prompts, scene.target_controls[chosen], source)
    return editor.decode(latents)[0]
