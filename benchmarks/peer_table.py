"""The table of a comparison: how many times as fast our command is, with the smallest and the largest of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.matrix_rate import share_of_rate
from benchmarks.peer_logs import Training

REFERENCE = "ours-bf16"
"""The contender that the others are compared with."""


@dataclass(frozen=True)
class Outcome:
    """One run of one contender."""

    contender: str
    round: int
    seconds: float
    """Of the whole command."""
    peak_bytes: int
    training: Training | None = None
    tokens: int = 0
    """Of the rows, or what it says that it trained on where that is less."""
    failure: str | None = None
    loss_after: float | None = None
    """Of the trained model on the same rows, in float32."""

    @property
    def speed(self) -> float:
        """Tokens without padding a second, from the first step to the last."""
        return self.tokens / self.training.seconds if self.training else 0.0


@dataclass(frozen=True)
class Machine:
    """What bounds all contenders."""

    rate: float
    """Operations a second of bf16 matrix products."""
    parameters: int
    threads: int


def peers_table(outcomes: Sequence[Outcome], machine: Machine) -> str:
    """Write a Markdown table, a line a contender, in the order of the outcomes."""
    titles = (
        "contender",
        "useful tokens/s",
        "ours is faster, times",
        "whole command, s",
        "peak memory, GB",
        "steps",
        "tokens",
        "mean loss of the steps",
        "loss after",
        "share of the bf16 rate",
    )
    names = list(dict.fromkeys(outcome.contender for outcome in outcomes))
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    for name in names:
        own = [outcome for outcome in outcomes if outcome.contender == name]
        ended = [outcome for outcome in own if outcome.training]
        lines.append(_line(name, ended, outcomes, machine) if ended else _failed_line(own[0], len(titles)))
    notes = [
        f"\n{outcome.contender}, round {outcome.round}: {outcome.failure}"
        for outcome in outcomes
        if outcome.failure and any(one.contender == outcome.contender and one.training for one in outcomes)
    ]
    return "\n".join([*lines, *notes]) + "\n"


def ratios(name: str, outcomes: Sequence[Outcome]) -> list[float]:
    """Return, round by round, how many times as fast our command trained as a contender of the same round."""
    ours = {outcome.round: outcome.speed for outcome in outcomes if outcome.contender == REFERENCE and outcome.training}
    return [
        ours[outcome.round] / outcome.speed
        for outcome in outcomes
        if outcome.contender == name and outcome.training and outcome.round in ours
    ]


def _line(name: str, ended: Sequence[Outcome], outcomes: Sequence[Outcome], machine: Machine) -> str:
    trainings = [outcome.training for outcome in ended if outcome.training]
    losses = [outcome.loss_after for outcome in ended if outcome.loss_after is not None]
    speed = median(outcome.speed for outcome in ended)
    cells = (
        name,
        spread([outcome.speed for outcome in ended], 0),
        spread(ratios(name, outcomes), 2),
        spread([outcome.seconds for outcome in ended], 1),
        f"{max(outcome.peak_bytes for outcome in ended) / 1e9:.1f}",
        str(trainings[-1].steps),
        f"{ended[-1].tokens:,}",
        f"{median(training.mean_loss for training in trainings):.3f}",
        f"{losses[-1]:.4f}" if losses else "–",
        f"{share_of_rate(speed, machine.parameters, machine.rate):.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def _failed_line(outcome: Outcome, columns: int) -> str:
    reason = (outcome.failure or "no figures").replace("|", "/").replace("\n", " ")
    return f"| {outcome.contender} | {reason} |" + " |" * (columns - 2)


def spread(values: Sequence[float], digits: int) -> str:
    """Write the median with the smallest and the largest: `3.10 (2.95–3.30)`."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
