"""NaN and infinities put into losses, gradients and weights at random steps: none gets into an update that is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from figures import Figures
from safetensors.torch import load_file
from tiny_model import write_tiny_base
from tiny_runs import write_instructions
from tiny_training import silent, tiny_examples, tiny_job, tiny_recipe
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import finetune.training
from evaluation.rendering import Example
from finetune.adapter import ADAPTER_FILE
from finetune.batches import BatchPlan
from finetune.errors import TrainingStopped
from finetune.run_directory import RunDirectory
from finetune.training import train
from finetune.training_guards import WeightGuard, first_not_finite
from finetune.training_records import StoppedRow
from finetune.training_trainer import Batching, RecipeTrainer

EXAMPLES = tiny_examples(40)
VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
STEPS = 8
"""Of every run here, at least."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@dataclass
class Poison(TrainerCallback):
    """Puts a value where it is wanted at a step (from 1), and watches what the updates make."""

    into: str
    value: float
    step: int
    draw: random.Random
    model: torch.nn.Module | None = None
    put_in: str = ""
    updates: int = 0
    micro_batches: int = 0
    before: dict[str, Tensor] = field(default_factory=dict)
    """What was trained, before the step."""

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        assert self.model is not None
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step + 1 != self.step:
            return
        self.before = {name: p.detach().clone() for name, p in self.trainable()}
        if self.into == "gradient":
            name, parameter = self.draw.choice(self.trainable())
            place = self.draw.randrange(parameter.numel())
            self.put_in = name
            parameter.register_hook(lambda gradient: self._with_value(gradient, place))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.updates += 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        assert state.global_step < self.step, "the step that was poisoned came to its end"

    def _with_value(self, gradient: Tensor, place: int) -> Tensor:
        poisoned = gradient.clone()
        poisoned.view(-1)[place] = self.value
        return poisoned


@contextmanager
def poisoned(poison: Poison) -> Iterator[None]:
    """Train with a poison: into the loss by the model's forward, into a weight by the optimizer itself."""
    with pytest.MonkeyPatch.context() as patch:
        plain_init, plain_step, plain_loss = (
            RecipeTrainer.__init__,
            torch.optim.AdamW.step,
            RecipeTrainer.training_step,
        )

        def init(self: RecipeTrainer, model: torch.nn.Module, *given: object, **named: object) -> None:
            poison.model = model
            plain_init(self, model, *given, **named)  # type: ignore[arg-type]
            self.add_callback(poison)

        def step(self: torch.optim.AdamW, closure: None = None) -> None:
            plain_step(self, closure)
            if poison.into == "weight" and poison.before:
                poison.put_in, parameter = poison.draw.choice(poison.trainable())
                with torch.no_grad():
                    parameter.view(-1)[poison.draw.randrange(parameter.numel())] = poison.value

        def training_step(self: RecipeTrainer, model: object, inputs: dict[str, Tensor], items: object) -> Tensor:
            poison.micro_batches += bool(poison.before)
            last = self.args.gradient_accumulation_steps
            if poison.into == "loss" and poison.before and poison.micro_batches == last:
                poison.put_in = "loss"
                handle = self.model.get_base_model().model.embed_tokens.register_forward_hook(
                    lambda module, given, output: output + poison.value
                )
                try:
                    return plain_loss(self, model, inputs, items)
                finally:
                    handle.remove()
            return plain_loss(self, model, inputs, items)

        patch.setattr(RecipeTrainer, "__init__", init)
        patch.setattr(torch.optim.AdamW, "step", step)
        patch.setattr(RecipeTrainer, "training_step", training_step)
        yield


def faults_of(base: Path, folder: Path, poison: Poison, micro_batch: int | None, kind: str) -> list[str]:
    """Train with a poison, and say everything about the end that is not as promised."""
    training = {"tokens_per_step": 96, "tokens_per_micro_batch": micro_batch, "epochs": 2}
    adapter = {"variant": "dora"} if kind == "dora" else {}
    quantization = {"kind": "nf4"} if kind == "qlora" else None
    recipe = tiny_recipe(base, training=training, adapter=adapter, quantization=quantization)
    job = tiny_job(folder, recipe, EXAMPLES)
    plans: list[BatchPlan] = []

    def batching(plan: BatchPlan, *given: object) -> Batching:
        plans.append(plan)
        return Batching(plan, *given)  # type: ignore[arg-type]

    with poisoned(poison), pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.training, "Batching", batching)
        try:
            train(job, silent())
        except TrainingStopped as stopped:
            said = stopped.what
        else:
            return ["it was not stopped"]
    assert plans[0].steps >= STEPS
    found = [] if f"step {poison.step}" in said else [f"the step is not named: {said}"]
    if poison.into != "loss" and poison.put_in not in said:
        found.append(f"the tensor is not named: {said}")
    if poison.updates != poison.step - (1 if poison.into != "weight" else 0):
        found.append(f"{poison.updates} updates")
    now = {name: p.detach() for name, p in poison.trainable()}
    if not all(torch.equal(now[name], tensor) for name, tensor in poison.before.items()):
        found.append("the weights are not those from before the step")
    written = sorted(path.name for path in folder.iterdir())
    if written != ["data", "stopped"]:
        found.append(f"it wrote {written}")
    found += _faults_of_rows(job.run, plans[0], poison)
    return found + _faults_of_adapter(job.run, poison)


