"""Where another program's greedy answer parts from the model's own, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

LARGEST_GAP = 0.25
"""Logits between two tokens where two programs may part: rounding decides there, not the model."""


class Parting(BaseModel):
    """Where the two answers to a prompt part."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: int
    """Number of the prompt, from 0."""
    position: int
    """Number of the first token that differs, from 0."""
    gap: float
    """Logits by which the model prefers its most probable token there to the other one."""


@torch.inference_mode()
def first_parting(model: torch.nn.Module, prompt: Sequence[int], theirs: Sequence[int]) -> Parting | None:
    """Say where the model's own greedy answer parts from another one; one forward over the other answer tells.

    Up to the first token that is not the model's most probable one, both answers are the same by definition.
    """
    ids = torch.tensor([[*prompt, *theirs]], device=next(model.parameters()).device)
    logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 :].float()
    for position, token in enumerate(theirs):
        best = logits_TV[position].max()
        if logits_TV[position].argmax() != token:
            return Parting(prompt=0, position=position, gap=float(best - logits_TV[position, token]))
    return None
