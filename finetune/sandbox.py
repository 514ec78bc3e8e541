"""A small, total part of Jinja for row templates: text, columns, filters, `if`, and one `for` over a column.

Templates come with data, so they are not trusted: no call, no arithmetic, no attribute, no nested loop, and
only filters whose result is about as long as what they are given. What is accepted therefore ends, and soon.
What is put out is text or a number: a list or a null would stand there as Python writes it, so it needs a filter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jinja2 import StrictUndefined, TemplateError, Undefined, meta, nodes
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue

from finetune.json_text import json_text
from finetune.turns import RowUnusable

LONGEST_OUTPUT = 10**7
"""Characters of one rendered message."""
MOST_LOOP_WORK = 10**8
"""Turns of a loop times characters of the columns: each turn may look through all of them."""

_FILTERS = ("trim", "lower", "upper", "capitalize", "join", "tojson", "default", "length", "first", "last")
# Each may double what it is given, so none is given what another has made.
_GROWING = ("join", "tojson")
_ACCEPTED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
)


def names_in(source: str) -> set[str]:
    """Parse a template's text and return the columns it speaks of.

    Raises:
        ValueError: it is not Jinja, or uses something that row templates may not.
    """
    try:
        tree = _environment().parse(source)
        for node in tree.find_all(nodes.Node):
            _check_node(node)
        return meta.find_undeclared_variables(tree)
    except TemplateError as error:
        raise ValueError(f"not Jinja: {error}") from error
    except RecursionError as error:
        raise ValueError("not Jinja that is accepted: nested too deeply") from error


def render(source: str, columns: Mapping[str, JsonValue]) -> str:
    """Render a template's text with the row's columns.

    Raises:
        RowUnusable: `not_rendered`, or `too_large` beyond LONGEST_OUTPUT characters.
    """
    compiled = _compile(source)
    alone = columns.get(compiled.alone)
    if isinstance(alone, str) and len(alone) <= LONGEST_OUTPUT:
        return alone
    parts: list[str] = []
    length = 0
    try:
        _check_work(compiled, columns)
        for part in compiled.template.generate(columns):
            parts.append(part)
            length += len(part)
            if length > LONGEST_OUTPUT:
                raise RowUnusable("too_large", f"a message of more than {LONGEST_OUTPUT} characters")
    except (TemplateError, TypeError, ValueError) as error:
        raise RowUnusable("not_rendered", f"the template fails on this row: {type(error).__name__}") from error
    return "".join(parts)


@dataclass(frozen=True)
class _Compiled:
    template: Template
    looped: tuple[str, ...]
    """Columns that are looped over."""
    alone: str
    """The column that is the whole text, "" where there is more to it: most turns need no template engine."""


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    # What stands in a column is text for a model: nothing is escaped, and no line break is eaten.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_checked_text
    )
    environment.globals.clear()
    # The library's own tojson is for web pages, and its join can reach into objects.
    filters = environment.filters | {"tojson": json_text, "join": _joined}
    environment.filters = {name: filters[name] for name in _FILTERS}
    return environment


def _checked_text(value: object) -> object:
    if type(value) in (str, int, float) or isinstance(value, Undefined):
        return value  # an undefined one fails when it is written
    raise RowUnusable("not_rendered", f"{type(value).__name__} where text is expected; tojson would write it")


def _joined(values: Iterable[object], separator: str = "") -> str:
    return separator.join(str(_checked_text(value)) for value in values)


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> _Compiled:
    tree = _environment().parse(source)
    looped = tuple(loop.iter.name for loop in tree.find_all(nodes.For) if isinstance(loop.iter, nodes.Name))
    match tree.body:
        case [nodes.Output(nodes=[nodes.Name(name=name)])]:
            alone = str(name)
        case _:
            alone = ""
    return _Compiled(_environment().from_string(source), looped, alone)


def _check_work(compiled: _Compiled, columns: Mapping[str, JsonValue]) -> None:
    """Bound how long a loop takes; without one, rendering takes as long as the columns are."""
    if not compiled.looped:
        return
    sizes = {name: len(value if isinstance(value, str) else json_text(value)) for name, value in columns.items()}
    lists = [columns[name] for name in compiled.looped if name in columns]
    turns = sum(len(value) for value in lists if isinstance(value, str | list | dict))
    if turns * sum(sizes.values()) > MOST_LOOP_WORK:
        raise RowUnusable("too_large", f"a loop of {turns} turns over columns of {sum(sizes.values())} characters")


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _ACCEPTED):
        raise ValueError(f"{type(node).__name__} is not accepted in a row template (line {node.lineno})")
    if isinstance(node, nodes.For) and (
        node.recursive or not isinstance(node.iter, nodes.Name) or len(list(node.find_all(nodes.For))) > 0
    ):
        raise ValueError(f"only one loop, over a column, is accepted (line {node.lineno})")
    if isinstance(node, nodes.Filter):
        _check_filter(node)


def _check_filter(node: nodes.Filter) -> None:
    if node.name not in _FILTERS:
        raise ValueError(f"the filter {node.name!r} is not accepted; accepted: {', '.join(_FILTERS)}")
    if node.name not in _GROWING:
        return
    if any(inner.name in _GROWING for inner in node.find_all(nodes.Filter)):
        raise ValueError(f"{node.name} of what {' or '.join(_GROWING)} made is not accepted (line {node.lineno})")
    if node.name == "tojson" and (node.args or node.kwargs):
        raise ValueError(f"only tojson without brackets is accepted (line {node.lineno})")
    if node.kwargs or not all(isinstance(argument, nodes.Const) for argument in node.args):
        raise ValueError(f"only join with a text in quotes is accepted (line {node.lineno})")
