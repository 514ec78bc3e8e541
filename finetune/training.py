"""The training stage: load the base, add the adapter, train, check that it learned, write it.

One process runs `train`; with several devices each process does, and what the first one writes is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
import torch.distributed
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from evaluation.allocator import keep_freed_memory
from evaluation.files import staged_folder, write_model
from evaluation.inference import LanguageModel
from evaluation.model import ModelSpec, Quantization, load_base
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer, save_tokenizer
from finetune.adapter import (
    adapter_hash,
    adapter_weights,
    build_adapter,
    check_moved,
    keep_in_fp32,
    restore_adapter,
    write_adapter,
)
from finetune.batch_check import check_batches
from finetune.batches import BatchPlan, plan_batches
from finetune.capabilities import Choices, choose, require_tracker, this_machine
from finetune.console import Reporter
from finetune.elementwise_library import NotCompiled, load_elementwise
from finetune.errors import DataError, MachineError
from finetune.example_files import count_trained, example_at, load_examples, read_lengths
from finetune.fused_model import why_plain
from finetune.loss_watch import find_divergence, find_plateau, told_plateau
from finetune.machine import peak_memory_bytes
from finetune.packed_batches import plan_packed_batches
from finetune.packing import check_isolation
from finetune.recipe import Recipe
from finetune.signals import Signals, Stop
from finetune.stopped import Witness, keeping_evidence
from finetune.training_arguments import apply_plan, build_arguments
from finetune.training_callbacks import MemoryReturner, Recorder, ValidationLog, Validator
from finetune.training_checkpoints import Checkpointer, load_saved
from finetune.training_forward import restore_forward
from finetune.training_guards import GradientGuard, WeightGuard
from finetune.training_job import TrainingJob
from finetune.training_records import MemorySetting, StepMetrics, TrainingSummary
from finetune.training_trainer import Batching, RecipeTrainer
from finetune.varlen_attention import VarlenAttention, torch_kernel

DEFAULT_VALIDATIONS = 4
"""How often the validation loss is measured where the recipe does not say."""


@dataclass(frozen=True)
class Learned:
    """What training made of a model, for the summary."""

    kept_step: int
    lines: Sequence[StepMetrics]
    memory: MemorySetting
    resumed_after: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Count the steps."""
        return self.lines[-1].step

    @property
    def seconds(self) -> float:
        """Return how long they took."""
        return self.lines[-1].seconds


def train(job: TrainingJob, reporter: Reporter, stop: Stop | None = None) -> None:
    """Train the adapter of a run and write training/ and adapter/.

    Raises:
        TrainingStopped: a guard stopped the run; nothing is written.
        Interrupted: `stop` asked for it; what was learned is in a checkpoint.
        MachineError: the number of processes is not what was asked for.
    """
    recipe, machine = job.recipe, this_machine()
    if not machine.cuda:
        keep_freed_memory()
    require_tracker(recipe.tracking)
    choices = choose(machine, recipe)
    arguments = build_arguments(recipe, job.run.training, choices, cuda=machine.cuda)
    _check_processes(job, arguments)
    arguments._n_gpu = min(1, arguments.n_gpu)  # one GPU a process; transformers would spread one over all it sees

    reporter.say("  loading the base")
    renderer = Renderer(load_tokenizer(job.base_folder))
    base, choices = _load_base(job, choices, reporter)
    model = build_adapter(base, recipe.adapter, recipe.seed)
    choices = _without_what_is_not_to_be_had(choices, model, reporter)

    examples = load_examples(job.run.data / "train.arrow")
    lengths = read_lengths(examples).tolist()
    plan = _plan(recipe, lengths, job.devices)
    apply_plan(arguments, plan, recipe, job.devices)

    packed = recipe.training.batches == "packed"
    if packed:
        check_isolation(cast(PreTrainedModel, model.get_base_model()))
    batching = Batching(plan, arguments.process_index, job.devices, renderer.stop_ids()[0], packed)
    writes = arguments.process_index == 0
    if writes:
        shutil.rmtree(job.run.stopped, ignore_errors=True)
    with _output(job.run.training, writes) as training_folder:
        arguments.output_dir = str(training_folder)  # the files of a tracker stay with the metrics
        trainer = RecipeTrainer(model, arguments, examples, batching, choices, processing_class=renderer.tokenizer)
        planned = plan.for_rank(batching.rank, batching.world_size)
        check_batches(trainer.get_train_dataloader(), planned, lambda i: example_at(examples, i), packed)
        keep_in_fp32(model)
        metrics = _Metrics(training_folder / "metrics.jsonl", _tokens_by_step(plan, lengths))
        language = LanguageModel(model, renderer)
        learned = _learn(trainer, language, _Task(job, metrics, stop or Signals()), reporter if writes else _silent())
        with _output(job.run.adapter, writes) as adapter_folder:
            _write_adapter(job, model, adapter_folder)
            save_tokenizer(renderer.tokenizer, adapter_folder)
            sha256 = adapter_hash(adapter_folder)
        summary = _summarize(job, choices, (examples, plan), learned, model)
        if summary.plateau and writes:
            reporter.say(f"  {told_plateau(summary.plateau)}")
        write_model(training_folder / "summary.json", summary.model_copy(update={"adapter_sha256": sha256}))


