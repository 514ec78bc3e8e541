"""Reads the YAML that a recipe may use: plain data, every key once, nothing that refers or runs.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) without its
alternative spellings: `true` and `false` alone are booleans, so that `yes`, `on` and `010` cannot change
meaning unseen. Aliases, anchors, merge keys and tags are refused: a recipe is read alone, and a small file
cannot unfold into a large one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import yaml

from finetune.errors import Problem, RecipeError
from finetune.recipe_document import Finding, KeyPath, Node, Scalar

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_DIGITS = 30
MAX_KEY = 200
"""Characters."""
MAX_NODES = 2_000
"""Keys and values; a recipe that is shipped has about 150."""

_AS_IT_STANDS = "write the values out: a recipe is read as it stands"
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_document(text: str, file: str) -> tuple[Node, list[Finding]]:
    """Read a recipe's text into nodes; what is refused but can be read past comes back as findings.

    Raises:
        RecipeError: the text is not one YAML mapping, is nested too deeply, or is too large.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        hint = "a recipe is a page of text; rows go in files of their own"
        raise RecipeError([Problem(file, "larger than 1 MB", hint)])
    root, findings = _read(text, file, at_line=True)
    if root is None:
        hint = "see `finetune list` for recipes to start from"
        raise RecipeError([Problem(f"{file}:1", "the recipe is empty", hint)])
    if not isinstance(root.content, dict):
        raise RecipeError([Problem(f"{file}:{root.line}", "a recipe is a mapping of keys", "begin with `version: 1`")])
    return root, findings


def parse_override_value(text: str, place: str) -> tuple[Node, list[Finding]]:
    """Read the right-hand side of `--set key=value`, a scalar or a flow value; nothing at all is null.

    Raises:
        RecipeError: the value is not YAML; the place names the override.
    """
    root, findings = _read(text, place, at_line=False)
    return _marked(root, place) if root else Node(None, 0, place), findings


def parse_plain_scalar(text: str) -> Scalar:
    """Value of an unquoted scalar.

    Raises:
        ValueError: a number that is not finite or is absurdly long.
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)
    if _FLOAT.fullmatch(text):
        if not math.isfinite(float(text)):
            raise ValueError("a number too large to be stored")
        return float(text)
    return text


def _read(text: str, file: str, *, at_line: bool) -> tuple[Node | None, list[Finding]]:
    def place(line: int) -> str:
        return f"{file}:{line}" if at_line else file

    builder = _Builder(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        root = builder.read_stream()
    except _Unreadable as stop:
        raise RecipeError([Problem(place(stop.line), stop.what, stop.hint)]) from None
    except yaml.MarkedYAMLError as error:
        line, what, hint = _syntax(error)
        raise RecipeError([Problem(place(line), what, hint)]) from None
    except yaml.reader.ReaderError as error:
        line = text[: int(error.position)].count("\n") + 1
        raise RecipeError([Problem(place(line), "a character that YAML does not allow", "delete it")]) from None
    return root, builder.findings


def _syntax(error: yaml.MarkedYAMLError) -> tuple[int, str, str]:
    assert error.problem_mark is not None
    line, problem = error.problem_mark.line + 1, str(error.problem)
    if "'\\t'" in problem:
        return line, "a tab where YAML wants spaces", "indent with two spaces"
    if "mapping values are not allowed" in problem:
        what = "not YAML: a second `:` in this line, or wrong indentation"
        return line, what, "put text that holds `: ` in quotes"
    context = f" {error.context}" if error.context else ""
    return line, f"not YAML: {problem}{context}", "check quotes, brackets and indentation here and in the line above"


def _marked(node: Node, set_by: str) -> Node:
    if isinstance(node.content, dict):
        return Node({key: _marked(child, set_by) for key, child in node.content.items()}, 0, set_by)
    if isinstance(node.content, list):
        return Node([_marked(child, set_by) for child in node.content], 0, set_by)
    return Node(node.content, 0, set_by)


def _line_of(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


class _Unreadable(Exception):
    def __init__(self, line: int, what: str, hint: str) -> None:
        self.line, self.what, self.hint = line, what, hint


class _Builder:
    """Builds nodes from YAML events, so that nothing is constructed, resolved or unfolded by the library."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self.events = events
        self.findings: list[Finding] = []
        self.nodes = 0
        self.aliases: set[str | None] = set()

    def read_stream(self) -> Node | None:
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        root = self.build(next(self.events), ())
        next(self.events)
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            line = _line_of(after)
            raise _Unreadable(line, "a second document begins here", "one recipe to a file: delete the `---`")
        return root

    def build(self, event: yaml.Event, path: KeyPath, key_line: int | None = None) -> Node:
        line = key_line or _line_of(event)
        if len(path) > MAX_DEPTH:
            raise _Unreadable(line, f"nested more than {MAX_DEPTH} deep", "no key of a recipe lies that deep")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Unreadable(line, f"more than {MAX_NODES:,} values", "rows go in files of their own")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.aliases:
                self._refuse(path, line, f"the alias *{event.anchor}", _AS_IT_STANDS)
            self.aliases.add(event.anchor)
            return Node(None, line)
        self._refuse_properties(event, path, line)
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event, path, line), line)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self._items(path), line)
        return Node(self._entries(path), line)

    def _items(self, path: KeyPath) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.build(event, (*path, len(items))))
        return items

    def _entries(self, path: KeyPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line_of(event)
            key = self._key(event, path, line)
            if key in entries:
                first = entries[key].line
                what = f"written twice, on line {first} and on line {line}"
                self._refuse((*path, key), line, what, "keep one of them", refused=False)
            if key == "<<":
                self._refuse((*path, key), line, "a merge key", _AS_IT_STANDS)
            # Of two, the first is checked further.
            entries.setdefault(key, self.build(next(self.events), (*path, key), line))
        entries.pop("<<", None)
        return entries

    def _key(self, event: yaml.Event, path: KeyPath, line: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Unreadable(line, "a key that is not text", "put `{{…}}` in quotes; keys are single words")
        self._refuse_properties(event, path, line)
        if len(event.value) > MAX_KEY:
            raise _Unreadable(line, f"a key of more than {MAX_KEY} characters", "keys are single words")
        return self._text(event.value, path, line)

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath, line: int) -> Scalar:
        if event.style is not None:
            return self._text(event.value, path, line)
        if event.value == "" and path:
            hint = "give it a value or delete the line; `null` says that none is meant"
            self._refuse(path, line, "has no value", hint, refused=False)
        try:
            return parse_plain_scalar(event.value)  # the parser lets no control character stand unquoted
        except ValueError as error:
            self._refuse(path, line, str(error), "write an ordinary number", refused=False)
            return None

    def _text(self, text: str, path: KeyPath, line: int) -> str:
        if _CONTROL.search(text):
            self._refuse(path, line, "an invisible control character", "delete it", refused=False)
            return _CONTROL.sub("", text)
        return text

    def _refuse_properties(self, event: yaml.Event, path: KeyPath, line: int) -> None:
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self._refuse(path, line, f"the anchor &{event.anchor}", _AS_IT_STANDS)
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(path, line, f"the YAML tag {tag}", "delete it: a recipe holds plain values only")

    def _refuse(self, path: KeyPath, line: int, what: str, hint: str, *, refused: bool = True) -> None:
        what = f"{what} is not accepted" if refused else what
        self.findings.append(Finding(path, what, hint, line))
