"""Self-attention of the decoder: appearance injection, query capture and query injection.

The processors below replace diffusers' AttnProcessor2_0 on the chosen layers only, and equal it when idle. What they
do is read from one AttentionState that all of them share; nothing travels through cross_attention_kwargs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

KeysValues = dict[str, tuple[Tensor, Tensor]]
"""Keys and values [V, N, C] by layer name."""


class LastLayerCaptured(Exception):  # noqa: N818 - no error, the way out of a forward pass
    """Ends a forward pass early: the last layer's queries are captured and the rest is not needed."""


@dataclass
class AttentionState:
    """What the decoder's self-attention does in the current forward pass.

    A batch holds `branches` groups of equally many views, one after the other. Where the source branch takes part, it
    is the first group.
    """

    branches: int = 1
    """Number of groups in the batch."""
    share_first: bool = False
    """Appearance injection within one batch: every group attends to the keys and values of the first one."""
    recorded: KeysValues | None = None
    """Filled with the keys and values of the first group, to be replayed in a later pass."""
    replayed: KeysValues | None = None
    """Appearance injection across passes: every group attends to these keys and values."""
    captured: dict[str, Float[Tensor, "V N C"]] | None = None
    """Filled with the queries of the last group, before they are split into heads."""
    stop_after_capture: bool = False
    """Raise LastLayerCaptured once the last layer is captured."""
    edit_query: Callable[[str, Float[Tensor, "V N C"]], Float[Tensor, "V N C"]] | None = None
    """Query injection: maps (layer name, queries of one group) to new queries, for all groups but a first source."""
    source_first: bool = False
    """The first group is the source branch, which query injection leaves alone."""

    @property
    def is_sampling(self) -> bool:
        """Whether no queries, keys or values go into the pass or come out of it."""
        return all(each is None for each in (self.recorded, self.replayed, self.captured, self.edit_query))


def attend(
    attn: Any,
    query: Float[Tensor, "B N C"],
    key: Float[Tensor, "B M C"],
    value: Float[Tensor, "B M C"],
    attention_mask: Tensor | None = None,
) -> Float[Tensor, "B N C"]:
    """Scaled dot-product attention in the heads of an `Attention` layer, before its output projection."""
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    return mixed.transpose(1, 2).flatten(-2)


class DecoderAttnProcessor:
    """Scaled dot-product self-attention as AttnProcessor2_0, with the hooks of an AttentionState.

    Args:
        name: The layer's name, the key of captured queries, keys and values.
        state: The state shared by all layers.
        queried: Whether its queries are captured and edited; keys and values are injected in every layer.
        last: Whether it is the last of those in the order of the forward pass.
    """

    def __init__(self, name: str, state: AttentionState, queried: bool, last: bool) -> None:
        self.name, self.state, self.queried, self.last = name, state, queried, last

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N C"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Attend with an `Attention` layer on flattened tokens; AttnProcessor2_0 explains the arguments."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = self._query(attn.to_q(hidden_states))
        key, value = self._key_value(attn.to_k(hidden_states), attn.to_v(hidden_states))

        hidden_states = attend(attn, query, key, value, attention_mask).to(residual.dtype)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _query(self, query: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        state = self.state
        if not self.queried:
            return query
        groups = list(query.chunk(state.branches))
        if state.captured is not None:
            state.captured[self.name] = groups[-1]
            if self.last and state.stop_after_capture:
                raise LastLayerCaptured
        if state.edit_query is not None:
            first = 1 if state.source_first else 0
            groups[first:] = [state.edit_query(self.name, group) for group in groups[first:]]
            query = torch.cat(groups)
        return query

    def _key_value(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state
        views = len(key) // state.branches
        if state.recorded is not None:
            state.recorded[self.name] = key[:views], value[:views]
        if state.share_first:
            key, value = (x[:views].repeat(state.branches, 1, 1) for x in (key, value))
        if state.replayed is not None:
            key, value = (x.repeat(state.branches, 1, 1) for x in state.replayed[self.name])
        return key, value


def decoder_self_attention(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The self-attention layers of the UNet's decoder in the order of the forward pass, found by structure.

    In Stable Diffusion 1.x these are nine layers at three resolutions. In Stable Diffusion XL an attention block holds
    up to ten transformer blocks: 36 layers at two resolutions.

    Raises:
        ValueError: The decoder has no self-attention.
    """
    layers: dict[str, Attention] = {}
    for block_index, block in enumerate(unet.up_blocks):
        for index, transformer in enumerate(getattr(block, "attentions", ())):
            for number, inner in enumerate(transformer.transformer_blocks):
                if not inner.attn1.is_cross_attention:
                    name = f"up_blocks.{block_index}.attentions.{index}.transformer_blocks.{number}.attn1"
                    layers[name] = inner.attn1
    if not layers:
        raise ValueError("the UNet's decoder has no self-attention; expected the architecture of Stable Diffusion")
    return layers


def query_layers(layers: Iterable[str], blocks: Literal["first", "all"]) -> list[str]:
    """The layers whose queries are consolidated: those of the first transformer block of every attention block, or all.

    Args:
        layers: Names of the decoder's layers.
        blocks: Which of them.
    """
    return [name for name in layers if blocks == "all" or name.endswith(".transformer_blocks.0.attn1")]


def install(unet: UNet2DConditionModel, state: AttentionState, blocks: Literal["first", "all"] = "first") -> list[str]:
    """Put DecoderAttnProcessors on the decoder's self-attention and AttnProcessor2_0 on every other attention layer.

    Args:
        unet: The denoiser.
        state: The state that the layers share.
        blocks: Whose queries are captured and edited, see `query_layers`.

    Returns:
        The names of the layers whose queries are, in the order of the forward pass.
    """
    chosen = list(decoder_self_attention(unet))
    names = query_layers(chosen, blocks)
    processors = {}
    for key in unet.attn_processors:
        name = key.removesuffix(".processor")
        decoder = DecoderAttnProcessor(name, state, name in names, name == names[-1])
        processors[key] = decoder if name in chosen else AttnProcessor2_0()
    unet.set_attn_processor(processors)
    return names


@contextmanager
def attention(state: AttentionState, settings: AttentionState) -> Iterator[None]:
    """Apply `settings` to the shared `state` for one forward pass, and leave it idle afterwards."""
    for item in fields(AttentionState):
        setattr(state, item.name, getattr(settings, item.name))
    try:
        yield
    except LastLayerCaptured:
        pass
    finally:
        idle = AttentionState()
        for item in fields(AttentionState):
            setattr(state, item.name, getattr(idle, item.name))
