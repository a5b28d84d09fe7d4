"""Prompts, as the text encoders of Stable Diffusion and of Stable Diffusion XL read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """Encoded prompts: one for all views, or one for each of them."""

    tokens: Float[Tensor, "V L D"]
    """States of the tokens, which cross-attention reads."""
    pooled: Float[Tensor, "V P"] | None = None
    """State of the whole prompt, which Stable Diffusion XL reads too."""

    def expand(self, views: int) -> "TextStates":
        """The same for a number of views."""
        pooled = None if self.pooled is None else self.pooled.expand(views, -1)
        return TextStates(self.tokens.expand(views, -1, -1), pooled)

    @staticmethod
    def joined(parts: Sequence["TextStates"]) -> "TextStates":
        """Several as one, in their order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextStates(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts of an edit."""

    source: TextStates
    """Describes the views that editing begins from; used for inversion and the source branch."""
    target: TextStates
    """Describes the edited scene."""
    negative: TextStates
    """What classifier-free guidance steers away from."""


class PromptEncoder:
    """The text encoders of a model set and their tokenizers: one, or the two of Stable Diffusion XL.

    Args:
        encoders: Tokenizer and text model of each; the last of two gives the pooled state.
        zeros_for_empty: An empty negative prompt is zeros, as `force_zeros_for_empty_prompt` of a model set says.
    """

    def __init__(self, encoders: Sequence[tuple[Any, Any]], zeros_for_empty: bool = False) -> None:
        self.tokenizers = [tokenizer for tokenizer, _ in encoders]
        self.models = [model for _, model in encoders]
        self.zeros_for_empty = zeros_for_empty

    @property
    def longest(self) -> int:
        """Number of tokens that are read."""
        return int(self.tokenizers[0].model_max_length) - 2

    @torch.no_grad()
    def encode(self, prompt: str) -> TextStates:
        """Encode a prompt as StableDiffusionPipeline and StableDiffusionXLPipeline do."""
        if len(self.models) == 1:
            return TextStates(self._read(0, prompt)[0].float())
        outputs = [self._read(number, prompt, output_hidden_states=True) for number in range(len(self.models))]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextStates(tokens.float(), outputs[-1][0].float())

    def encode_negative(self, prompt: str) -> TextStates:
        """Encode a negative prompt."""
        states = self.encode(prompt)
        if prompt or not self.zeros_for_empty:
            return states
        pooled = None if states.pooled is None else torch.zeros_like(states.pooled)
        return TextStates(torch.zeros_like(states.tokens), pooled)

    def dropped_words(self, prompt: str) -> str:
        """The end of a prompt that is not read, empty where all of it is."""
        tokenizer = self.tokenizers[0]
        tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        # The first and the last token that are read are the text's marks of beginning and end.
        return str(tokenizer.decode(tokens[self.longest :])).strip()

    def _read(self, number: int, prompt: str, **options: bool) -> Any:
        """What a text model makes of a prompt."""
        tokenizer, model = self.tokenizers[number], self.models[number]
        tokens = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(model.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(model.device)
        return model(tokens.input_ids.to(model.device), attention_mask=mask, **options)
