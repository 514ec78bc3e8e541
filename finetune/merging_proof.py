"""What a merge is compared by: the same answer tokens through two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.inference import LanguageModel
from evaluation.rendering import IGNORE, Example
from evaluation.token_loss import labelled_nll, shift

PROBE_TOKENS = 512
"""Answer tokens that logits are compared on: 512 × 49,152 logits in fp32 are 100 MB."""


@dataclass(frozen=True)
class Probe:
    """Examples whose answers are compared, in a fixed order."""

    examples: tuple[Example, ...]

    @property
    def tokens(self) -> int:
        """Count the answer tokens."""
        return sum(example.trained_tokens for example in self.examples)


def build_probe(examples: Sequence[Example]) -> Probe:
    """Take examples from the start until the answer tokens suffice, at least one."""
    chosen: list[Example] = []
    tokens = 0
    for example in examples:
        if chosen and tokens + example.trained_tokens > PROBE_TOKENS:
            break
        chosen.append(example)
        tokens += example.trained_tokens
    return Probe(tuple(chosen))


@dataclass(frozen=True)
class Measured:
    """What one reading of the examples gives."""

    probe_logits: Tensor
    """As `answer_logits`."""
    nll: float
    """Mean negative log-likelihood of the answer tokens of all examples, in nats."""


@torch.inference_mode()
def answer_logits(model: LanguageModel, probe: Probe) -> Tensor:
    """Logits that predict the answer tokens of the probe, shape (N, V) in fp32, in the order of the examples."""
    return measure(model, probe.examples, probe).probe_logits


@torch.inference_mode()
def measure(model: LanguageModel, examples: Sequence[Example], probe: Probe) -> Measured:
    """Read examples once, for their loss and for the logits of the probe, which are the first of them."""
    parts: dict[int, Tensor] = {}
    nll, tokens = 0.0, 0
    wide_head_VD = model.head().float()
    for batch, labels_BT, hidden_BTD in model.hidden_states(examples):
        hidden_ND, targets_N = shift(hidden_BTD, labels_BT, IGNORE)
        nll += float(labelled_nll(hidden_ND, model.head(), targets_N).double().sum())
        tokens += len(targets_N)
        own = hidden_ND.split((labels_BT[:, 1:] != IGNORE).sum(1).tolist())
        for i, answer_ND in zip(batch, own, strict=True):
            if i < len(probe.examples):
                parts[i] = (answer_ND.float() @ wide_head_VD.T).cpu()
    return Measured(torch.cat([parts[i] for i in range(len(probe.examples))]), nll / tokens)


def mean_nll(model: LanguageModel, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of the answer tokens, in nats."""
    losses = model.example_losses(examples)
    return sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)


def agreement(a_NV: Tensor, b_NV: Tensor) -> float:
    """Share of positions whose most probable token is the same."""
    return float((a_NV.argmax(-1) == b_NV.argmax(-1)).double().mean())


def mean_kl(a_NV: Tensor, b_NV: Tensor) -> float:
    """Mean Kullback-Leibler divergence of b from a over the positions, KL(a ‖ b), in nats."""
    a, b = torch.log_softmax(a_NV, -1), torch.log_softmax(b_NV, -1)
    return float((a.exp() * (a - b)).sum(-1).double().mean())


def largest_difference(a_NV: Tensor, b_NV: Tensor) -> float:
    """Largest absolute difference of two sets of logits."""
    return float((a_NV - b_NV).abs().max())
