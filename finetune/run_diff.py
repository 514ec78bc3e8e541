"""What differs between two runs: settings, what went in, rows, training, merge, and the scores on the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from evaluation.comparison import differences
from evaluation.errors import DataError
from evaluation.result_files import list_contenders, list_tasks, load_result
from evaluation.results import Difference, Estimate
from evaluation.runner import Scored
from finetune.audit_records import Audit
from finetune.merge_records import MergeProof
from finetune.recipe_file import load_recipe
from finetune.run_directory import RunDirectory
from finetune.run_lock import load_lock
from finetune.training_records import StepMetrics, TrainingSummary

_Record = TypeVar("_Record", bound=BaseModel)


class _Part(BaseModel):
    # JSON has no infinity: a perplexity that overflows would be written as null and not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class Line(_Part):
    """One setting or figure of both runs."""

    key: str
    """Dotted path, such as `training.learning_rate`."""
    one: JsonValue
    """None where the first run has no such thing."""
    other: JsonValue

    @property
    def differs(self) -> bool:
        """Say whether the two are not the same."""
        return self.one != self.other


class ScoreLine(_Part):
    """One metric of one contender on one task."""

    task: str
    contender: str
    metric: str
    one: Estimate | None
    other: Estimate | None
    difference: Difference | None
    """The second run minus the first, sample by sample; none where they were not scored on the same samples."""
    same_outputs: bool
    """Whether every answer and every loss is the same, to the last bit."""


class RunDiff(_Part):
    """Two runs beside each other."""

    one: str
    other: str
    recipe: tuple[Line, ...]
    """Keys that differ."""
    lock: tuple[Line, ...]
    """What differs of base, sources, tokenizer, templates, packages, machine and program."""
    rows: tuple[Line, ...]
    """What differs of the rows' uses and lengths."""
    training: tuple[Line, ...]
    """Steps, tokens, losses in nats, seconds, bytes; also what is equal."""
    merge: tuple[Line, ...]
    same_adapter: bool | None
    """Bit by bit; none where one of the runs has none."""
    same_merged: bool | None
    scores: tuple[ScoreLine, ...]


def compare_runs(one: RunDirectory, other: RunDirectory) -> RunDiff:
    """Set two runs beside each other, as far as each has got.

    Raises:
        DataError: one of the folders is no run, or a file in it is damaged.
    """
    recipes = [_flat(load_recipe(str(_existing(run).recipe)).recipe.model_dump(mode="json")) for run in (one, other)]
    locks = [_flat(load_lock(run).model_dump(mode="json", exclude={"recipe_sha256"})) for run in (one, other)]
    return RunDiff(
        one=str(one.folder),
        other=str(other.folder),
        recipe=_differing(*recipes),
        lock=_differing(*locks),
        rows=_differing(_rows(one), _rows(other)),
        training=_lines(_training(one), _training(other)),
        merge=_lines(_merge(one), _merge(other)),
        same_adapter=_same(_adapter_hash(one), _adapter_hash(other)),
        same_merged=_same(_merged_hash(one), _merged_hash(other)),
        scores=tuple(_scores(one, other)),
    )


def _existing(run: RunDirectory) -> RunDirectory:
    if not run.recipe.is_file():
        raise DataError("no run in this folder", where=str(run.folder), hint="`finetune list runs` names yours")
    return run


def _flat(value: JsonValue, path: str = "") -> dict[str, JsonValue]:
    """Spell a JSON value out as dotted path → value without parts; what is empty stays whole."""
    if isinstance(value, dict) and value:
        parts = {str(key): inner for key, inner in value.items()}
    elif isinstance(value, list) and value:
        parts = {str(i): inner for i, inner in enumerate(value)}
    else:
        return {path: value}
    return {
        deep: leaf for key, inner in parts.items() for deep, leaf in _flat(inner, f"{path}.{key}".strip(".")).items()
    }


def _lines(one: dict[str, JsonValue], other: dict[str, JsonValue]) -> tuple[Line, ...]:
    keys = dict.fromkeys((*one, *other))
    return tuple(Line(key=key, one=one.get(key), other=other.get(key)) for key in keys)


