"""Which samples go through a model together, and how they are padded to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evaluation.rendering import IGNORE, Example

PADDING_TOKENS = 512
"""Most padding of a batch: on a CPU, about what another batch costs while answers are written, which reads the weights
again for every token."""


def batches_by_length(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of near-equal length whose padded size is at most `most_tokens`, longest first.

    At most `PADDING_TOKENS` of a batch are padding. An index longer than the limit is a batch of its own.
    """
    batch: list[int] = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        missing = lengths[batch[0]] - lengths[i] if batch else 0
        if batch and (lengths[batch[0]] * (len(batch) + 1) > most_tokens or padding + missing > PADDING_TOKENS):
            yield batch
            batch, padding, missing = [], 0, 0
        batch.append(i)
        padding += missing
    if batch:
        yield batch


def pad_examples(examples: Sequence[Example], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad to the longest on the right: input ids, labels and attention mask, each of shape (B, T)."""
    width = max(len(example.input_ids) for example in examples)
    ids, labels, mask = [], [], []
    for example in examples:
        missing = width - len(example.input_ids)
        ids.append([*example.input_ids, *[padding] * missing])
        labels.append([*example.labels, *[IGNORE] * missing])
        mask.append([1] * len(example.input_ids) + [0] * missing)
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)


def pad_behind(prompts: Sequence[Sequence[int]], prefix: int, padding: int) -> tuple[list[list[int]], list[list[int]]]:
    """Pad prompts between the beginning that they share and their own tokens; return ids and mask."""
    width = max(len(prompt) for prompt in prompts)
    missing = [width - len(prompt) for prompt in prompts]
    ids = [[*own[:prefix], *[padding] * gap, *own[prefix:]] for own, gap in zip(prompts, missing, strict=True)]
    mask = [[1] * prefix + [0] * gap + [1] * (width - prefix - gap) for gap in missing]
    return ids, mask
