"""What must hold of training whatever the code looks like: measured on the tiny model, in fp32 unless said."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager
from safetensors.torch import load_file
from tiny_model import write_tiny_base
from tiny_training import bare_loop, silent, tiny_examples, tiny_job, tiny_recipe, trained
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import finetune.training
from evaluation.answers import AnswerLoss
from evaluation.files import sha256_of_folder
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec, Quantization, load_base
from evaluation.rendering import IGNORE, Example
from finetune.adapter import ADAPTER_FILE, adapter_hash, build_adapter
from finetune.batches import BatchPlan, plan_batches
from finetune.capabilities import Choices
from finetune.errors import MachineError, TrainingStopped
from finetune.example_files import load_examples
from finetune.training import train
from finetune.training_arguments import apply_plan, build_arguments
from finetune.training_forward import restore_forward
from finetune.training_guards import GradientGuard
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics, StoppedRow, TrainingSummary
from finetune.training_trainer import Batching, RecipeTrainer

EXAMPLES = tiny_examples(40)
OF_ONE_LENGTH = [
    Example(tuple(range(10 + i, 30 + i)), (*[IGNORE] * (4 + i), *range(14 + 2 * i, 30 + i))) for i in range(8)
]
"""Eight examples of 20 tokens with 16 down to 9 labels: averaging averages would be noticed."""
VALIDATION = tiny_examples(8, seed=1)
ON_CPU = Choices(attention="sdpa", loss="labelled", optimizer="adamw_torch_fused", bf16_autocast=False)
ONE_STEP_OF = {"1x8": 160, "2x4": 80, "4x2": 40, "8x1": 20}
"""Micro-batches per step × about so many examples in each → tokens per micro-batch; a step holds 160 tokens."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(job.run.adapter / ADAPTER_FILE)


def steps(job: TrainingJob) -> list[StepMetrics]:
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    return [StepMetrics.model_validate_json(line) for line in lines]


def summary(job: TrainingJob) -> TrainingSummary:
    return TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ------------------------------------------------------------------ the loss


@pytest.fixture(scope="module")
def layouts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingJob]:
    """The same eight examples in every step, in four shapes: equal lengths make every plan a permutation of it."""
    jobs = {}
    for name, tokens in ONE_STEP_OF.items():
        recipe = tiny_recipe(
            base,
            training={"tokens_per_micro_batch": tokens, "epochs": 6, "schedule": "constant", "warmup_fraction": 0.0},
        )
        jobs[name] = trained(tmp_path_factory.mktemp("run") / name, recipe, OF_ONE_LENGTH)
    return jobs


@pytest.mark.parametrize("layout", ONE_STEP_OF)
def test_loss_of_every_step_is_the_sum_over_the_labelled_tokens(
    layouts: dict[str, TrainingJob], base: Path, layout: str
) -> None:
    job = layouts[layout]
    reference = bare_loop(base, job.recipe, [OF_ONE_LENGTH] * 6)
    assert [step.loss for step in steps(job)] == pytest.approx(reference.losses, rel=1e-6)
    assert largest_difference(weights(job), reference.weights) <= 1e-5


def test_plans_differ_and_adapters_do_not(layouts: dict[str, TrainingJob]) -> None:
    plans = {
        name: plan_batches([20] * 8, 160, tokens, 1, 1, 7).micro_batches_per_step
        for name, tokens in ONE_STEP_OF.items()
    }
    assert plans == {"1x8": 1, "2x4": 2, "4x2": 4, "8x1": 8}
    first = weights(layouts["1x8"])
    assert all(largest_difference(first, weights(job)) <= 1e-5 for job in layouts.values())