def _faults_of_rows(run: RunDirectory, plan: BatchPlan, poison: Poison) -> list[str]:
    rows = [StoppedRow.model_validate_json(line) for line in (run.stopped / "rows.jsonl").read_text().splitlines()]
    size = plan.micro_batches_per_step
    step = plan.micro_batches[(poison.step - 1) * size : poison.step * size]
    own = step[-1:] if poison.into == "loss" else step  # the last micro-batch of the step was poisoned
    wanted = [i for batch in own for i in batch]
    if [row.example for row in rows] != wanted:
        return [f"rows {[row.example for row in rows]} are listed for {wanted}"]
    return [
        f"example {row.example} is said to have {row.tokens} tokens"
        for row in rows
        if (row.tokens, row.trained_tokens) != lengths(EXAMPLES[row.example])
    ]


def lengths(example: Example) -> tuple[int, int]:
    return len(example.input_ids), example.trained_tokens


def _faults_of_adapter(run: RunDirectory, poison: Poison) -> list[str]:
    folder = run.stopped / "adapter"
    if poison.step == 1:
        return ["an adapter was kept of nothing"] if folder.exists() else []
    kept = load_file(folder / ADAPTER_FILE)
    plain = {"vector.default.weight": "vector", ".default": ""}  # peft's own names, of DoRA and of LoRA
    before = {
        next(name.replace(long, short) for long, short in plain.items() if long in name): tensor
        for name, tensor in poison.before.items()
    }
    same = kept.keys() == before.keys() and all(torch.equal(kept[name], before[name]) for name in kept)
    return [] if same and first_not_finite(kept) is None else ["the adapter kept is not the last good one"]


COUNTS = {"loss": (4, 34), "gradient": (4, 33), "weight": (4, 33)}
"""Runs, daily and in full: a hundred together."""


@pytest.mark.slow
@pytest.mark.parametrize("into", COUNTS)
def test_nothing_that_is_not_finite_gets_into_what_is_kept(
    base: Path, tmp_path: Path, figures: Figures, into: str
) -> None:
    draw = random.Random(into)
    count, failures = figures.amount(*COUNTS[into]), []
    for number in range(count):
        value = draw.choice(list(VALUES))
        poison = Poison(into, VALUES[value], draw.randrange(1, STEPS + 1), random.Random(number))
        micro_batch, kind = draw.choice([None, 48]), draw.choice(["lora", "dora", "qlora"])
        found = faults_of(base, tmp_path / str(number), poison, micro_batch, kind)
        failures += [f"{value} at step {poison.step} ({kind}, {micro_batch}): {what}" for what in found]
    claim = f"NaN or infinity in a {into} at a random step: stopped in time, rows listed, last good adapter kept"
    figures.report("Not finite", claim, count, "runs", len(failures), "LoRA, DoRA, QLoRA; accumulated or not")
    assert failures == []


def test_one_of_each(base: Path, tmp_path: Path) -> None:
    for into in ("loss", "gradient", "weight"):
        poison = Poison(into, float("nan"), 3, random.Random(1))
        assert faults_of(base, tmp_path / into, poison, 48, "lora") == []


def test_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    place = write_instructions(tmp_path)
    recipe = yaml.safe_load(place.recipe.read_text())
    recipe["training"]["tokens_per_step"] = 256
    place.recipe.write_text(yaml.safe_dump(recipe))
    with poisoned(Poison("loss", float("nan"), 2, random.Random(0))):
        outcome = place.run(command="train")
    assert outcome.status == 4
    run = RunDirectory(tmp_path / "run")
    flat = " ".join(outcome.stderr.split())
    assert "The rows of its batch are listed in" in flat
    assert "rows.jsonl" in flat
    assert "the adapter of step 1 is in" in flat
    assert "Which word" not in outcome.stderr
    rows = [StoppedRow.model_validate_json(line) for line in (run.stopped / "rows.jsonl").read_text().splitlines()]
    samples = [json.loads(line)["id"] for line in (run.data / "train.jsonl").read_text().splitlines()]
    assert [row.row for row in rows] == [samples[row.example] for row in rows]  # one example a row, here
    assert "Which word" not in (run.stopped / "rows.jsonl").read_text()
    assert place.run(command="train").status == 0
    assert not run.stopped.exists()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_first_tensor_that_is_not_finite_is_named(value: float) -> None:
    huge = torch.full((4,), 3e38)  # their norm is infinite, and they are not
    assert first_not_finite({}) is None
    assert first_not_finite({"huge": huge, "zero": torch.zeros(2)}) is None
    assert first_not_finite({"huge": huge, "one": torch.tensor([0.0, value]), "two": torch.tensor([value])}) == "one"


def test_weights_that_broke_outside_an_update_are_those_of_before_the_last_one() -> None:
    model = torch.nn.Linear(2, 2)
    guard = WeightGuard(model)
    assert guard.settle(0) == 0
    good = model.weight.detach().clone()
    guard.on_pre_optimizer_step(None, TrainerState(global_step=4), None)
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    assert guard.settle(7) == 4
    assert torch.equal(model.weight, good)