def _load_base(job: TrainingJob, choices: Choices, reporter: Reporter) -> tuple[PreTrainedModel, Choices]:
    """Load the base with the attention that was chosen, or with SDPA where torch's kernel does not do, and say why."""
    if choices.attention != "varlen":
        return load_base(_base_spec(job, choices)), choices
    attention = VarlenAttention(torch_kernel())
    attention.register()
    base = load_base(_base_spec(job, choices))
    if why := attention.why_masked(base):
        reporter.say(f"  its packed rows are given a mask of all pairs, which takes longer: {why}")
        base.set_attn_implementation("sdpa")
        choices = replace(choices, attention="sdpa")
    return base, choices


def _without_what_is_not_to_be_had(choices: Choices, model: PeftModel, reporter: Reporter) -> Choices:
    """Leave the layers to the libraries where ours do not know this model, and say why; likewise what is compiled."""
    if choices.layers == "plain":
        return choices
    if why := why_plain(model):
        reporter.say(f"  its layers are computed by the libraries: {why}")
        return replace(choices, layers="plain", elementwise="torch")
    try:
        load_elementwise(compiled=choices.elementwise == "compiled")
    except NotCompiled as why:
        reporter.say(f"  computed by torch's functions, which takes longer: {why}")
        return replace(choices, elementwise="torch")
    return choices


@dataclass(frozen=True)
class _Metrics:
    file: Path
    tokens_by_step: Sequence[int]


@dataclass(frozen=True)
class _Task:
    job: TrainingJob
    metrics: _Metrics
    stop: Stop


def _learn(trainer: RecipeTrainer, model: LanguageModel, task: _Task, reporter: Reporter) -> Learned:
    """Run the trainer with its guards, check that every tensor moved, and keep the best adapter."""
    job, metrics = task.job, task.metrics
    steps = trainer.args.max_steps
    first = adapter_weights(model.model)
    saved = load_saved(job, model.model, trainer.args.process_index)
    weights = WeightGuard(model.model)
    trainer.add_callback(GradientGuard(model.model))
    trainer.add_callback(weights)
    trainer.add_callback(MemoryReturner())
    trainer.memory.say = reporter.say
    validator = _build_validator(job, model, steps, saved.validation if saved else None)
    if validator:
        trainer.add_callback(validator)
    log = validator.log if validator else None
    checkpointer = Checkpointer(job, task.stop, saved, log)
    with reporter.training(steps) as bar:
        recorder = Recorder(metrics.file, metrics.tokens_by_step, bar, log, saved.metrics if saved else ())
        trainer.add_callback(recorder)
        checkpointer.attach(trainer, recorder)
        task.stop.finish_first()
        with keeping_evidence(Witness(job, trainer, weights, lambda folder: _write_adapter(job, model.model, folder))):
            trainer.train()
    if checkpointer.stopped:
        after = f"stopped after step {trainer.state.global_step} of {steps}, which is saved"
        task.stop.end(f"{after}; the same command goes on from there")
    restore_forward(model.causal_lm)
    model.model.eval()
    done = trainer.state.global_step
    check_moved(model.model, first, done - min(1, int(trainer.args.warmup_steps)))  # a warm-up begins with rate 0
    if validator is None or job.recipe.training.keep == "last":
        return Learned(done, recorder.steps, trainer.memory.setting, checkpointer.resumed_after)
    restore_adapter(model.model, validator.log.best_weights)
    return Learned(validator.log.best_step, recorder.steps, trainer.memory.setting, checkpointer.resumed_after)


