"""Training on a GPU beside what it must equal: the libraries' own loss, the same run without a stop, and its own plan.

The names of choices are compared on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from safetensors.torch import load_file
from tiny_model import write_tiny_base
from tiny_runs import Workplace, finetune_command, write_classification
from tiny_training import going_on, silent, stop_after, tiny_examples, tiny_job, tiny_recipe, trained
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.plan_gpu import BASES, Configuration, measure
from benchmarks.random_base import write_base
from evaluation.model import ModelSpec, Quantization, choose_device, load_base
from evaluation.rendering import IGNORE
from finetune import training, training_forward
from finetune.adapter import adapter_hash, build_adapter
from finetune.capabilities import this_machine
from finetune.checkpoints import checkpoints
from finetune.compiled_elementwise import CompiledElementwise
from finetune.training import train
from finetune.training_guards import trainable_parameters
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics
from finetune.training_trainer import RecipeTrainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
EXAMPLES = tiny_examples(24)


def losses(job: TrainingJob) -> list[float | None]:
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    return [StepMetrics.model_validate_json(line).loss for line in lines]


# ------------------------------------------------------------------ what is chosen is what is used


def layers_of(trainer: RecipeTrainer) -> str:
    """Say what computes the layers, in the words of `Choices.named`."""
    if trainer._fused is None:
        return "plain"
    compiled = isinstance(trainer._fused._elementwise, CompiledElementwise)
    return f"fused, {'compiled' if compiled else 'torch'}"


@dataclass
class Seen:
    """What a training used, in the words of `finetune show`."""

    attention: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    loss: set[str] = field(default_factory=set)
    optimizer: set[str] = field(default_factory=set)
    autocast: set[str] = field(default_factory=set)

    def named(self) -> dict[str, str]:
        return {name: " and ".join(sorted(found)) for name, found in vars(self).items()}


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Look at every micro-batch of the trainings that follow."""
    seen, step, labelled = Seen(), RecipeTrainer.training_step, training_forward.labelled_nll
    fused_forward = ChunkedLogProbFunction.forward

    def watched_step(trainer: RecipeTrainer, model: Any, inputs: Any, items: Any = None) -> torch.Tensor:
        base = cast(PreTrainedModel, trainer.accelerator.unwrap_model(model).get_base_model())
        seen.attention.add(str(base.config._attn_implementation))
        seen.layers.add(layers_of(trainer))
        seen.optimizer.add(name_of(cast(Any, trainer.optimizer).optimizer))
        return step(trainer, model, inputs, items)

    def watched_labelled(*given: torch.Tensor) -> torch.Tensor:
        seen.loss.add("labelled")
        look_for_autocast()
        return labelled(*given)

    def watched_fused(*given: Any) -> Any:
        seen.loss.add("trl_fused")
        look_for_autocast()
        return fused_forward(*given)

    def look_for_autocast() -> None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        on = torch.is_autocast_enabled(kind)
        seen.autocast.add(str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if on else "off")

    monkeypatch.setattr(RecipeTrainer, "training_step", watched_step)
    monkeypatch.setattr(training_forward, "labelled_nll", watched_labelled)
    monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(watched_fused))
    return seen


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """Name an optimizer as transformers does."""
    if not isinstance(optimizer, Optimizer8bit):
        fused = "_fused" if optimizer.defaults["fused"] else ""
        return f"{type(optimizer).__name__.lower()}_torch{fused}"
    bits = cast(Any, optimizer).args.optim_bits
    return f"{'paged_' if optimizer.is_paged else ''}{type(optimizer).__name__.lower()}_{bits}bit"


@pytest.mark.parametrize(
    "settings",
    [
        ("base.dtype=bfloat16",),
        ("quantization=null", "base.dtype=bfloat16"),
        ("quantization=null", "training.kernels=plain"),
    ],
    ids=["qlora in bfloat16", "lora in bfloat16", "lora in float32 without our layers"],
)
def test_what_show_names_is_what_training_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    place = write_classification(tmp_path)
    given = [part for setting in settings for part in ("--set", setting)]
    shown = named_by_show(place, given)
    seen = watch(monkeypatch)
    outcome = place.run(*given, command="train")
    assert outcome.status == 0, outcome.stderr
    assert seen.named() == shown
    kept = json.loads((place.folder / "run/training/summary.json").read_bytes())["choices"]
    assert {name: kept[name] for name in shown} == shown


def named_by_show(place: Workplace, given: list[str]) -> dict[str, str]:
    shown = finetune_command("show", str(place.recipe), *given)
    assert shown.status == 0, shown.stderr
    return dict(re.findall(r"^#   (\w+): (.+)$", shown.stdout, re.MULTILINE))


# ------------------------------------------------------------------ the loss


