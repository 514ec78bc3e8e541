"""Operators, methods and filters of chat templates, each refused before it makes more than a template may."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import filters, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from evaluation.template_meter import MOST_ITEMS, Meter, TemplateExceedsError, allow_bits, text_size

Filter = Callable[..., Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNCHANGED_FILTERS = _names(
    "abs capitalize count d default dictsort e escape first float int last length lower max min reverse safe sort "
    "truncate unique upper"
)
"""Jinja's own, whose results are about as large as what they are given."""

_TEXT_METHODS = _names(
    "capitalize casefold center count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric "
    "isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_LIST_METHODS = frozenset({"copy", "count", "index"})
_DICT_METHODS = frozenset({"copy", "get", "items", "keys", "values"})
_QUADRATIC = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
_PADDED = frozenset({"center", "ljust", "rjust", "zfill"})
_MOST_COMPARISONS = 10**8
_WIDEST = 1000  # of a number, an indent or a field
_ESCAPED = 6  # characters that one becomes at most where text marked as safe meets other text
_TALLER = 3  # characters that one becomes at most in upper case
_SPECIFIER = re.compile(r"%(\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.)", re.DOTALL)


def apply_operator(meter: Meter, sign: str, left: Any, right: Any) -> Any:
    """Apply `+`, `*`, `%` or `**` to two values.

    Raises:
        TemplateExceedsError: the result would be too large.
    """
    if sign == "+" and type(left) is str and type(right) is str:
        meter.allow(len(left) + len(right))  # by far the most frequent
        return meter.made(left + right)
    if isinstance(left, str) or isinstance(right, str):
        meter.allow(_text_of_operator(sign, left, right))
    elif sign == "*" and isinstance(left, (list, tuple)) and isinstance(right, int):
        _allow_items(len(left) * right)
    elif sign == "*" and isinstance(right, (list, tuple)) and isinstance(left, int):
        _allow_items(len(right) * left)
    elif sign == "**" and isinstance(left, int) and isinstance(right, int):
        allow_bits(left.bit_length() * right)
    return meter.made(_OPERATORS[sign](left, right))


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "%": operator.mod,
    "**": operator.pow,
}


def _text_of_operator(sign: str, left: Any, right: Any) -> int:
    escaped = _ESCAPED if isinstance(left, Markup) or isinstance(right, Markup) else 1
    if sign == "%" and isinstance(left, str):
        return escaped * _filled_size(left, right)
    if sign == "+" and isinstance(left, str) and isinstance(right, str):
        return escaped * (len(left) + len(right))
    if sign == "*":
        text, times = (left, right) if isinstance(left, str) else (right, left)
        return len(text) * times if isinstance(times, int) else 0
    return 0


def _filled_size(text: str, values: Any) -> int:
    """Return how long `text % values` gets at most."""
    size = len(text)
    keyed = plain = 0
    for key, width, precision, kind in _SPECIFIER.findall(text):
        wide = [int(number) for number in (width, precision) if number.isdecimal()]
        if "*" in (width, precision) or any(number > _WIDEST for number in wide) or kind in "ra":
            raise TemplateExceedsError(f"it fills in text with a width above {_WIDEST}, with `*`, `%r` or `%a`")
        size += sum(wide)
        keyed, plain = (keyed + 1, plain) if key else (keyed, plain + 1)
    if isinstance(values, Mapping):
        longest = max((text_size(value) for value in values.values()), default=0)
        return size + keyed * longest + plain * text_size(values)
    return size + sum(text_size(value) for value in (values if isinstance(values, tuple) else (values,)))


def check_method(meter: Meter, owner: Any, name: str, args: list[Any]) -> list[Any]:
    """Refuse a method of a text, list or mapping that templates may not call so; return its arguments.

    Raises:
        TemplateExceedsError: it is no method that templates may call, or it would make too much.
    """
    if isinstance(owner, str) and name in _TEXT_METHODS:
        return _check_text_method(meter, owner, name, args)
    if isinstance(owner, (list, tuple)) and name in _LIST_METHODS:
        return args
    if isinstance(owner, dict) and name in _DICT_METHODS:
        return args
    raise TemplateExceedsError(f"it calls {name!r} of a {type(owner).__name__}, which is not accepted")


