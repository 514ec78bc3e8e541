"""Results on disk: `<folder>/<contender>/<task>.json`, with its outputs in `<task>.samples.jsonl`."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from evaluation.errors import DataError, nearest
from evaluation.files import read_jsonl_lines, sha256_of_file, write_jsonl, write_model
from evaluation.results import Output, Result

CONTENDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""Names that are safe as a folder's."""


def write_result(folder: Path, result: Result, outputs: tuple[Output, ...]) -> Result:
    """Write outputs and result, and return the result as written, with the hash of its outputs.

    The result comes last and an older one goes first, so a result on disk always has its own outputs beside
    it.

    Raises:
        DataError: the contender's name cannot be a folder's.
    """
    file = _result_file(folder, result.identity.contender, result.task)
    file.unlink(missing_ok=True)
    samples = _samples_file(file)
    write_jsonl(samples, outputs)
    written = result.model_copy(update={"outputs_sha256": sha256_of_file(samples)})
    write_model(file, written)
    return written


def load_result(folder: Path, contender: str, task: str) -> tuple[Result, tuple[Output, ...]]:
    """Read a result and its outputs.

    Raises:
        DataError: there is no such result, or its files are not what was written.
    """
    file = _result_file(folder, contender, task)
    if not file.is_file():
        raise DataError("there is no such result", where=str(file), hint=_what_there_is(folder, contender, task))
    try:
        result = Result.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(f"not a result: {_first(error)}", where=str(file)) from error
    if (result.identity.contender, result.task) != (contender, task):
        raise DataError(f"holds {result.identity.contender}'s result on {result.task}", where=str(file))
    samples = _samples_file(file)
    if not samples.is_file() or sha256_of_file(samples) != result.outputs_sha256:
        raise DataError("not the outputs that the result was computed from", where=str(samples))
    return result, tuple(_load_output(samples, line, text) for line, text in read_jsonl_lines(samples))


def list_contenders(folder: Path) -> list[str]:
    """Name the contenders with a result below a folder, sorted."""
    return sorted({file.parent.name for file in folder.glob("*/*.json")})


def list_tasks(folder: Path, contender: str) -> list[str]:
    """Name the tasks that a contender has a result on, sorted."""
    return sorted(file.stem for file in (folder / contender).glob("*.json"))


def _result_file(folder: Path, contender: str, task: str) -> Path:
    for name in (contender, task):
        if not CONTENDER_NAME.fullmatch(name):
            raise DataError(
                f"{name!r} cannot name a result", hint="use letters, digits, `.`, `-` and `_`, not `.` first"
            )
    return folder / contender / f"{task}.json"


def _samples_file(result_file: Path) -> Path:
    return result_file.with_name(f"{result_file.stem}.samples.jsonl")


def _what_there_is(folder: Path, contender: str, task: str) -> str:
    contenders = list_contenders(folder)
    if contender not in contenders:
        return nearest(contender, contenders) or "the folder holds no results"
    return nearest(task, list_tasks(folder, contender))


def _load_output(samples: Path, line: int, text: str) -> Output:
    try:
        return Output.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"not an output: {_first(error)}", where=f"{samples}:{line}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    return f"`{key}`: {detail['msg']}" if key else detail["msg"]
