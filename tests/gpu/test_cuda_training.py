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
from tiny_training import bare_loop, going_on, silent, stop_after, tiny_examples, tiny_job, tiny_recipe, trained
from transformers import PreTrainedModel
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.plan_gpu import BASES, Configuration, measure, write_base
from evaluation.model import ModelSpec, Quantization, load_base
from finetune import training, training_forward
from finetune.adapter import adapter_hash
from finetune.capabilities import this_machine
from finetune.checkpoints import checkpoints
from finetune.compiled_elementwise import CompiledElementwise
from finetune.training import train
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
        return f"{type(optimizer).__name__.lower()}_torch"
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


@needs_cuda
def test_the_loss_of_every_step_is_the_full_logits_loss_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    machine = replace(this_machine(), bitsandbytes=False)  # the reference steps with torch's AdamW
    monkeypatch.setattr(training, "this_machine", lambda: machine)
    base = write_tiny_base(tmp_path / "base")
    recipe = tiny_recipe(
        base, training={"tokens_per_step": 1024, "epochs": 50, "schedule": "constant", "warmup_fraction": 0.0}
    )
    found = losses(trained(tmp_path / "run", recipe, EXAMPLES))
    reference = bare_loop(base, recipe, [EXAMPLES] * 50, device="cuda:0").losses
    farthest = max(abs(one / other - 1) for one, other in zip(cast(list[float], found), reference, strict=True))
    record_property("farthest from the full-logits loss", f"{farthest:.2e}")
    assert farthest <= 1e-5


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
    assert 0.8 <= result.ratio <= 1.25