def test_loss_of_padded_uneven_batches_equals_the_bare_loop(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        base, training={"tokens_per_micro_batch": 60, "schedule": "constant", "warmup_fraction": 0.0, "epochs": 2}
    )
    job = trained(tmp_path / "run", recipe, EXAMPLES)
    plan = plan_batches([len(example.input_ids) for example in EXAMPLES], 160, 60, 1, 2, recipe.seed)
    size = plan.micro_batches_per_step
    groups = [
        [EXAMPLES[i] for batch in plan.micro_batches[first : first + size] for i in batch]
        for first in range(0, len(plan.micro_batches), size)
    ]
    assert len({len(group) for group in groups}) > 1
    reference = bare_loop(base, recipe, groups)
    assert [step.loss for step in steps(job)] == pytest.approx(reference.losses, rel=2e-6)
    assert steps(job)[-1].loss < steps(job)[0].loss
    assert largest_difference(weights(job), reference.weights) <= 1e-5
    tokens = [sum(len(example.input_ids) for example in group) for group in groups]
    assert [step.tokens for step in steps(job)] == [sum(tokens[: i + 1]) for i in range(len(tokens))]
    told = summary(job)
    assert (told.steps, told.kept_step, told.examples) == (plan.steps, plan.steps, len(EXAMPLES))
    assert told.tokens == 2 * sum(len(example.input_ids) for example in EXAMPLES)
    assert told.trained_tokens == 2 * sum(example.trained_tokens for example in EXAMPLES)
    assert told.adapter_sha256 == adapter_hash(job.run.adapter)


# ------------------------------------------------------------------ the same again

QLORA = {"quantization": {"kind": "nf4"}}
WITH_DROPOUT = {"adapter": {"dropout": 0.1}}


@pytest.mark.parametrize("sections", [QLORA | WITH_DROPOUT, {"adapter": {"variant": "dora"}}], ids=["qlora", "dora"])
def test_two_runs_give_the_same_bytes(base: Path, tmp_path: Path, sections: dict[str, object]) -> None:
    recipe = tiny_recipe(base, **sections)
    torch.manual_seed(1)
    one = trained(tmp_path / "one", recipe, EXAMPLES, VALIDATION)
    torch.manual_seed(2)
    two = trained(tmp_path / "elsewhere" / "two", recipe, EXAMPLES, VALIDATION)
    assert sha256_of_folder(one.run.adapter) == sha256_of_folder(two.run.adapter)
    assert [step.loss for step in steps(one)] == [step.loss for step in steps(two)]
    other = trained(tmp_path / "other", recipe.model_copy(update={"seed": 8}), EXAMPLES, VALIDATION)
    assert adapter_hash(other.run.adapter) != adapter_hash(one.run.adapter)


@pytest.mark.parametrize("sections", [{}, QLORA], ids=["lora", "qlora"])
def test_gradient_checkpointing_changes_memory_alone(base: Path, tmp_path: Path, sections: dict[str, object]) -> None:
    jobs = [
        trained(
            tmp_path / str(on),
            tiny_recipe(base, training={"gradient_checkpointing": on}, **sections),
            EXAMPLES[:16],
        )
        for on in (False, True)
    ]
    assert largest_difference(*(weights(job) for job in jobs)) <= 1e-6


