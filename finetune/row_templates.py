"""Row templates: data files that say which columns a row has, and the conversation they become."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import yaml
from pydantic import JsonValue, TypeAdapter, ValidationError

from evaluation.conversation import Conversation, Message
from finetune.errors import DataError, nearest
from finetune.row_template_types import Column, MessagesTemplate, RowTemplate, TurnsTemplate
from finetune.sandbox import LONGEST_OUTPUT, render
from finetune.turns import RowUnusable, check_turns

__all__ = [
    "RowTemplate",
    "RowUnusable",
    "check_columns",
    "is_template_file",
    "list_row_templates",
    "load_row_template",
    "parse_row_template",
    "template_hint",
    "to_conversation",
]

_SUFFIXES = (".yaml", ".yml")
_NAMES_SHOWN = 20
_TEMPLATE: TypeAdapter[RowTemplate] = TypeAdapter(RowTemplate)


def list_row_templates() -> list[str]:
    """Name the templates that come with the package, sorted."""
    return sorted(path.stem for path in _bundled().glob("*.yaml"))


def is_template_file(name_or_path: str) -> bool:
    """Say whether a template is named by its file rather than by a bundled name."""
    return Path(name_or_path).suffix in _SUFFIXES


def template_hint(name: str) -> str:
    """Say which bundled template was probably meant, and which there are."""
    names = list_row_templates()
    return f"{nearest(name, names)} Bundled: {', '.join(names)}; or the path of a .yaml"


def load_row_template(name_or_path: str) -> RowTemplate:
    """Load a bundled template by its name, or a template file by its path (.yaml).

    Raises:
        DataError: there is no such template, or the file says something that is not accepted.
    """
    path = Path(name_or_path)
    if not is_template_file(name_or_path):
        names = list_row_templates()
        if name_or_path not in names:
            raise DataError(f"there is no row template {name_or_path!r}", hint=template_hint(name_or_path))
        path = _bundled() / f"{name_or_path}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the row template cannot be read: {error}", where=name_or_path) from error
    return parse_row_template(text, where=name_or_path)


def parse_row_template(text: str, where: str) -> RowTemplate:
    """Parse a template file's text.

    Raises:
        DataError: it is not YAML, or not a template; every problem is listed.
    """
    try:
        return _TEMPLATE.validate_python(yaml.load(text, Loader=_StrictLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"not YAML: {error}", where=where) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'][1:])) or 'template'}: {p['msg']}" for p in error.errors()]
        raise DataError("not a row template:\n  " + "\n  ".join(problems), where=where) from error


def check_columns(template: RowTemplate, columns: Mapping[str, str]) -> None:
    """Check that a recipe's `columns` speaks of the template's columns.

    Raises:
        DataError: it names one that the template does not have.
    """
    for name in columns:
        if name not in template.columns:
            raise DataError(
                f"the row template {template.name!r} has no column {name!r}",
                where="columns",
                hint=f"{nearest(name, template.columns)} Written as template column: source column.",
            )


def to_conversation(template: RowTemplate, values: Mapping[str, JsonValue], columns: Mapping[str, str]) -> Conversation:
    """Make the conversation of one row; `columns` says which source column stands for one of the template's.

    Raises:
        RowUnusable: no conversation can be made of this row.
        DataError: `columns` names a column that the template does not have.
    """
    check_columns(template, columns)
    read = {name: _read_column(column, columns.get(name, name), values) for name, column in template.columns.items()}
    if isinstance(template, MessagesTemplate):
        conversation = Conversation(messages=_listed_messages(template, read))
    else:
        conversation = Conversation(messages=_rendered_messages(template, read), layout=template.kind)
    check_turns(conversation.messages, conversation.layout)
    return conversation


def _read_column(column: Column, source: str, values: Mapping[str, JsonValue]) -> JsonValue:
    """Return the column's text (or list), "" where an optional one is absent or null."""
    value = values.get(source)
    if value is None:
        if not column.required:
            return ""
        if source in values:
            raise RowUnusable("null_value", f"the column {source!r} is null")
        names = [name[:60] for name in sorted(values)]
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
        near = get_close_matches(source, names, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise RowUnusable("missing_column", f"no column {source!r}; there are: {shown or 'none'}{advice}")
    if column.type == "text_or_integer" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, list if column.type == "list" else str):
        raise RowUnusable("wrong_type", f"the column {source!r} holds {type(value).__name__}, expected {column.type}")
    return value


def _rendered_messages(template: TurnsTemplate, read: Mapping[str, JsonValue]) -> tuple[Message, ...]:
    return tuple(
        Message(role=turn.role, content=render(turn.content, read))
        for turn in template.turns
        if turn.when is None or read[turn.when]
    )


def _listed_messages(template: MessagesTemplate, read: Mapping[str, JsonValue]) -> tuple[Message, ...]:
    turns = read[template.list_column]
    assert isinstance(turns, list)
    messages = tuple(_listed_message(template, number, turn) for number, turn in enumerate(turns, start=1))
    system = read[template.system_column] if template.system_column is not None else ""
    return (Message(role="system", content=str(system)), *messages) if system else messages


def _listed_message(template: MessagesTemplate, number: int, turn: JsonValue) -> Message:
    if not isinstance(turn, dict):
        raise RowUnusable("turn_not_an_object", f"turn {number} is {type(turn).__name__}")
    for key in (template.role_key, template.content_key):
        if key not in turn:
            raise RowUnusable("turn_incomplete", f"turn {number} has no {key!r}")
    refused = sorted(key for key in template.refused_keys if turn.get(key) is not None)
    if refused:
        raise RowUnusable("unsupported_key", f"turn {number} has {refused[0]!r}, which is not rendered")
    role, content = turn[template.role_key], turn[template.content_key]
    if not isinstance(role, str) or role not in template.roles:
        accepted = ", ".join(sorted(template.roles))
        raise RowUnusable("unknown_role", f"turn {number}: {template.role_key!r} is not one of {accepted}")
    if not isinstance(content, str):
        raise RowUnusable("content_not_text", f"turn {number} holds {type(content).__name__}")
    if len(content) > LONGEST_OUTPUT:
        raise RowUnusable("too_large", f"turn {number} has more than {LONGEST_OUTPUT} characters")
    return Message(role=template.roles[role], content=content)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _bundled() -> Path:
    return Path(str(resources.files("finetune.data_templates")))
