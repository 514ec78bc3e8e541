"""The loss in metrics.jsonl is what a second, plain computation makes of the step's rows, before its update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from figures import Figures
from tiny_model import write_tiny_base
from tiny_training import tiny_examples, tiny_recipe, trained
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import finetune.training
from evaluation.rendering import IGNORE, Example
from finetune.batches import BatchPlan
from finetune.training_records import StepMetrics
from finetune.training_trainer import Batching, RecipeTrainer

EXAMPLES = tiny_examples(48)
LAYOUTS = {"one micro-batch": None, "two micro-batches": 120, "four micro-batches": 60, "eight micro-batches": 30}
"""Tokens per micro-batch; a step has 240."""
EXACT = 1e-6
"""Nats, and share of the loss: steps of fp32 are 4.8e-7 at losses from 4 to 8."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@dataclass
class PlainLoss(TrainerCallback):
    """Computes Σ nll / Σ tokens of each step's rows from all logits in double precision, one row at a time."""

    model: torch.nn.Module
    plan: BatchPlan
    losses: list[float] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=list)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        size = self.plan.micro_batches_per_step
        step = self.plan.micro_batches[state.global_step * size : (state.global_step + 1) * size]
        self.micro_batches.append(len(step))
        self.losses.append(plain_loss(self.model, [EXAMPLES[i] for batch in step for i in batch]))


def plain_loss(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    summed, tokens = 0.0, 0
    forward = type(model.get_base_model()).forward  # the trainer has put its own in its place
    for example in examples:
        with torch.no_grad():
            logits = forward(model.get_base_model(), input_ids=torch.tensor([example.input_ids])).logits[0].double()
        for position, label in enumerate(example.labels[1:]):
            if label != IGNORE:
                summed -= float(torch.log_softmax(logits[position], -1)[label])
                tokens += 1
    return summed / tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logged_loss_is_the_sum_over_the_tokens(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures, layout: str
) -> None:
    epochs = figures.amount(2, 10)
    watched: list[PlainLoss] = []
    plain = RecipeTrainer.__init__

    def init(
        self: RecipeTrainer,
        model: torch.nn.Module,
        args: object,
        rows: object,
        batching: Batching,
        *given: object,
        **named: object,
    ) -> None:
        plain(self, model, args, rows, batching, *given, **named)  # type: ignore[arg-type]
        watched.append(PlainLoss(model, batching.plan))
        self.add_callback(watched[0])

    monkeypatch.setattr(finetune.training.RecipeTrainer, "__init__", init)
    training = {"tokens_per_step": 240, "tokens_per_micro_batch": LAYOUTS[layout], "epochs": epochs}
    job = trained(tmp_path / "run", tiny_recipe(base, training=training), EXAMPLES)
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    logged = [StepMetrics.model_validate_json(line).loss for line in lines]
    assert len(logged) == len(watched[0].losses)
    assert set(watched[0].micro_batches) == {2 ** list(LAYOUTS).index(layout)}
    pairs = list(zip(logged, watched[0].losses, strict=True))
    wrong = sum(abs(a - b) > EXACT * min(1.0, b) for a, b in pairs)
    off, share = max(abs(a - b) for a, b in pairs), max(abs(a - b) / b for a, b in pairs)
    span = f"at losses of {min(b for _, b in pairs):.2f} to {max(b for _, b in pairs):.2f}"
    note = f"off by {off:.1e} nats at most, {share:.1e} of the loss, {span}; fp32 against fp64"
    claim = f"the loss of every step is Σ nll / Σ tokens to 1e-6 nats and to a millionth of it, a step in {layout}"
    figures.report("Logged loss", claim, len(logged), "steps", wrong, note)
    assert wrong == 0, note