def test_validating_does_not_change_training(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(base, training={"keep": "last", "validations": 4}, **QLORA, **WITH_DROPOUT)
    watched = trained(tmp_path / "watched", recipe, EXAMPLES, VALIDATION)
    alone = trained(tmp_path / "alone", recipe, EXAMPLES)
    assert adapter_hash(watched.run.adapter) == adapter_hash(alone.run.adapter)
    assert sum(step.validation_loss is not None for step in steps(watched)) == 4


def test_base_is_as_it_was(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sha256_of_folder(base)
    models = []

    def remember(spec: ModelSpec) -> object:
        models.append(load_base(spec))
        return models[-1]

    monkeypatch.setattr(finetune.training, "load_base", remember)
    job = trained(tmp_path / "run", tiny_recipe(base), EXAMPLES)
    fresh = dict(load_base(ModelSpec(base, dtype="float32", device="cpu")).named_parameters())
    after = {name.replace(".base_layer", ""): tensor for name, tensor in models[0].named_parameters()}
    assert all(torch.equal(after[name], tensor) for name, tensor in fresh.items())
    assert sha256_of_folder(base) == before
    assert all(float(tensor.abs().max()) > 0 for tensor in weights(job).values())


def test_adapter_as_written_scores_as_it_did_when_it_was_kept(base: Path, tmp_path: Path) -> None:
    job = trained(tmp_path / "run", tiny_recipe(base, **QLORA), EXAMPLES, VALIDATION)
    spec = ModelSpec(base, job.run.adapter, Quantization(), "float32", "cpu")
    losses = load_language_model(spec).example_losses(VALIDATION)
    measured = {step.step: step.validation_loss for step in steps(job)}[summary(job).kept_step]
    assert sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses) == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("quantization", [None, {"kind": "nf4"}])
def test_adapter_is_fp32_on_a_bfloat16_base(base: Path, tmp_path: Path, quantization: object) -> None:
    job = trained(tmp_path / "run", tiny_recipe(base, base={"dtype": "bfloat16"}, quantization=quantization), EXAMPLES)
    assert {tensor.dtype for tensor in weights(job).values()} == {torch.float32}
    values = torch.cat([tensor.flatten() for tensor in weights(job).values()])
    assert (values.bfloat16().float() != values).float().mean() > 0.9  # fp32 in its digits, not in its label alone


# ------------------------------------------------------------------ isolation


def make_trainer(base: Path, folder: Path, choices: Choices) -> tuple[RecipeTrainer, BatchPlan]:
    """Build a trainer as `train` does, to ask it for single losses."""
    recipe = tiny_recipe(base)
    job = tiny_job(folder / "run", recipe, EXAMPLES)
    arguments = build_arguments(recipe, folder / "trainer", choices, cuda=False)
    plan = plan_batches([len(example.input_ids) for example in EXAMPLES], 160, None, 1, 1, 7)
    apply_plan(arguments, plan, recipe, 1)
    language = load_language_model(ModelSpec(base, dtype="float32", device="cpu"))
    model = build_adapter(language.causal_lm, recipe.adapter, 7)
    rows, batching = load_examples(job.run.data / "train.arrow"), Batching(plan, 0, 1, 2, packed=False)
    return (
        RecipeTrainer(model, arguments, rows, batching, choices, processing_class=language.renderer.tokenizer),
        plan,
    )


def test_example_does_not_see_its_neighbour(base: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(base, tmp_path, ON_CPU)
    own = {"input_ids": list(range(10, 30)), "labels": [*[IGNORE] * 10, *range(20, 30)]}

    def loss_beside(first: int, length: int) -> float:
        neighbour = {"input_ids": list(range(first, first + length)), "labels": [IGNORE] * length}
        batch = trainer.data_collator([neighbour, own])
        return float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(10)).detach())

    for length in (20, 9):
        assert len({loss_beside(first, length) for first in (40, 70, 100)}) == 1
    alone = trainer.compute_loss(trainer.model, trainer.data_collator([own]), num_items_in_batch=torch.tensor(10))
    assert loss_beside(40, 30) == pytest.approx(alone.item(), rel=1e-6)  # beside a longer one it is padded


def test_gradient_of_an_example_does_not_reach_its_neighbour(base: Path) -> None:
    model = load_base(ModelSpec(base, dtype="float32", device="cpu"))
    embedded = model.get_input_embeddings()(torch.tensor([list(range(10, 30)), list(range(40, 60))])).detach()
    embedded.requires_grad_()
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 12:] = 0
    hidden = model.base_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
    hidden[0, :12].square().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad[0, :12].abs().max() > 0
    assert embedded.grad[1].abs().max() == 0
    assert embedded.grad[0, 12:].abs().max() == 0


# ------------------------------------------------------------------ guards


