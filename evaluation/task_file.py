"""Loads a task: one closed YAML file and the JSONL file of samples beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ClassVar, get_args

import yaml
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from evaluation.errors import DataError, TaskError, nearest
from evaluation.files import read_jsonl_lines, sha256_of_json
from evaluation.task import LoadedTask, Sample, Task, TaskKind

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_BAD_LINES_NAMED = 10


class _TaskLoader(yaml.SafeLoader):
    """Safe YAML without dates (they stay text), aliases (they can grow without bound) and duplicate keys."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]  # a class variable in PyYAML too
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not accepted", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def list_bundled_tasks() -> list[str]:
    """Name the tasks that come with the package, sorted."""
    return sorted(path.stem for path in _bundled_folder().glob("*.yaml"))


def load_task(name_or_file: str, limit: int | None = None) -> LoadedTask:
    """Load a bundled task by its name, or a task file by its path, with at most `limit` samples.

    Raises:
        TaskError: there is no such task, or its file says something that is not accepted.
        DataError: a line of its samples is not a sample.
    """
    file = Path(name_or_file)
    if file.suffix not in (".yaml", ".yml"):
        bundled = list_bundled_tasks()
        if name_or_file not in bundled:
            raise TaskError(
                f"there is no bundled task {name_or_file!r}",
                hint=f"{nearest(name_or_file, bundled)} A task of your own is named by its .yaml file.",
            )
        file = _bundled_folder() / f"{name_or_file}.yaml"
    task = parse_task(_read(file), str(file))
    if limit is not None:
        task = task.model_copy(update={"limit": min(limit, task.limit or limit)})
    samples = _load_samples(task, file)[: task.limit]
    return LoadedTask(task=task, file=file, samples=samples, sha256=_hash(task, samples))


def parse_task(text: str, where: str) -> Task:
    """Parse the text of a task file; `where` is the file's name in messages.

    Raises:
        TaskError: the text is not YAML or not a task; every problem is listed.
    """
    try:
        loader = _TaskLoader(text)
        node = loader.get_single_node()
        document = loader.construct_document(node) if node is not None else None
        canonical = json.dumps(document)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TaskError(f"not accepted YAML: {error.problem}", where=f"{where}:{line}") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise TaskError(f"not accepted YAML: {error}", where=where) from error
    if not isinstance(node, yaml.MappingNode):
        raise TaskError("a task file is a mapping of keys to values", where=where)
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    try:
        task = Task.model_validate_json(canonical)
    except ValidationError as error:
        raise _task_error(error.errors(), where, lines) from error
    _check_options(task, f"{where}:{lines.get('options', lines['kind'])}")
    return task


def _bundled_folder() -> Path:
    return Path(str(resources.files("evaluation.tasks")))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TaskError("there is no such task file", where=str(file)) from error
    except UnicodeDecodeError as error:
        raise TaskError(f"not UTF-8: {error.reason} at byte {error.start}", where=str(file)) from error


def _task_error(details: Sequence[ErrorDetails], where: str, lines: dict[str, int]) -> TaskError:
    numbered = sorted((lines.get(str(detail["loc"][0]), 1), _explain(detail)) for detail in details)
    first = numbered[0][0]
    rest = [f"line {line}: {text}" for line, text in numbered[1:]]
    return TaskError("\n  ".join([numbered[0][1], *rest]), where=f"{where}:{first}")


def _explain(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"`{key}` is not a key of a task; {nearest(key, Task.model_fields)}"
    if detail["type"] == "missing":
        return f"the key `{key}` is missing"
    if key == "kind":
        return f"`kind` cannot be {detail['input']!r}; {nearest(str(detail['input']), get_args(TaskKind))}"
    quote = " (put it in quotes)" if detail["type"] == "string_type" else ""
    return f"`{key}` cannot be {detail['input']!r}: {detail['msg']}{quote}"


def _check_options(task: Task, where: str) -> None:
    if task.kind != "choose":
        if task.options:
            raise TaskError(f"`options` are for `kind: choose`, and this is {task.kind!r}", where=where)
        return
    if len(task.options) < 2:
        raise TaskError("`kind: choose` needs at least two `options`", where=where)
    if len(set(task.options)) < len(task.options) or any(not option.strip() for option in task.options):
        raise TaskError("`options` must differ from one another and not be blank", where=where)


def _samples_file(task: Task, file: Path) -> Path:
    """Find the samples, nowhere but below the task file's folder: a shared task can read no other file."""
    hint = "name a file in the task file's own folder, such as 'samples.jsonl'"
    name = task.samples
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    if absolute or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
        raise TaskError(f"`samples` may not lead out of the folder: {name!r}", where=str(file), hint=hint)
    path = file.parent / name
    if not path.resolve().is_relative_to(file.parent.resolve()):
        raise TaskError(f"`samples` is a link out of the folder: {name!r}", where=str(file), hint=hint)
    if not path.is_file():
        raise TaskError(f"there is no file of samples {name!r}", where=str(file), hint=hint)
    return path


def _load_samples(task: Task, file: Path) -> tuple[Sample, ...]:
    path = _samples_file(task, file)
    samples: list[Sample] = []
    line_of: dict[str, int] = {}
    bad: list[tuple[int, str]] = []
    for line, text in read_jsonl_lines(path):
        try:
            sample = Sample.model_validate_json(text)
        except ValidationError as error:
            bad.append((line, _explain_sample(error.errors()[0])))
            continue
        complaint = _complaint(sample, task, line_of)
        if complaint:
            bad.append((line, complaint))
        line_of.setdefault(sample.id, line)
        samples.append(sample)
    if bad:
        raise _data_error(path, bad)
    if not samples:
        raise DataError("there are no samples", where=str(path))
    return tuple(samples)


def _complaint(sample: Sample, task: Task, line_of: dict[str, int]) -> str:
    if sample.id in line_of:
        return f"the id {sample.id!r} stands on line {line_of[sample.id]} already"
    if sample.prompt.layout == "chat" and not sample.prompt.messages:
        return "the prompt has no messages"
    if not sample.reference.strip():
        return "the reference is empty"
    if task.kind == "choose" and sample.reference not in task.options:
        hint = nearest(sample.reference, task.options)
        return f"the reference {sample.reference!r} is not one of the options; {hint}"
    return ""


def _explain_sample(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"`{key}` is not a key of a sample; {nearest(key, Sample.model_fields)}"
    return f"`{key}`: {detail['msg']}" if key else detail["msg"]


def _data_error(path: Path, bad: Sequence[tuple[int, str]]) -> DataError:
    line, what = bad[0]
    if len(bad) > 1:
        named = ", ".join(str(other) for other, _ in bad[1 : _BAD_LINES_NAMED + 1])
        more = ", …" if len(bad) > _BAD_LINES_NAMED + 1 else ""
        what += f" ({len(bad)} lines are not accepted; the others: {named}{more})"
    return DataError(what, where=f"{path}:{line}")


def _hash(task: Task, samples: Sequence[Sample]) -> str:
    """Hash what is scored: the name of the samples' file, the description and the limit change no score."""
    scored: JsonValue = {
        "task": task.model_dump(mode="json", exclude={"samples", "description", "limit"}),
        "samples": [sample.model_dump(mode="json") for sample in samples],
    }
    return sha256_of_json(scored)
