"""What a chat template may say and reach: Jinja in a sandbox, with counting in every operation.

What it is given is that of `apply_chat_template` (https://huggingface.co/docs/transformers/en/chat_templating_writing);
`{% generation %}` is read and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from evaluation.template_meter import Meter, TemplateExceedsError
from evaluation.template_operations import apply_operator, check_method, filters_for
from evaluation.template_syntax import bound

TEMPLATE_DATE = "26 Jul 2024"
"""LLaMA 3 templates print today's date into the system turn; a run must not depend on the day it is made.

This is the date that the templates themselves fall back to:
https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/tokenizer_config.json
"""
DAY = datetime.strptime(TEMPLATE_DATE, "%d %b %Y")
LONGEST_TEMPLATE = 10**5
"""Characters of a template."""
SHOWN_CHARACTERS = 200
"""Of a template's own words in a message."""

_DATE_FORMAT = re.compile(r"(?:[^%]|%[-#]?[A-Za-z%]){0,100}", re.ASCII)
_JINJA_OWN = ("_loop_vars", "_block_vars")  # what compiled templates pass along with every call


class Refusal(TemplateError):
    """The template's own `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; what is trained on is found without it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("unmarked"), [], [], body).set_lineno(line)

    def unmarked(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """Refuses names that begin with an underscore, and does not show what it holds, which may be itself."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        for name in (values := dict(*rest, **named)):
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        raise SecurityError("a namespace cannot be written")


class _Mapping:
    """`dict` without the rest of Python's class."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)


class _Format:
    """`'…'.format`, with fields that are short and reach no further than the sandbox lets them."""

    def __init__(self, environment: ChatEnvironment, text: str) -> None:
        self._environment = environment
        self._text = text

    def __call__(self, *args: Any, **named: Any) -> str:
        return self._environment.meter.made(_Formatter(self._environment).vformat(self._text, args, named))


class _Formatter(Formatter):
    def __init__(self, environment: ChatEnvironment) -> None:
        self._environment = environment

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        if not re.fullmatch(r"\w*", field_name):
            raise SecurityError("a field of `format` may only be a name or a number")
        return self.get_value(int(field_name) if field_name.isdecimal() else field_name, args, kwargs), field_name

    def format_field(self, value: Any, format_spec: str) -> Any:
        if any(len(digits) > 3 for digits in re.findall(r"\d+", format_spec)):
            raise TemplateExceedsError("it fills in text with a width above 999")
        self._environment.meter.written(value)
        return self._environment.meter.made(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion not in (None, "s"):
            raise SecurityError("a field of `format` may only be converted with !s")
        return self._environment.meter.written(value) if conversion else value


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no {name[:SHOWN_CHARACTERS]!r}")


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _strftime_now(form: str) -> str:
    if not _DATE_FORMAT.fullmatch(form):
        raise TemplateExceedsError("it writes the date in a form that is not accepted")
    return DAY.strftime(form)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates and counts what they do; not for several threads at once."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        """Begin with nothing spent."""
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.meter = Meter()
        self.filters = filters_for(self.meter)
        self.globals = {
            "range": safe_range,
            "dict": _Mapping(),
            "namespace": _Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = tuple(self.globals.values())

    def compiled(self, text: str) -> Template:
        """Compile a template with counting in it."""
        if len(text) > LONGEST_TEMPLATE:
            raise TemplateExceedsError(f"it is longer than {LONGEST_TEMPLATE} characters")
        code = self.compile(bound(self.parse(text)))
        return Template.from_code(self, code, self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 (Jinja's signature)
        """Apply an operator, within the limits."""
        return apply_operator(self.meter, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse an attribute that is hidden from templates."""
        raise SecurityError(f"it reaches for {attribute[:SHOWN_CHARACTERS]!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Put a bounded `format` in the place of a text's own; None for all else."""
        if isinstance(value, (MethodType, BuiltinMethodType)) and value.__name__ in ("format", "format_map"):
            if value.__name__ == "format" and type(value.__self__) is str:
                return _Format(self, value.__self__)
            raise SecurityError("it reaches for `format` of something else than a text")
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call a macro, a function of chat templates, or a method of a text, list or mapping; nothing else."""
        self.meter.tick()
        owner = obj.__self__ if isinstance(obj, (MethodType, BuiltinMethodType)) else None
        if isinstance(obj, (Macro, LoopContext, Joiner, _Format)) or any(obj is one for one in self._functions):
            return self.meter.made(super().call(context, obj, *args, **named))
        if isinstance(owner, (LoopContext, Cycler, _Generation)):
            return self.meter.made(super().call(context, obj, *args, **named))
        if owner is not None:
            given = {name: value for name, value in named.items() if name not in _JINJA_OWN}
            checked = check_method(self.meter, owner, obj.__name__, [*args, *given.values()])
            return self.meter.made(obj(*checked[: len(args)], **given))
        if isinstance(obj, Undefined):
            return obj()
        raise SecurityError(f"it calls a {type(obj).__name__}, which is not accepted")