@dataclass
class _Poison(TrainerCallback):
    """Puts a NaN where a test wants it, at the start of a step (counted from 1)."""

    model: torch.nn.Module
    step: int
    into: str

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step + 1 != self.step:
            return
        trainable = next(p for p in self.model.parameters() if p.requires_grad)
        if self.into == "weight":
            with torch.no_grad():
                trainable.view(-1)[0] = float("nan")
        if self.into == "gradient":
            trainable.register_hook(lambda gradient: gradient * float("inf"))
        if self.into == "no gradient":
            trainable.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[RecipeTrainer]:
    """Every trainer that `train` makes."""
    made: list[RecipeTrainer] = []

    class Seen(RecipeTrainer):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(finetune.training, "RecipeTrainer", Seen)
    return made


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(
    ("into", "message"),
    [("weight", "the loss is nan"), ("gradient", "is not finite"), ("no gradient", "gets no gradient")],
)
def test_poisoned_step_stops_before_its_update(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainers: list[RecipeTrainer],
    step: int,
    into: str,
    message: str,
) -> None:
    updates: list[int] = []
    plain = finetune.training.GradientGuard

    class Poisoned(plain):  # type: ignore[valid-type, misc]
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__(model)
            trainers[0].add_callback(_Poison(model, step, into))

        def on_optimizer_step(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
            updates.append(state.global_step + 1)

    monkeypatch.setattr(finetune.training, "GradientGuard", Poisoned)
    job = tiny_job(tmp_path / "run", tiny_recipe(base, training={"tokens_per_micro_batch": 80}), EXAMPLES, VALIDATION)
    with pytest.raises(TrainingStopped, match=message) as stopped:
        train(job, silent())
    assert stopped.value.exit_code == 4
    assert f"step {step}" in stopped.value.what
    assert updates == list(range(1, step))
    assert not job.run.adapter.exists()
    assert not job.run.training.exists()
    if into == "no gradient":
        assert [path.name for path in job.run.folder.iterdir()] == ["data"]
        return
    assert sorted(path.name for path in job.run.folder.iterdir()) == ["data", "stopped"]
    rows = [StoppedRow.model_validate_json(line) for line in (job.run.stopped / "rows.jsonl").read_text().splitlines()]
    assert rows
    assert all(row.tokens == len(EXAMPLES[row.example].input_ids) for row in rows)
    assert (job.run.stopped / "adapter").exists() == (step == 3)


def test_rate_that_blows_up_is_stopped_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        base, base={"dtype": "float16"}, training={"learning_rate": 1.0, "max_grad_norm": 1e9, "epochs": 20}
    )
    job = tiny_job(tmp_path / "run", recipe, EXAMPLES)
    with pytest.raises(TrainingStopped):
        train(job, silent())
    assert not job.run.adapter.exists()


def test_guard_names_the_tensor() -> None:
    model = torch.nn.Linear(2, 2)
    guard, state = GradientGuard(model), TrainerState(global_step=4)
    with pytest.raises(TrainingStopped, match="weight gets no gradient at step 5"):
        guard.on_pre_optimizer_step(None, state, None)
    for value in (float("nan"), float("inf"), -float("inf")):
        model.weight.grad, model.bias.grad = torch.zeros(2, 2), torch.tensor([0.0, value])
        with pytest.raises(TrainingStopped, match="gradient of bias is not finite at step 5"):
            guard.on_pre_optimizer_step(None, state, None)
    model.bias.grad = torch.zeros(2)
    guard.on_pre_optimizer_step(None, state, None)


def test_number_of_processes_is_checked(base: Path, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run", tiny_recipe(base), EXAMPLES, devices=2)
    with pytest.raises(MachineError, match="2 processes were asked for and 1 are running"):
        train(job, silent())


def test_adapter_that_is_not_trained_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    job = tiny_job(tmp_path / "run", tiny_recipe(base), EXAMPLES)
    with pytest.raises(TrainingStopped, match="did not move"):
        train(job, silent())
    assert not job.run.adapter.exists()


# ------------------------------------------------------------------ which adapter is kept


def planted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, torch.Tensor]]:
    """Let validation measure these losses in turn; returns the adapters that were measured."""
    measured: list[dict[str, torch.Tensor]] = []

    def example_losses(self: LanguageModel, examples: list[Example]) -> list[AnswerLoss]:
        assert not self.model.training
        named = self.model.named_parameters()
        measured.append({n.replace(".default", ""): p.detach().clone() for n, p in named if p.requires_grad})
        return [AnswerLoss(losses[len(measured) - 1] * 5, 5) for _ in examples]

    monkeypatch.setattr(LanguageModel, "example_losses", example_losses)
    return measured


