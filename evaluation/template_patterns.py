"""Renders chats of one shape once, where the template never looks into what they say.

A template is run with stand-ins in the place of the messages' texts. They can be trimmed, joined and written, and
whatever else is asked of them ends the attempt: a comparison, a length, a letter. What such a run writes between the
texts is what every conversation with the same roles gets, so that the rest of them need no template. Who looks inside
is rendered a conversation at a time, as is whatever is long, calls tools, or stands in a macro or a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.runtime import Context
from pydantic import JsonValue

from evaluation.template_environment import ChatEnvironment
from evaluation.template_meter import LONGEST_TEXT, TemplateExceedsError

LONGEST_FILLED = 10**5
"""Characters of a conversation's texts; with more, the limits of a rendering are those of the conversation itself."""
MOST_PATTERNS = 1000
"""Shapes that are remembered for a template."""
MOST_MESSAGES = 100
"""Of a conversation whose shape is remembered."""
MOST_PIECES = 20_000
"""Made in one run with stand-ins."""


class LooksInside(Exception):
    """A template asks something of a text."""


STOPPED = (
    *(TemplateExceedsError, TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError, LooksInside),
)
"""What a template raises that asks of a stand-in what only a text can answer, or takes too much."""

_JOINING = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)
"""What makes one text of several outputs, which a template could look into."""
_TRUE_OF_A_TEXT = frozenset({"defined", "iterable", "sequence", "string"})
_FALSE_OF_A_TEXT = frozenset({"boolean", "false", "float", "integer", "mapping", "none", "number", "true", "undefined"})
"""Tests that say the same of every text."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for the text of one message."""

    message: int
    is_trimmed: bool


Piece = str | Slot


@dataclass(frozen=True)
class Pattern:
    """What a template writes for every conversation of a shape."""

    pieces: tuple[Piece, ...]

    def filled(self, texts: Sequence[str]) -> str | None:
        """Put in the messages' texts; None where that is longer than a rendering may be."""
        parts = [piece if isinstance(piece, str) else texts[piece.message] for piece in self.pieces]
        for place in self._trimmed:
            parts[place] = parts[place].strip()
        return "".join(parts) if sum(map(len, parts)) <= LONGEST_TEXT else None

    @functools.cached_property
    def _trimmed(self) -> tuple[int, ...]:
        return tuple(i for i, piece in enumerate(self.pieces) if isinstance(piece, Slot) and piece.is_trimmed)


class Patterns:
    """The patterns of one template, by the roles of a conversation; not for several threads at once."""

    def __init__(self, text: str, variables: Callable[[Sequence[dict[str, Any]], bool], dict[str, Any]]) -> None:
        """Take the template's text, and what gives it its variables."""
        self._text = text
        self._variables = variables
        self._known: dict[tuple[object, ...], Pattern | None] = {}

    def text_or_learn(self, messages: Sequence[dict[str, JsonValue]], ask: bool, rendered: Callable[[], str]) -> str:
        """Return the text of a chat without tools, by a pattern or else as `rendered` does; the first teaches.

        The first of a shape is compared with what its pattern says, which is forgotten where it says otherwise.
        """
        texts = [message["content"] for message in messages]
        if not _are_short_texts(texts) or any(len(message) != 2 for message in messages):
            return rendered()
        shape = (ask, *(message["role"] for message in messages))
        if shape in self._known:
            pattern = self._known[shape]
            return (pattern.filled(texts) if pattern else None) or rendered()
        text = rendered()
        if len(self._known) < MOST_PATTERNS and len(messages) <= MOST_MESSAGES:
            pattern = self._learned(messages, ask)
            self._known[shape] = pattern if pattern and pattern.filled(texts) == text else None
        return text

    def _learned(self, messages: Sequence[dict[str, JsonValue]], ask: bool) -> Pattern | None:
        template = self._template
        if template is None:
            return None
        given = [{"role": m["role"], "content": Unread((Slot(i, False),))} for i, m in enumerate(messages)]
        try:
            return template.pattern(self._variables(given, ask))
        except STOPPED:
            return None

    @functools.cached_property
    def _template(self) -> _UnreadTemplate | None:
        environment = _UnreadEnvironment()
        for node in environment.parse(self._text).find_all((*_JOINING, nodes.For)):
            if not isinstance(node, nodes.For) or node.recursive:
                return None
        return _UnreadTemplate(environment, self._text)


def _are_short_texts(texts: Sequence[object]) -> TypeGuard[Sequence[str]]:
    characters = 0
    for text in texts:
        if type(text) is not str:
            return False
        characters += len(text)
    return characters <= LONGEST_FILLED


def _refuse(*_: object) -> NoReturn:
    raise LooksInside


