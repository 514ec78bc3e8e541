"""The little of Go's template language that a Modelfile is written in here: parsed and filled in, to check it.

Text, `{{ if }}`, `{{ else if }}`, `{{ else }}`, `{{ range $i, $m := .Messages }}`, `{{ $x := … }}`, fields, variables,
numbers, quoted text, and the functions eq, not, len and slice: https://pkg.go.dev/text/template. Anything else is a
fault of the program that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Value = str | int | bool | Sequence[Mapping[str, str]] | Mapping[str, str]
"""What an expression can be here: text, a number, a truth, the messages, or one of them."""

_PIECE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\])*"|\(|\)|[^\s()]+)')
_RANGE = re.compile(r"range \$(\w+), \$(\w+) := (.+)", re.DOTALL)
_SET = re.compile(r"\$(\w+) := (.+)", re.DOTALL)

Expression = str | tuple["Expression", ...]
"""A word, or a function with its arguments."""


@dataclass(frozen=True)
class Text:
    """Text that stands as it is."""

    text: str


@dataclass(frozen=True)
class Shown:
    """`{{ … }}`: the value of an expression."""

    expression: Expression


@dataclass(frozen=True)
class Named:
    """`{{ $name := … }}`."""

    name: str
    expression: Expression


@dataclass(frozen=True)
class Choice:
    """`{{ if }}`, its alternatives, and what holds otherwise (a condition that is always true)."""

    branches: tuple[tuple[Expression, tuple[Node, ...]], ...]


@dataclass(frozen=True)
class Loop:
    """`{{ range $index, $item := … }}`."""

    index: str
    item: str
    over: Expression
    body: tuple[Node, ...]


Node = Text | Shown | Named | Choice | Loop


def quote_text(text: str) -> str:
    """Spell text such that a template shows it as it is, whatever follows."""
    spelled = text.replace("{{", '{{ "{{" }}')
    return spelled[:-1] + '{{ "{" }}' if spelled.endswith("{") else spelled


def render_go(template: str, system: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Fill in a template as Ollama does, which gives it `.System` and `.Messages`.

    https://github.com/ollama/ollama/blob/0097ef5ff1f346862f5bd1123f16fd3c5a71b893/template/template.go, Execute.
    """
    nodes, rest = _parse(list(_pieces(template)))
    assert not rest, f"unexpected {rest[0]}"
    return "".join(_filled(nodes, {".System": system, ".Messages": messages}, {}))


def _pieces(template: str) -> Iterator[tuple[bool, str]]:
    """Yield (is it an action, its text)."""
    last = 0
    for found in _PIECE.finditer(template):
        yield False, template[last : found.start()]
        yield True, found.group(1).strip()
        last = found.end()
    yield False, template[last:]


def _parse(pieces: list[tuple[bool, str]]) -> tuple[tuple[Node, ...], list[tuple[bool, str]]]:
    """Parse up to an `else` or `end` that belongs to whoever asked, and return the rest from there on."""
    nodes: list[Node] = []
    while pieces:
        (is_action, text), rest = pieces[0], pieces[1:]
        if is_action and (text == "end" or text.startswith("else")):
            break
        if not is_action:
            nodes.append(Text(text))
        elif text.startswith("if "):
            choice, rest = _parse_choice(text.removeprefix("if "), rest)
            nodes.append(choice)
        elif loop := _RANGE.fullmatch(text):
            body, rest = _parse(rest)
            assert rest[:1] == [(True, "end")], "a loop without end"
            nodes.append(Loop(f"${loop[1]}", f"${loop[2]}", _expression(loop[3]), body))
            rest = rest[1:]
        elif named := _SET.fullmatch(text):
            nodes.append(Named(f"${named[1]}", _expression(named[2])))
        else:
            nodes.append(Shown(_expression(text)))
        pieces = rest
    return tuple(nodes), pieces


def _parse_choice(condition: str, pieces: list[tuple[bool, str]]) -> tuple[Choice, list[tuple[bool, str]]]:
    branches: list[tuple[Expression, tuple[Node, ...]]] = []
    while True:
        body, rest = _parse(pieces)
        assert rest, "a condition without end"
        branches.append((_expression(condition), body))
        text, pieces = rest[0][1], rest[1:]
        if text == "end":
            return Choice(tuple(branches)), pieces
        condition = text.removeprefix("else").strip().removeprefix("if ").strip() or '"otherwise"'


def _expression(text: str) -> Expression:
    words = _WORD.findall(text)
    expression, rest = _call(words)
    assert not rest, f"unexpected {rest[0]!r} in {text!r}"
    return expression


def _call(words: list[str]) -> tuple[Expression, list[str]]:
    parts: list[Expression] = []
    while words and words[0] != ")":
        if words[0] == "(":
            inner, rest = _call(words[1:])
            assert rest[:1] == [")"], "a bracket is open"
            parts.append(inner)
            words = rest[1:]
        else:
            parts.append(words[0])
            words = words[1:]
    return (parts[0] if len(parts) == 1 else tuple(parts)), words


def _filled(nodes: Sequence[Node], dot: Mapping[str, Value], names: Mapping[str, Value]) -> Iterator[str]:
    known = dict(names)
    for node in nodes:
        match node:
            case Text(text):
                yield text
            case Shown(expression):
                yield str(_value(expression, dot, known))
            case Named(name, expression):
                known[name] = _value(expression, dot, known)
            case Choice(branches):
                chosen = next((body for condition, body in branches if _value(condition, dot, known)), ())
                yield from _filled(chosen, dot, known)
            case Loop(index, item, over, body):
                messages = _value(over, dot, known)
                assert not isinstance(messages, str | int | Mapping), f"{over} is no list"
                for number, message in enumerate(messages):
                    yield from _filled(body, dot, known | {index: number, item: message})


def _value(expression: Expression, dot: Mapping[str, Value], names: Mapping[str, Value]) -> Value:
    if isinstance(expression, tuple):
        return _result(expression[0], [_value(argument, dot, names) for argument in expression[1:]])
    if expression.startswith('"'):
        return expression[1:-1]
    if expression.isdecimal():
        return int(expression)
    if expression.startswith("$."):
        return dot[expression[1:]]
    name, _, field = expression.partition(".")
    if not name:
        return dot[expression]
    if not field:
        return names[name]
    message = names[name]
    assert isinstance(message, Mapping), f"{expression} is no field"
    return message[field.lower()]


def _result(function: Expression, arguments: list[Value]) -> Value:
    match function, arguments:
        case "eq", [first, second]:
            return first == second
        case "not", [first]:
            return not first
        case "len", [str() | Sequence() as first]:
            return len(first)
        case "slice", [Sequence() as first, int(start)]:
            return first[start:]
    raise AssertionError(f"{function} of {arguments} is not known here")
