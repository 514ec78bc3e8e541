"""What all prompts begin with, read once: its keys and values stand before every batch.

The system prompt, the instructions and the list of classes are the same in every sample of a task, and often most of
its tokens. Tokens see only what is before them, so that what a model makes of a common beginning does not depend on
what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

WORTHWHILE_TOKENS = 16
"""A shorter beginning is read with each sample: it would save less than the copying of its keys and values costs."""


@dataclass(frozen=True)
class SharedPrefix:
    """A beginning that was read: for every layer its keys and values, each of shape (1, H, P, D)."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def for_rows(self, rows: int) -> DynamicCache | None:
        """Return a cache in which each of a batch's rows has read it; none where nothing is shared."""
        if not self.length:
            return None
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache


NOTHING_SHARED = SharedPrefix(0, ())


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with, short of the last of the shortest, from which answers follow."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts)
    first = prompts[0]
    shared = next(
        (i for i in range(shortest) if any(prompt[i] != first[i] for prompt in prompts)),
        shortest,
    )
    length = min(shared, shortest - 1)
    return length if length >= WORTHWHILE_TOKENS else 0


@torch.inference_mode()
def read_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> SharedPrefix:
    """Let a causal model read the tokens that all prompts begin with; it may be none."""
    if not tokens:
        return NOTHING_SHARED
    ids = torch.tensor([list(tokens)], device=model.device)
    cache = cast(Any, model.base_model(input_ids=ids, use_cache=True)).past_key_values
    return SharedPrefix(len(tokens), tuple((layer.keys, layer.values) for layer in cache.layers))