class Unread:
    """A text that is not known, of pieces that are; templates reach none of its attributes."""

    __slots__ = ("_pieces",)
    __bool__ = __len__ = __iter__ = __reversed__ = __contains__ = __getitem__ = __getattr__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
    __str__ = __repr__ = __format__ = __int__ = __float__ = __index__ = __call__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse

    def __init__(self, pieces: tuple[Piece, ...]) -> None:
        """Take the pieces in order."""
        self._pieces = pieces


class _Written(str):
    """What a template put out where it wrote a stand-in: never looked into, since nothing joins outputs."""

    __slots__ = ("pieces",)
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return self  # Jinja writes what `str` makes of a value


class _UnreadTemplate:
    """A template that is run with stand-ins."""

    def __init__(self, environment: _UnreadEnvironment, text: str) -> None:
        self._environment = environment
        self._template = environment.compiled(text)

    def pattern(self, variables: dict[str, Any]) -> Pattern:
        self._environment.start()
        pieces: list[Piece] = []
        for part in self._template.root_render_func(self._template.new_context(variables)):
            pieces += part.pieces if isinstance(part, _Written) else (part,)
            self._environment.count(1)
        merged: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, str) and merged and isinstance(before := merged[-1], str):
                merged[-1] = before + piece
            else:
                merged.append(piece)
        return Pattern(tuple(merged))


class _UnreadEnvironment(ChatEnvironment):
    """Knows what to do with stand-ins.

    Filters and tests do not see them: some tell a text by its class, or ask only when what they made is read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = MOST_PIECES
        own: dict[str, Callable[..., Any]] = {
            " written": self._written,
            " joined": self._joined,
            "string": lambda value: value,
            "trim": _trimmed,
        }
        known = {name: _either(function, self.filters[name]) for name, function in own.items()}
        counting = {name: one for name, one in self.filters.items() if name.startswith(" ")}
        asking = {name: self.filters[name] for name in ("default", "d")}  # whether there is a value, which there is
        self.filters = {name: _guarded(one) for name, one in self.filters.items()} | counting | asking | known
        tests = cast(dict[str, Callable[..., Any]], self.tests)  # Jinja declares no more than `function`
        self.tests = {name: _of_a_text(name, one) for name, one in tests.items()}

    def start(self) -> None:
        """Begin a run with nothing spent."""
        self.meter.start()
        self._left = MOST_PIECES

    def count(self, pieces: int) -> None:
        """Take note of pieces that were made.

        Raises:
            TemplateExceedsError: those of this run are too many.
        """
        self._left -= pieces
        if self._left < 0:
            raise TemplateExceedsError(f"it writes more than {MOST_PIECES} pieces")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Join two texts of which one is a stand-in; all else is as ever."""
        if operator == "+" and _is_among(left, right):
            return self._unread((*_pieces_of(left), *_pieces_of(right)))
        return super().call_binop(context, operator, left, right)

    def _joined(self, *values: object) -> Unread:
        texts = (value if isinstance(value, Unread) else str(self.meter.written(value)) for value in values)
        return self._unread(tuple(piece for text in texts for piece in _pieces_of(text)))

    def _unread(self, pieces: tuple[Piece, ...]) -> Unread:
        self.count(len(pieces))
        return Unread(pieces)

    def _written(self, value: Unread) -> str:
        written = _Written("\0")
        written.pieces = _pieces_of(value)
        self.count(len(written.pieces))
        return written


def _is_among(*values: object) -> bool:
    return any(isinstance(value, Unread) for value in values)


def _pieces_of(text: object) -> tuple[Piece, ...]:
    if isinstance(text, Unread):
        return text._pieces
    if type(text) is str:  # text marked as safe would escape what it is joined with
        return (text,)
    raise LooksInside


def _trimmed(value: object, chars: object = None) -> Unread:
    match _pieces_of(value):
        case [Slot(message=message)] if chars is None:
            return Unread((Slot(message, is_trimmed=True),))
    raise LooksInside


def _either(own: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that leaves stand-ins to `own`; those that are counted know their context."""
    knows_context = hasattr(usual, "jinja_pass_arg")

    @pass_context
    def either(context: Context, *values: Any, **options: Any) -> Any:
        if _is_among(*values, *options.values()):
            return own(*values, **options)
        return usual(context, *values, **options) if knows_context else usual(*values, **options)

    return either


def _guarded(usual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def guarded(*values: Any, **options: Any) -> Any:
        if _is_among(*values, *options.values()):
            raise LooksInside
        return usual(*values, **options)

    return guarded


def _of_a_text(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def test(*values: Any, **options: Any) -> Any:
        if not _is_among(*values, *options.values()):
            return usual(*values, **options)
        if len(values) == 1 and name in _TRUE_OF_A_TEXT | _FALSE_OF_A_TEXT:
            return name in _TRUE_OF_A_TEXT
        raise LooksInside

    return test