def _write_adapter(job: TrainingJob, model: torch.nn.Module, folder: Path) -> None:
    write_adapter(cast(PeftModel, model), folder, job.base_name, job.base_revision)


def _build_validator(job: TrainingJob, model: LanguageModel, steps: int, log: ValidationLog | None) -> Validator | None:
    file = job.run.data / "validation.arrow"
    if not file.exists():
        return None
    training = job.recipe.training
    count = min(steps, training.validations or DEFAULT_VALIDATIONS)
    times = frozenset(round(steps * (i + 1) / count) for i in range(count))
    rows = load_examples(file)
    patience = training.early_stopping.patience if training.early_stopping else None
    return Validator(model, [example_at(rows, i) for i in range(len(rows))], times, patience, log)


def _base_spec(job: TrainingJob, choices: Choices) -> ModelSpec:
    quantization = job.recipe.quantization
    return ModelSpec(
        path=job.base_folder,
        quantization=Quantization(quantization.kind, quantization.double_quant) if quantization else None,
        dtype=job.recipe.base.dtype,
        attention=choices.attention,
    )


def _plan(recipe: Recipe, lengths: Sequence[int], devices: int) -> BatchPlan:
    training = recipe.training
    plan_by = plan_packed_batches if training.batches == "packed" else plan_batches
    plan = plan_by(
        lengths,
        training.tokens_per_step,
        training.tokens_per_micro_batch,
        devices,
        training.epochs,
        recipe.seed,
    )
    share = training.tokens_per_step // plan.micro_batches_per_step
    if max(lengths) > share:
        raise DataError(
            f"the longest example has {max(lengths)} tokens, and a micro-batch {share}: a step of"
            f" {training.tokens_per_step} tokens is cut into {plan.micro_batches_per_step}",
            where="training.tokens_per_step",
            hint=f"--set training.tokens_per_step={max(lengths) * plan.micro_batches_per_step}, or use fewer devices",
        )
    return plan


def _tokens_by_step(plan: BatchPlan, lengths: Sequence[int]) -> list[int]:
    tokens = [sum(lengths[i] for i in batch) for batch in plan.micro_batches]
    size = plan.micro_batches_per_step
    return [sum(tokens[i : i + size]) for i in range(0, len(tokens), size)]


def _summarize(
    job: TrainingJob,
    choices: Choices,
    trained_on: tuple[Dataset, BatchPlan],
    learned: Learned,
    model: PeftModel,
) -> TrainingSummary:
    examples, plan = trained_on
    seen = [i for batch in plan.micro_batches[: learned.steps * plan.micro_batches_per_step] for i in batch]
    tokens = int(read_lengths(examples)[seen].sum(dtype=np.int64))
    trainable, total = model.get_nb_trainable_parameters()
    losses = [line.loss for line in learned.lines if line.loss is not None]
    return TrainingSummary(
        steps=learned.steps,
        kept_step=learned.kept_step,
        examples=len(examples),
        tokens=tokens,
        trained_tokens=int(count_trained(examples)[seen].sum(dtype=np.int64)),
        seconds=learned.seconds,
        resumed_after=learned.resumed_after,
        tokens_per_second=tokens / learned.seconds,
        peak_memory_bytes=_peak_memory_of_all(model.device, job.devices),
        device=str(model.device),
        devices=job.devices,
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        choices={**choices.named(), "batches": job.recipe.training.batches},
        memory=learned.memory,
        divergence=find_divergence(losses),
        plateau=find_plateau(losses),
        adapter_sha256="",
    )


def _check_processes(job: TrainingJob, arguments: SFTConfig) -> None:
    if arguments.world_size != job.devices:
        raise MachineError(
            f"{job.devices} processes were asked for and {arguments.world_size} are running",
            where="training.devices",
        )


@contextmanager
def _output(folder: Path, writes: bool) -> Iterator[Path]:
    """Yield the staging folder of an output, or a throwaway one where this process's output is not kept."""
    if writes:
        with staged_folder(folder) as staging:
            yield staging
    else:
        with TemporaryDirectory() as throwaway:
            yield Path(throwaway)


def _silent() -> Reporter:
    return Reporter(Console(quiet=True))


def _peak_memory_of_all(device: torch.device, devices: int) -> int:
    """Add up the peaks of all processes: of the GPUs' memory where there are any, else of resident memory."""
    own = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    peak = torch.tensor(own, device=device)  # NCCL reduces only what is on its GPU
    if devices > 1:
        torch.distributed.all_reduce(peak)
    return int(peak)
