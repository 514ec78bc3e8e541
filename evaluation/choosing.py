"""Which option is the likeliest, without weighing those that cannot be.

An option is at most as likely as its beginning. Where a model wrote one of the options when it was free to write
anything, that one is the guess, and a pass over the prompt with the guess and the reference behind it gives both their
log-likelihoods, and, wherever another option parts from them, the log-probability of that option's next token. Options
whose beginnings are less likely than either are out; the others are weighed in a second pass, the guess and the
reference among them once more, so that what is compared was computed side by side. A model that wrote something else is
sure of no option, and all are weighed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from evaluation.answers import AnswerLoss, Choice
from evaluation.option_tree import OptionTree, build_option_tree

SLACK_NATS = 1.0
"""An option is weighed if its beginning is less likely than the best known one by no more than this. The sums of two
passes differ by rounding alone: 1e-4 in float32, 0.3 in bfloat16 (docs/performance.md)."""

Tokens = Sequence[int]
Advance = Callable[[int], None]
Weigh = Callable[[Sequence[OptionTree], Advance], Sequence[Sequence[float]]]
"""Gives the log-likelihoods in nats of every answer of every tree, and tells of finished trees."""


@dataclass(frozen=True)
class Question:
    """A prompt, the index of its right answer, and that of the option that the model wrote, if it wrote one."""

    prompt: Tokens
    reference: int
    guess: int | None

    @property
    def known(self) -> tuple[int, ...]:
        """The options that are weighed in full first."""
        return (self.reference,) if self.guess is None else (self.reference, self.guess)


def choose_options(
    questions: Sequence[Question], answers: Sequence[Tokens], weigh: Weigh, advance: Advance
) -> list[Choice]:
    """Weigh the options (`answers`) after each prompt, and tell of each prompt twice."""
    everything = tuple(range(len(answers)))
    bounds = weigh([build_option_tree(question.prompt, _begun(question, answers)) for question in questions], advance)
    left = [_left(question, row) for question, row in zip(questions, bounds, strict=True)]
    contested = [i for i, options in enumerate(left) if options]
    advance(len(questions) - len(contested))
    trees = [build_option_tree(questions[i].prompt, [answers[option] for option in left[i]]) for i in contested]
    weighed = {i: dict(zip(left[i], row, strict=True)) for i, row in zip(contested, weigh(trees, advance), strict=True)}
    choices = []
    for i, (question, row) in enumerate(zip(questions, bounds, strict=True)):
        first = everything if question.guess is None else question.known
        loss = AnswerLoss(-row[question.reference], len(answers[question.reference]))
        choices.append(Choice(weighed.get(i, {option: row[option] for option in first}), loss))
    return choices


def _begun(question: Question, answers: Sequence[Tokens]) -> Sequence[Tokens]:
    """Cut each answer behind the first token in which it parts from those that are known; without a guess, none."""
    if question.guess is None:
        return answers
    known = [answers[option] for option in question.known]
    return [answer[: 1 + max(_shared(answer, other) for other in known)] for answer in answers]


def _shared(answer: Tokens, other: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, other, strict=False)))


def _left(question: Question, bounds: Sequence[float]) -> list[int]:
    """List what a second pass has to weigh, with what is no number, so that whoever reads the weights sees it."""
    if question.guess is None:
        return []
    best = max(bounds[option] for option in question.known)
    left = [
        option
        for option, bound in enumerate(bounds)
        if option in question.known or not math.isfinite(bound) or not bound < best - SLACK_NATS
    ]
    return left if len(left) > len(set(question.known)) else []
