"""Training on packed rows: the rows are really packed, and what is learned is what single examples would teach."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_model import write_tiny_base
from tiny_training import bare_loop, tiny_examples, tiny_recipe, trained
from torch import Tensor

import finetune.training
from finetune.adapter import ADAPTER_FILE
from finetune.packed_batches import plan_packed_batches
from finetune.training_records import StepMetrics, TrainingSummary
from finetune.training_trainer import RecipeTrainer

EXAMPLES = tiny_examples(40)
LENGTHS = [len(example.input_ids) for example in EXAMPLES]
SETTINGS = {
    "batches": "packed",
    "tokens_per_micro_batch": 60,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Every micro-batch whose loss was computed."""
    seen: list[dict[str, Tensor]] = []
    plain = RecipeTrainer.compute_loss

    class Watched(RecipeTrainer):
        def compute_loss(self, model: object, inputs: dict[str, Tensor], *rest: object, **named: object) -> object:
            seen.append(dict(inputs))
            return plain(self, model, inputs, *rest, **named)

    monkeypatch.setattr(finetune.training, "RecipeTrainer", Watched)
    return seen


def test_packed_training_is_that_of_single_examples(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[dict[str, Tensor]]
) -> None:
    recipe = tiny_recipe(base, training=SETTINGS)
    monkeypatch.setattr(RecipeTrainer, "_begins_with_the_largest", lambda self: False)
    job = trained(tmp_path / "run", recipe, EXAMPLES)
    plan = plan_packed_batches(LENGTHS, 160, 60, 1, 2, recipe.seed)
    size = plan.micro_batches_per_step
    assert size == 3
    del batches[0]  # the largest, tried before the first step
    assert len(batches) == len(plan.micro_batches)
    for batch, row in zip(batches, plan.micro_batches, strict=True):
        assert set(batch) == {"input_ids", "labels", "position_ids"}  # a mask would join what is packed
        assert batch["input_ids"].tolist() == [[token for i in row for token in EXAMPLES[i].input_ids]]

    steps = [plan.micro_batches[first : first + size] for first in range(0, len(plan.micro_batches), size)]
    groups = [[EXAMPLES[i] for row in step for i in row] for step in steps]
    alone = bare_loop(base, recipe, groups)
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    assert [StepMetrics.model_validate_json(line).loss for line in lines] == pytest.approx(alone.losses, rel=5e-6)
    found = load_file(job.run.adapter / ADAPTER_FILE)
    assert found.keys() == alone.weights.keys()
    assert max(float((found[name] - alone.weights[name]).abs().max()) for name in found) <= 1e-5

    told = TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())
    assert told.choices["batches"] == "packed"
    assert told.tokens == 2 * sum(LENGTHS)
    assert told.trained_tokens == 2 * sum(example.trained_tokens for example in EXAMPLES)