def _differing(one: dict[str, JsonValue], other: dict[str, JsonValue]) -> tuple[Line, ...]:
    return tuple(line for line in _lines(one, other) if line.differs)


def _rows(run: RunDirectory) -> dict[str, JsonValue]:
    if run.marker("prepare") is None:
        return {}
    audit = _read(Audit, run, "data/audit.json")
    wanted = {"sources", "set_aside_by_reason", "train", "validation", "held_out_samples", "truncated", "split"}
    return _flat(audit.model_dump(mode="json", include=wanted | {"repeated", "copies", "labels"}))


def _training(run: RunDirectory) -> dict[str, JsonValue]:
    if run.marker("train") is None:
        return {}
    summary = _read(TrainingSummary, run, "training/summary.json")
    lines = (run.training / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [StepMetrics.model_validate_json(line) for line in lines]
    losses = [step.loss for step in steps if step.loss is not None]
    validation = [step.validation_loss for step in steps if step.validation_loss is not None]
    return {
        "steps": summary.steps,
        "kept step": summary.kept_step,
        "examples": summary.examples,
        "tokens": summary.tokens,
        "trained tokens": summary.trained_tokens,
        "first loss": losses[0] if losses else None,
        "last loss": losses[-1] if losses else None,
        "lowest validation loss": min(validation) if validation else None,
        "last validation loss": validation[-1] if validation else None,
        "seconds": summary.seconds,
        "tokens per second": summary.tokens_per_second,
        "peak memory, bytes": summary.peak_memory_bytes,
        "device": summary.device,
        "devices": summary.devices,
        "trainable parameters": summary.trainable_parameters,
        **{f"choices.{name}": choice for name, choice in summary.choices.items()},
    }


def _merge(run: RunDirectory) -> dict[str, JsonValue]:
    if run.marker("merge") is None:
        return {}
    shown = {"onto", "dtype", "agreement", "agreement_as_trained", "kl_as_trained", "kl_to_base", "gain_kept"}
    nll = {"nll_base", "nll_as_trained", "nll_merged"}
    return _flat(_read(MergeProof, run, "merged/merge.json").model_dump(mode="json", include=shown | nll))


def _adapter_hash(run: RunDirectory) -> str | None:
    if run.marker("train") is None:
        return None
    return _read(TrainingSummary, run, "training/summary.json").adapter_sha256


def _merged_hash(run: RunDirectory) -> str | None:
    return None if run.marker("merge") is None else _read(MergeProof, run, "merged/merge.json").merged_sha256


def _same(one: str | None, other: str | None) -> bool | None:
    return None if one is None or other is None else one == other


def _scores(one: RunDirectory, other: RunDirectory) -> Iterator[ScoreLine]:
    scored = [
        {
            (task, contender): Scored(*load_result(run.evaluation, contender, task))
            for contender in list_contenders(run.evaluation)
            for task in list_tasks(run.evaluation, contender)
        }
        for run in (one, other)
    ]
    for task, contender in dict.fromkeys((*scored[0], *scored[1])):
        pair = [own.get((task, contender)) for own in scored]
        paired = {found.metric: found for found in _paired(pair[1], pair[0])}
        hashes = [own.result.outputs_sha256 if own else None for own in pair]
        metrics = dict.fromkeys(metric for own in pair if own for metric in own.result.metrics)
        for metric in metrics:
            first, second = (own.result.metrics.get(metric) if own else None for own in pair)
            yield ScoreLine(
                task=task,
                contender=contender,
                metric=metric,
                one=first,
                other=second,
                difference=paired.get(metric),
                same_outputs=hashes[0] == hashes[1],
            )


def _paired(ours: Scored | None, theirs: Scored | None) -> tuple[Difference, ...]:
    """Subtract the first run's figures from the second's where both were scored on the same task and samples."""
    if ours is None or theirs is None or ours.result.identity.task_sha256 != theirs.result.identity.task_sha256:
        return ()
    return differences(ours, theirs, theirs.result.identity.seed)


def _read(kind: type[_Record], run: RunDirectory, name: str) -> _Record:
    try:
        return kind.model_validate_json((run.folder / name).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise DataError(f"{name} is missing or damaged", where=str(run.folder), hint="run it again") from error