@pytest.mark.parametrize(
    ("keep", "losses"),
    [
        ("best", [3, 1, 2, 2]),
        ("best", [1, 2, 3, 4]),
        ("best", [2, 1, 1, 3]),
        ("best", [4, 3, 2, 1]),
        ("last", [3, 1, 2, 2]),
    ],
)
def test_lowest_validation_loss_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], keep: str
) -> None:
    measured = planted(monkeypatch, losses)
    job = trained(
        tmp_path / "run", tiny_recipe(base, training={"keep": keep, "tokens_per_step": 64}), EXAMPLES[:24], VALIDATION
    )
    at = [step.step for step in steps(job) if step.validation_loss is not None]
    assert [step.validation_loss for step in steps(job) if step.validation_loss is not None] == losses
    assert at[-1] == summary(job).steps  # the end is always measured
    kept = losses.index(min(losses)) if keep == "best" else -1
    assert summary(job).kept_step == at[kept]
    assert largest_difference(weights(job), measured[kept]) == 0
    assert largest_difference(measured[0], measured[1]) > 0


@pytest.mark.parametrize(
    ("patience", "losses", "stopped_after"),
    [(1, [3, 2, 4, 1, 1, 1], 3), (2, [3, 2, 4, 5, 1, 1], 4), (2, [3, 4, 2, 3, 1, 1], 6), (1, [2, 2, 1, 1, 1, 1], 2)],
)
def test_training_stops_when_patience_is_used_up(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, losses: list[float], stopped_after: int
) -> None:
    measured = planted(monkeypatch, losses)
    training = {"early_stopping": {"patience": patience}, "validations": 6, "tokens_per_step": 64}
    job = trained(tmp_path / "run", tiny_recipe(base, training=training), EXAMPLES[:24], VALIDATION)
    assert len(measured) == stopped_after
    best = losses.index(min(losses[:stopped_after]))
    at = [step.step for step in steps(job) if step.validation_loss is not None]
    assert summary(job).kept_step == at[best]
    assert summary(job).steps == at[-1]
    assert largest_difference(weights(job), measured[best]) == 0
    whole = sum(len(example.input_ids) for example in EXAMPLES[:24])
    assert (summary(job).tokens < whole) == (stopped_after < 6)


# ------------------------------------------------------------------ what is written


def test_written_adapter_names_its_base_and_no_path(base: Path, tmp_path: Path) -> None:
    job = trained(tmp_path / "run", tiny_recipe(base), EXAMPLES[:16])
    config = json.loads((job.run.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-base"
    for path in job.run.adapter.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(base).encode() not in path.read_bytes()
    assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in job.run.folder.rglob("*"))
    assert (job.run.adapter / "tokenizer.json").exists()
    assert (job.run.adapter / "chat_template.jinja").exists()


def test_single_step_trains(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(base, training={"tokens_per_step": 4096, "warmup_fraction": 0.5})
    job = trained(tmp_path / "run", recipe, EXAMPLES)
    assert summary(job).steps == 1
    assert all(tensor.abs().max() > 0 for name, tensor in weights(job).items() if "lora_B" in name)


def test_loss_of_trl_is_left_alone_where_it_is_chosen(base: Path, tmp_path: Path) -> None:
    ours, plan = make_trainer(base, tmp_path / "ours", ON_CPU)
    theirs, _ = make_trainer(base, tmp_path / "theirs", replace(ON_CPU, loss="trl_fused"))
    batch = next(iter(ours.get_train_dataloader()))
    assert len(batch["input_ids"]) == len(plan.micro_batches[0])
    items = (batch["labels"] != IGNORE).sum()
    own, trl = (one.compute_loss(one.model, dict(batch), num_items_in_batch=items) for one in (ours, theirs))
    assert own.item() == pytest.approx(trl.item(), rel=1e-5)
    for trainer in (ours, theirs):
        with torch.no_grad():
            next(p for p in trainer.model.parameters() if p.requires_grad).fill_(float("nan"))
        with pytest.raises(TrainingStopped, match="the loss is nan at step 1"):
            trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    restore_forward(ours.model.get_base_model())
    assert ours.model.get_base_model()(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_an_8_bit_optimizer_holds_on_to_no_embedding(base: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(base, tmp_path, replace(ON_CPU, optimizer="paged_adamw_8bit"))
    trainer.create_optimizer()
    assert GlobalOptimManager.get_instance().module_weight_config_triple == []
