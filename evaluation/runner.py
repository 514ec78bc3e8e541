"""Scores one contender on one task: asks the model, scores each answer, estimates each metric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

from evaluation.conversation import Conversation
from evaluation.errors import ProofFailed, TaskError
from evaluation.metrics import means, set_statistics
from evaluation.results import Estimate, Identity, Output, Result
from evaluation.scoring import chrf, exact_match, rouge_l, token_f1
from evaluation.statistics import estimate_by_bootstrap, estimate_mean
from evaluation.task import LoadedTask, Sample, TaskKind

if TYPE_CHECKING:
    from evaluation.answers import AnswerLoss, Choice, Generated

Advance = Callable[[int], None]

SCORING_PACKAGES = (
    "finetune-recipes",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "numpy",
    "scipy",
    "scikit-learn",
    "sacrebleu",
    "rouge-score",
)
"""Packages whose version can change a score."""

_HIGHEST_NATS_PER_TOKEN = 500.0


class AnswersQuestions(Protocol):
    """What scoring needs of a model; `advance` is told of finished samples."""

    def generate(self, prompts: Sequence[Conversation], max_new_tokens: int, advance: Advance) -> list[Generated]:
        """Continue each prompt greedily."""

    def choose(
        self,
        prompts: Sequence[Conversation],
        options: Sequence[str],
        references: Sequence[str],
        written: Sequence[str],
        advance: Advance,
    ) -> list[Choice]:
        """Choose the likeliest option after each prompt, knowing what was written; tells of each prompt twice."""

    def answer_losses(
        self, prompts: Sequence[Conversation], answers: Sequence[str], advance: Advance
    ) -> list[AnswerLoss]:
        """Measure each answer after its prompt, in nats, with its end token."""


@dataclass(frozen=True)
class Scored:
    """A result with the outputs that it rests on, in the order of the samples."""

    result: Result
    outputs: tuple[Output, ...]


def count_steps(loaded: LoadedTask) -> int:
    """Count what `advance` is told in all while a model is scored: each sample once per pass."""
    passes: dict[TaskKind, int] = {"choose": 3, "generate": 2, "token_loss": 1}
    return passes[loaded.task.kind] * len(loaded.samples)


def installed_versions() -> dict[str, str]:
    """Look up the versions of the packages that can change a score; absent ones are left out."""
    versions = {}
    for package in SCORING_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def score(model: AnswersQuestions, loaded: LoadedTask, identity: Identity, advance: Advance) -> Scored:
    """Score a model on a task; the identity's seed draws the bootstrap.

    Raises:
        ProofFailed: a loss or a log-likelihood is not a finite number, so that nothing can be concluded.
    """
    began = time.perf_counter()
    samples, task = loaded.samples, loaded.task
    prompts = [sample.prompt for sample in samples]
    references = [sample.reference for sample in samples]
    if task.kind == "choose":
        answers = model.generate(prompts, task.max_new_tokens, advance)
        choices = model.choose(prompts, task.options, references, [answer.text for answer in answers], advance)
        outputs = _measured(samples, [choice.reference for choice in choices])
        outputs = [_with_choice_text(output, answer) for output, answer in zip(outputs, answers, strict=True)]
        outputs = [_with_choice(output, task.options, one) for output, one in zip(outputs, choices, strict=True)]
    else:
        outputs = _measured(samples, model.answer_losses(prompts, references, advance))
    if task.kind == "generate":
        answers = model.generate(prompts, task.max_new_tokens, advance)
        outputs = [_with_text(output, answer) for output, answer in zip(outputs, answers, strict=True)]
    return _scored(outputs, loaded, identity, began)


def score_classical(answers: Sequence[str], loaded: LoadedTask, identity: Identity) -> Scored:
    """Score the labels that a classical baseline gave to the samples of a `choose` task.

    Such a baseline only ever names an option, so its choice and its text are the same and the metrics of both
    agree. It has no loss and no stop token, so `perplexity` and `stopped` are absent.

    Raises:
        TaskError: the task has no closed set of options.
    """
    if loaded.task.kind != "choose":
        raise TaskError(
            f"a classical baseline answers `kind: choose` only, and this is {loaded.task.kind!r}",
            where=str(loaded.file),
        )
    began = time.perf_counter()
    outputs = []
    for sample, answer in zip(loaded.samples, answers, strict=True):
        right = exact_match(answer, sample.reference)
        scores = {"choice_accuracy": right, "exact_match": right}
        outputs.append(_asked(sample, scores).model_copy(update={"generated": answer, "chosen": answer}))
    return _scored(outputs, loaded, identity, began)


def estimate_metrics(kind: TaskKind, outputs: Sequence[Output], seed: int) -> dict[str, Estimate]:
    """Estimate every metric that the outputs yield, each with its 95 % interval."""
    estimates = {metric: estimate_mean(scores) for metric, scores in means(outputs).items()}
    for metric, statistic in set_statistics(kind, outputs).items():
        estimates[metric] = estimate_by_bootstrap(statistic, len(outputs), seed)
    return estimates


def _scored(outputs: Sequence[Output], loaded: LoadedTask, identity: Identity, began: float) -> Scored:
    assert identity.task_sha256 == loaded.sha256, "the identity names the task that is scored"
    result = Result(
        task=loaded.task.name,
        kind=loaded.task.kind,
        identity=identity,
        metrics=estimate_metrics(loaded.task.kind, outputs, identity.seed),
        seconds=time.perf_counter() - began,
    )
    return Scored(result=result, outputs=tuple(outputs))


def _asked(sample: Sample, scores: dict[str, float]) -> Output:
    messages = sample.prompt.messages
    prompt = messages[-1].content if messages else ""
    return Output(sample=sample.id, prompt=prompt, reference=sample.reference, scores=scores)


def _measured(samples: Sequence[Sample], losses: Sequence[AnswerLoss]) -> list[Output]:
    return [_with_loss(sample, loss) for sample, loss in zip(samples, losses, strict=True)]


def _with_loss(sample: Sample, loss: AnswerLoss) -> Output:
    # Written so that NaN fails; a sure token's loss may round to just below 0.
    if not (loss.tokens > 0 and abs(loss.nll) <= _HIGHEST_NATS_PER_TOKEN * loss.tokens):
        raise ProofFailed(
            f"the loss of the reference is {loss.nll} nats over {loss.tokens} tokens",
            where=f"sample {sample.id}",
            hint="the model or its adapter is damaged, or the dtype is too narrow: try --dtype float32",
        )
    return _asked(sample, {}).model_copy(update={"reference_nll": loss.nll, "reference_tokens": loss.tokens})


def _with_text(output: Output, answer: Generated) -> Output:
    scores = {
        "exact_match": exact_match(answer.text, output.reference),
        "token_f1": token_f1(answer.text, output.reference),
        "rouge_l": rouge_l(answer.text, output.reference),
        "chrf": chrf(answer.text, output.reference),
        "stopped": float(answer.stopped),
    }
    return _answered(output, answer, scores)


def _with_choice_text(output: Output, answer: Generated) -> Output:
    scores = {"exact_match": exact_match(answer.text, output.reference), "stopped": float(answer.stopped)}
    return _answered(output, answer, scores)


def _answered(output: Output, answer: Generated, scores: dict[str, float]) -> Output:
    update = {"generated": answer.text.strip(), "stopped": answer.stopped, "scores": scores}
    return output.model_copy(update=update)


def _with_choice(output: Output, options: Sequence[str], choice: Choice) -> Output:
    if not all(math.isfinite(value) for value in choice.weighed.values()):
        raise ProofFailed("an option's log-likelihood is not a finite number", where=f"sample {output.sample}")
    chosen = options[choice.likeliest]
    scores = {"choice_accuracy": float(chosen == output.reference), **output.scores}
    return output.model_copy(update={"chosen": chosen, "scores": scores})
