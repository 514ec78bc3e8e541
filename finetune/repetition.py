"""Whether two runs came out alike: byte by byte, tensor by tensor where weights differ, and score by score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import safe_open

from evaluation.files import sha256_of_file
from evaluation.result_files import list_contenders, list_tasks, load_result
from finetune.run_directory import OUTPUTS, STAGES, RunDirectory

MEASURED_ANEW = frozenset(
    {
        "seconds",
        "tokens_per_second",
        "peak_memory_bytes",
        "rows_per_second",
        "chunks_from_cache",
        "memory_bytes",
        "outputs_sha256",
        "environment",
        "stages",
        "command",
    }
)
"""Keys of a run's JSON files that tell of time, memory, cache and machine, which no two runs have in common."""

TIMED = (
    "data/audit.json",
    "training/metrics.jsonl",
    "training/summary.json",
    "merged/merge.json",
    "evaluation/*/*.json",
    "report.json",
)
"""Files that tell of such things. Any other file is the same byte by byte, or is not the same."""
PAGES = ("report.html", "report.md")
"""Written from report.json, with the times in it."""


@dataclass(frozen=True)
class TensorDifference:
    """The first tensor that differs between two files of weights."""

    name: str
    largest: float
    """Absolute difference of two elements, over all tensors of the file; infinite where shapes or names differ."""
    differing: int
    """Tensors that differ."""
    tensors: int


@dataclass(frozen=True)
class FileDifference:
    """A file that is not the same in both runs."""

    name: str
    weights: TensorDifference | None = None
    missing: bool = False
    """Only one of the runs has it."""

    def __str__(self) -> str:
        """Say what differs."""
        if self.missing:
            return f"{self.name} is in one of them only"
        if self.weights is None:
            return f"{self.name} differs"
        found = self.weights
        many = f"{found.differing} of {found.tensors} tensors differ"
        return f"{self.name}: {many}, first {found.name}, by at most {found.largest:.3g}"


@dataclass(frozen=True)
class ScoreDifference:
    """A figure that came out otherwise."""

    task: str
    contender: str
    metric: str
    was: float
    found: float

    def __str__(self) -> str:
        """Say what it was and what it is."""
        return f"{self.contender} on {self.task}: {self.metric} {self.was:.6g} became {self.found:.6g}"


@dataclass(frozen=True)
class Repetition:
    """How one run came out beside another."""

    compared: int
    """Files."""
    files: tuple[FileDifference, ...]
    scores: tuple[ScoreDifference, ...]

    @property
    def identical(self) -> bool:
        """Say whether nothing differs but times."""
        return not (self.files or self.scores)


def compare_outcomes(one: RunDirectory, other: RunDirectory) -> Repetition:
    """Compare what the stages of two runs wrote, in the order of the stages."""
    names = _names(one, other)
    differing = tuple(found for name in names if (found := _compare(one.folder, other.folder, name)))
    return Repetition(len(names), differing, tuple(_moved_scores(one, other)))


def compare_weights(one: Path, other: Path) -> TensorDifference | None:
    """Compare two files of safetensors tensor by tensor; None where all are equal, bit by bit."""
    differing, largest, first = 0, 0.0, ""
    with safe_open(one, framework="pt") as ours, safe_open(other, framework="pt") as theirs:
        names = sorted({*ours.keys(), *theirs.keys()})
        common = {*ours.keys()} & {*theirs.keys()}
        for name in names:
            found = _distance(ours.get_tensor(name), theirs.get_tensor(name)) if name in common else torch.inf
            if found is not None:
                differing, largest, first = differing + 1, max(largest, found), first or name
    return TensorDifference(first, largest, differing, len(names)) if differing else None


def same_but_for_times(value: JsonValue) -> JsonValue:
    """Return a JSON value without what is measured anew in every run."""
    if isinstance(value, dict):
        return {key: same_but_for_times(inner) for key, inner in value.items() if key not in MEASURED_ANEW}
    return [same_but_for_times(inner) for inner in value] if isinstance(value, list) else value


def _names(one: RunDirectory, other: RunDirectory) -> list[str]:
    """List the files of the stages, relative to the run, stage by stage and by name."""
    found: list[str] = []
    for stage in STAGES:
        if one.marker(stage) is None:
            continue
        for output in OUTPUTS[stage]:
            files = {name for run in (one, other) for name in _below(run.folder, output)}
            found += sorted(files - set(PAGES))
    return found


def _below(folder: Path, output: str) -> Iterator[str]:
    path = folder / output
    if path.is_file():
        yield output
    yield from (file.relative_to(folder).as_posix() for file in path.rglob("*") if file.is_file())


def _compare(one: Path, other: Path, name: str) -> FileDifference | None:
    ours, theirs = one / name, other / name
    if not (ours.is_file() and theirs.is_file()):
        return FileDifference(name, missing=True)
    if sha256_of_file(ours) == sha256_of_file(theirs):
        return None
    if ours.suffix == ".safetensors":
        return FileDifference(name, compare_weights(ours, theirs))
    if any(fnmatch(name, pattern) for pattern in TIMED) and _records(ours) == _records(theirs):
        return None
    return FileDifference(name)


def _records(file: Path) -> list[JsonValue]:
    text = file.read_text(encoding="utf-8")
    documents = text.splitlines() if file.suffix == ".jsonl" else [text]
    return [same_but_for_times(json.loads(document)) for document in documents]


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float | None:
    """Return the largest absolute difference of two tensors; None where they are equal bit by bit."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return torch.inf
    if torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8)):
        return None
    return float((ours.double() - theirs.double()).abs().nan_to_num(torch.inf).max())


def _moved_scores(one: RunDirectory, other: RunDirectory) -> Iterator[ScoreDifference]:
    ours, theirs = _figures(one), _figures(other)
    for where in sorted(ours.keys() & theirs.keys()):
        if repr(ours[where]) != repr(theirs[where]):  # what is no number is equal to itself here
            yield ScoreDifference(*where, ours[where], theirs[where])


def _figures(run: RunDirectory) -> dict[tuple[str, str, str], float]:
    """Read every figure of a run: task, contender and metric → value."""
    return {
        (task, contender, metric): estimate.value
        for contender in list_contenders(run.evaluation)
        for task in list_tasks(run.evaluation, contender)
        for metric, estimate in load_result(run.evaluation, contender, task)[0].metrics.items()
    }
