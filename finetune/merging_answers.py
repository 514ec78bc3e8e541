"""Greedy answers of a saved merge beside those of its adapter: the same tokens, or a tie that rounding broke."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from evaluation.inference import LanguageModel
from evaluation.rendering import IGNORE, Example
from finetune.door_conversations import door_conversations
from finetune.doors import as_the_base_speaks, prompts_of
from finetune.merge_records import GreedyProof
from finetune.merging_limits import GAP_FACTOR

OWN_PROMPTS, OTHER_PROMPTS = 8, 8
"""Prompts of the run, and of the conversations that every door is tried with."""
GREEDY_TOKENS = 32

Answers = Sequence[tuple[int, ...]]


def greedy_prompts(model: LanguageModel, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Return prompts to answer, as token ids: some of the run's own, and some that every run is tried with."""
    own = [_prompt_of(example) for example in examples[:OWN_PROMPTS]]
    return [prompt for prompt in own if prompt] + _others(model)


def answer_greedily(model: LanguageModel, prompts: Answers) -> list[tuple[int, ...]]:
    """Return the answers, with the token that ended them."""
    return model.continue_greedily(prompts, GREEDY_TOKENS)


def compare_greedy(saved: LanguageModel, prompts: Answers, adapter: Answers, largest_difference: float) -> GreedyProof:
    """Answer as the saved merge, and where an answer parts from the adapter's, see how near a tie it was.

    Up to there both have read the same tokens. `largest_difference` is that of the two models' logits on the probe.
    """
    found = answer_greedily(saved, prompts)
    gaps = [_gap(saved, prompt, a, b) for prompt, a, b in zip(prompts, adapter, found, strict=True) if a != b]
    stops = saved.renderer.stop_ids()
    return GreedyProof(
        prompts=len(prompts),
        tokens=GREEDY_TOKENS,
        equal=len(prompts) - len(gaps),
        stopped=sum(bool(answer) and answer[-1] in stops for answer in found),
        largest_gap=max(gaps, default=None),
        allowed_gap=GAP_FACTOR * largest_difference,
    )


@torch.inference_mode()
def _gap(saved: LanguageModel, prompt: tuple[int, ...], adapter: tuple[int, ...], merged: tuple[int, ...]) -> float:
    """Logit of the merge's token above that of the adapter's, by the merge, where the answers part."""
    position = next(i for i, (a, b) in enumerate(zip(adapter, merged, strict=False)) if a != b)
    ids = torch.tensor([[*prompt, *adapter[:position]]], device=saved.causal_lm.device)
    logits_V = saved.causal_lm(input_ids=ids).logits[0, -1].float()
    return float(logits_V[merged[position]] - logits_V[adapter[position]])


def _prompt_of(example: Example) -> tuple[int, ...]:
    first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
    return example.input_ids[:first]


def _others(model: LanguageModel) -> list[tuple[int, ...]]:
    conversations = as_the_base_speaks(model.renderer, door_conversations(4 * OTHER_PROMPTS))
    return [prompt for _, prompt in islice(prompts_of(model.renderer, conversations), OTHER_PROMPTS)]
