"""What the logs of the contenders say: steps, seconds from the first to the last, tokens and loss."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.training_records import StepMetrics, TrainingSummary

_TRAIN_RUNTIME = re.compile(r"'train_runtime': '?([\d.e+]+)'?")
_STEP_LOSS = re.compile(r"\{'loss': '?([\d.e+-]+)'?")
_TOKENS = re.compile(r"'num_tokens': '?([\d.e+]+)'?")
_LITGPT_TOKENS = re.compile(r"Tokens w/ Prompt\s*:\s*(\d+)")
_LITGPT_ITERATION = re.compile(r"iter \d+ step \d+ \| loss train: ([\d.]+),.*?iter time: ([\d.]+) ms( \(step\))?")


class UnreadableLog(Exception):
    """A log does not say what it should, though the command ended well."""


@dataclass(frozen=True)
class Training:
    """What a contender says of its training."""

    steps: int
    seconds: float
    """From before the first step to after the last."""
    mean_loss: float
    """Over the steps, as the contender itself counts it."""
    tokens: int | None = None
    """Without padding, where it says so."""


def parse_transformers(text: str) -> Training:
    """Read the log of transformers' Trainer, which TRL and LLaMA-Factory are built on.

    Raises:
        UnreadableLog: there is no `train_runtime`, or no losses.
    """
    runtime, losses = _TRAIN_RUNTIME.findall(text), [float(loss) for loss in _STEP_LOSS.findall(text)]
    if not runtime or not losses:
        raise UnreadableLog("the log has no 'train_runtime' or no 'loss'")
    tokens = _TOKENS.findall(text)
    return Training(len(losses), float(runtime[-1]), _mean(losses), int(float(tokens[-1])) if tokens else None)


def parse_litgpt(text: str) -> Training:
    """Read the log of LitGPT, whose own total counts a generated example as well: the times of the steps are added.

    Raises:
        UnreadableLog: there is no step.
    """
    found = _LITGPT_ITERATION.findall(text)
    losses = [float(loss) for loss, _, at_step in found if at_step]  # the mean over the step's iterations
    if not losses:
        raise UnreadableLog("the log has no line with 'iter time' and '(step)'")
    seconds = sum(float(milliseconds) for _, milliseconds, _ in found) / 1000
    tokens = _LITGPT_TOKENS.findall(text)
    return Training(len(losses), seconds, _mean(losses), int(tokens[-1]) if tokens else None)


def parse_loop(text: str) -> Training:
    """Read what our bare loop prints last.

    Raises:
        UnreadableLog: its last line is not JSON.
    """
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise UnreadableLog("the last line is not JSON") from error
    return Training(found["steps"], found["seconds"], found["mean_loss"], found["tokens"])


def read_our_run(run: Path) -> Training:
    """Read the summary and the metrics that our own command writes."""
    summary = TrainingSummary.model_validate_json((run / "training" / "summary.json").read_bytes())
    lines = (run / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [step.loss for step in map(StepMetrics.model_validate_json, lines) if step.loss is not None]
    return Training(summary.steps, summary.seconds, _mean(losses), summary.tokens)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