@dataclass
class AllLogits(TrainerCallback):
    """Has transformers compute each step's loss and gradient from all logits in float64, at the weights of the step.

    Two trainings would not do: roundings of 1e-6 of a gradient are 1e-4 of the loss fifty steps on (docs/log.md).
    """

    trained: torch.nn.Module
    reference: torch.nn.Module
    losses: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    """How far each is from the reference's, over the norm of that one."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        found, own = trainable_parameters(self.trained), trainable_parameters(self.reference)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(found[name])
        self.reference.zero_grad()
        loss = cast(torch.Tensor, self.reference(**all_in_one_batch()).loss)
        loss.backward()
        self.losses.append(loss.item())
        theirs, ours = (torch.cat([grad_of(each[name]) for name in own]) for each in (own, found))
        self.gradients.append(float((ours - theirs).norm() / theirs.norm()))


def grad_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.flatten().double()


def all_in_one_batch() -> dict[str, torch.Tensor]:
    def padded(rows: list[tuple[int, ...]], padding: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)

    ids, labels = [one.input_ids for one in EXAMPLES], [one.labels for one in EXAMPLES]
    mask = padded([(1,) * len(one) for one in ids], 0)
    batch = {"input_ids": padded(ids, 0), "labels": padded(labels, IGNORE), "attention_mask": mask}
    return {name: tensor.to(choose_device()) for name, tensor in batch.items()}


@needs_cuda
@pytest.mark.parametrize("loss", ["trl_fused", "labelled"])
def test_loss_and_gradient_of_every_step_are_those_of_all_logits_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None], loss: str
) -> None:
    machine = replace(this_machine(), triton=loss == "trl_fused")
    monkeypatch.setattr(training, "this_machine", lambda: machine)
    base = write_tiny_base(tmp_path / "base")
    settings = {"tokens_per_step": 1024, "epochs": 50, "schedule": "constant", "warmup_fraction": 0.0}
    recipe = tiny_recipe(base, training={**settings, "max_grad_norm": 1e6})  # unclipped, as the reference's are
    reference = build_adapter(load_base(ModelSpec(base, dtype="float32")), recipe.adapter, recipe.seed).double()
    watched: list[AllLogits] = []
    plain = RecipeTrainer.__init__

    def init(trainer: RecipeTrainer, model: torch.nn.Module, *given: Any, **named: Any) -> None:
        plain(trainer, model, *given, **named)
        watched.append(AllLogits(model, reference))
        trainer.add_callback(watched[0])

    monkeypatch.setattr(RecipeTrainer, "__init__", init)
    job = trained(tmp_path / "run", recipe, EXAMPLES)
    pairs = list(zip(cast(list[float], losses(job)), watched[0].losses, strict=True))
    assert len(pairs) == 50
    farthest = max(abs(one / other - 1) for one, other in pairs)
    gradients, precision = watched[0].gradients, torch.get_float32_matmul_precision()
    said = f"loss {farthest:.1e}, gradient {gradients[0]:.1e} at first, {max(gradients):.1e} at most"
    record_property(f"{loss}, products in fp32: {precision}", said)
    assert farthest <= 1e-5
    assert max(gradients) <= 1e-5


@needs_cuda
@pytest.mark.parametrize("quantization", [None, Quantization()], ids=["lora", "qlora"])
@pytest.mark.parametrize("batches", ["padded", "packed"])
def test_the_first_loss_is_transformers_own_in_bfloat16(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    quantization: Quantization | None,
    batches: str,
) -> None:
    base = write_tiny_base(tmp_path / "base")
    sections: dict[str, object] = {"quantization": {"kind": "nf4"}} if quantization else {}
    settings = {"tokens_per_step": 1024, "epochs": 3, "batches": batches}
    recipe = tiny_recipe(base, base={"dtype": "bfloat16"}, training=settings, **sections)
    first = losses(trained(tmp_path / "run", recipe, EXAMPLES))[0]
    model = load_base(ModelSpec(base, quantization=quantization, dtype="bfloat16"))
    summed, count = 0.0, 0
    for example in EXAMPLES:
        ids, labels = (torch.tensor([one], device="cuda") for one in (example.input_ids, example.labels))
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            summed += float(model(input_ids=ids, labels=labels).loss) * example.trained_tokens
        count += example.trained_tokens
    assert first is not None
    record_property("off transformers' own loss", f"{first / (summed / count) - 1:+.2e}")
    assert first == pytest.approx(summed / count, rel=2e-3)


# ------------------------------------------------------------------ a stop, and the plan


@needs_cuda
def test_paged_8_bit_states_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    """States of fewer than 4,096 numbers stay in 32 bits and of fewer than 100,000 in the GPU; here are larger ones."""
    base = write_tiny_base(tmp_path / "base", hidden_size=512)
    recipe = tiny_recipe(
        base,
        base={"dtype": "bfloat16"},
        quantization={"kind": "nf4"},
        adapter={"rank": 128, "dropout": 0.1},
        training={"learning_rate": 1e-3},
    )
    straight = tiny_job(tmp_path / "straight", recipe, EXAMPLES)
    train(straight, silent())
    resumed = tiny_job(tmp_path / "resumed", recipe, EXAMPLES)
    stop_after(resumed, 2)
    kept = load_file(checkpoints(resumed.run.checkpoints)[-1] / "optimizer.safetensors").values()
    assert any(state.dtype == torch.uint8 and state.numel() >= 100_000 for state in kept)
    train(going_on(resumed), silent())
    assert losses(resumed) == losses(straight)
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)


PLANNED = (
    Configuration("60m", "lora", 512, 8192, 8192),
    Configuration("60m", "nf4", 512, 8192, 8192),
    Configuration("60m", "lora+ckpt", 512, 16_384, 16_384),
    Configuration("60m", "nf4+ckpt", 256, 16_384, 16_384),
    Configuration("60m", "nf4", 512, 4096, 4096, "packed"),
)


@needs_cuda
@pytest.mark.parametrize("asked", PLANNED, ids=str)
def test_the_planned_peak_is_near_the_measured_one(
    tmp_path: Path, record_property: Callable[[str, object], None], asked: Configuration
) -> None:
    write_base(tmp_path / "base-60m", BASES["60m"])
    result = measure(tmp_path / "run", asked)
    record_property("planned over measured", f"{result.ratio:.3f} of {result.allocated / 1e9:.3f} GB")
    assert result.tokens_per_micro_batch is None
    assert 0.9 <= result.ratio <= 1.1
