"""A small, total part of Jinja for row templates: text, columns, filters, `if`, and one `for` over a column.

Templates come with data, so they are not trusted: no call, no arithmetic, no attribute, no nested loop, and
only filters whose result is about as long as what they are given. What is accepted therefore ends, and soon.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from jinja2 import StrictUndefined, TemplateError, meta, nodes
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue

from finetune.turns import RowUnusable

LONGEST_OUTPUT = 10**7
"""Characters of one rendered message."""

_FILTERS = ("trim", "lower", "upper", "capitalize", "join", "tojson", "default", "length", "first", "last")
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
    except TemplateError as error:
        raise ValueError(f"not Jinja: {error}") from error
    for node in tree.find_all(nodes.Node):
        _check_node(node)
    return meta.find_undeclared_variables(tree)


def render(source: str, columns: Mapping[str, JsonValue]) -> str:
    """Render a template's text with the row's columns.

    Raises:
        RowUnusable: `not_rendered`, or `too_large` beyond LONGEST_OUTPUT characters.
    """
    parts: list[str] = []
    length = 0
    try:
        for part in _compile(source).generate(columns):
            parts.append(part)
            length += len(part)
            if length > LONGEST_OUTPUT:
                raise RowUnusable("too_large", f"a message of more than {LONGEST_OUTPUT} characters")
    except (TemplateError, TypeError, ValueError) as error:
        raise RowUnusable("not_rendered", f"the template fails on this row: {type(error).__name__}") from error
    return "".join(parts)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    # What stands in a column is text for a model: nothing is escaped, and no line break is eaten.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals.clear()
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    return environment


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> Template:
    return _environment().from_string(source)


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _ACCEPTED):
        raise ValueError(f"{type(node).__name__} is not accepted in a row template (line {node.lineno})")
    if isinstance(node, nodes.For) and (
        node.recursive or not isinstance(node.iter, nodes.Name) or len(list(node.find_all(nodes.For))) > 0
    ):
        raise ValueError(f"only one loop, over a column, is accepted (line {node.lineno})")
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        raise ValueError(f"the filter {node.name!r} is not accepted; accepted: {', '.join(_FILTERS)}")
