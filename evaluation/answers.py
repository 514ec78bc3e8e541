"""What a model says when it is asked: a written answer, the loss of a given one, a choice among options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Generated:
    """Greedy continuation of a prompt."""

    text: str
    """Up to the stop token, without it, stripped."""
    tokens: int
    """Generated tokens, the stop token included."""
    stopped: bool
    """Whether the model ended the answer by itself."""


@dataclass(frozen=True)
class AnswerLoss:
    """Negative log-likelihood of an answer, in nats, summed over its tokens with the end token."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class Choice:
    """The options that a model was asked to choose from, as far as it took to know the likeliest."""

    weighed: Mapping[int, float]
    """Log-likelihoods in nats, with the end token, of the options that may be the likeliest, by their index, and of
    the reference; all others are less likely than the likeliest of these."""
    reference: AnswerLoss

    @property
    def likeliest(self) -> int:
        """The index of the likeliest option; of equally likely ones, the first."""
        return min(self.weighed, key=lambda option: (-self.weighed[option], option))