def _check_text_method(meter: Meter, owner: str, name: str, args: list[Any]) -> list[Any]:
    size = _TALLER * len(owner)
    first: Any = args[0] if args else None
    if name in _QUADRATIC and isinstance(first, str) and len(owner) * len(first) > _MOST_COMPARISONS:
        raise TemplateExceedsError(f"it looks for a long text in a long text with {name!r}")
    if name in _PADDED and isinstance(first, int):
        size = max(size, first)
    elif name == "replace" and len(args) > 1 and isinstance(first, str) and isinstance(args[1], str):
        size = len(owner) + owner.count(first) * len(args[1])
    elif name == "join" and args:
        parts = list(meter.metered(first))
        size = sum(len(part) for part in parts if isinstance(part, str)) + len(owner) * len(parts)
        args = [parts, *args[1:]]
    elif name in ("split", "rsplit", "splitlines"):
        _allow_items(owner.count(first) if isinstance(first, str) and first else len(owner) // 2)
    if isinstance(owner, Markup):
        size *= _ESCAPED
    if size > len(owner) * _TALLER or name in ("join", "replace"):
        meter.allow(size)
    meter.tick(len(owner))
    return args


def _allow_items(count: int) -> None:
    if count > MOST_ITEMS:
        raise TemplateExceedsError(f"it makes a list of more than {MOST_ITEMS} items")


def filters_for(meter: Meter) -> dict[str, Filter]:
    """Return every filter that a template may use, and by names that no template can write, what is put into it."""
    counted: dict[str, Filter] = {
        " made": lambda _, value: meter.made(value),
        " passed": lambda _, value: meter.passed(value),
        " round": lambda _, characters: meter.passed(True, characters),
        " written": lambda _, value: meter.written(value),
        " joined": lambda _, *values: _joined(meter, values),
    }
    bounded: dict[str, Filter] = {
        "format": lambda _, value, *args: apply_operator(meter, "%", meter.written(value), args),
        "indent": lambda _, *args, **options: _indent(meter, *args, **options),
        "items": lambda _, value: meter.metered(filters.do_items(value)),
        "join": lambda context, value, d="", attribute=None: _join(context, meter, value, d, attribute),
        "list": lambda _, value: _list(meter, value),
        "replace": lambda _, *args: _replace(meter, *args),
        "round": lambda _, *args, **options: _round(*args, **options),
        "string": lambda _, value: value if isinstance(value, str) else meter.written(value),
        "tojson": lambda _, *args, **options: _tojson(meter, *args, **options),
        "trim": lambda _, value, chars=None: _trim(meter, value, chars),
    }
    lazy: dict[str, Filter] = {
        "map": filters.sync_do_map,
        "reject": filters.sync_do_reject,
        "rejectattr": filters.sync_do_rejectattr,
        "select": filters.sync_do_select,
        "selectattr": filters.sync_do_selectattr,
    }
    # Taking the context keeps Jinja from filling in constants while it compiles, when nothing is counted.
    made = {name: pass_context(function) for name, function in (counted | bounded).items()}
    native = {name: filters.FILTERS[name] for name in UNCHANGED_FILTERS}
    return native | made | {name: _metered_filter(meter, function) for name, function in lazy.items()}


def _metered_filter(meter: Meter, function: Filter) -> Filter:
    @pass_context
    def metered(context: Context, value: Any, *args: Any, **options: Any) -> Iterator[Any]:
        return meter.metered(function(context, meter.metered(value), *args, **options) if value else ())

    return metered


def _joined(meter: Meter, values: Iterable[Any]) -> str:
    texts = [meter.written(value) for value in values]
    meter.allow(sum(map(len, texts)))
    return meter.made("".join(texts))


def _join(context: Context, meter: Meter, value: Any, d: Any, attribute: Any) -> Any:
    items = list(meter.metered(value))
    size = sum(map(text_size, items)) + text_size(d) * len(items)
    meter.allow(size * (_ESCAPED if any(isinstance(item, Markup) for item in (d, *items)) else 1))
    return filters.sync_do_join(context.eval_ctx, items, d, attribute)


def _list(meter: Meter, value: Any) -> list[Any]:
    if isinstance(value, str):
        _allow_items(len(value))
    return list(meter.metered(value))


def _replace(meter: Meter, value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, before, after = (str(meter.written(one)) for one in (value, old, new))
    meter.allow(len(text) + text.count(before) * len(after))
    return text.replace(before, after, count)


def _trim(meter: Meter, value: Any, chars: Any) -> str:
    text = value if isinstance(value, str) else meter.written(value)
    _check_text_method(meter, text, "strip", [chars])
    return text.strip(chars)


def _indent(meter: Meter, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    text = text if isinstance(text, str) else meter.written(text)
    size = len(width) if isinstance(width, str) else width
    if size > _WIDEST:
        raise TemplateExceedsError(f"it indents by more than {_WIDEST} characters")
    lines = text.count("\n") + 1
    _allow_items(lines)
    meter.allow((len(text) + lines * size) * (_ESCAPED if isinstance(text, Markup) else 1))
    return filters.do_indent(text, width, first, blank)


def _round(value: Any, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _WIDEST // 10:
        raise TemplateExceedsError("it rounds to more digits than a number has")
    return filters.do_round(value, precision, method)


def _tojson(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does in chat templates: nothing is escaped for HTML."""
    text_size(value)  # refuses what is too large or refers to itself
    if (len(indent) if isinstance(indent, str) else indent or 0) > _WIDEST:
        raise TemplateExceedsError(f"it indents by more than {_WIDEST} characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    size = 0
    for part in encoder.iterencode(value):
        size += len(part)
        meter.allow(size)
        parts.append(part)
    return "".join(parts)
