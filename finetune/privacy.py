"""Looks through a conversation for personal data and secrets; counts the one, and replaces it where it is told to.

A value that is found in one place is replaced wherever it stands: in every message, and in the names, keys, texts and
whole numbers of tool calls and tools. The result is looked through again until nothing is found, so that replacing a
second time changes nothing. Secrets are never replaced: what is done about them is for the caller to say.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from evaluation.conversation import Conversation
from finetune.conversation_texts import texts_of, with_texts
from finetune.privacy_kinds import Found, find_by_form
from finetune.privacy_names import NAMED_KINDS, NameFinder, load_name_finder
from finetune.recipe_data import Privacy, PrivateKind
from finetune.secret_patterns import secrets_in

PLACEHOLDER = re.compile(r"\[(EMAIL|PHONE|IBAN|CARD|US_SSN|CN_ID|PERSON|ADDRESS)_([0-9]{1,6})\]")
"""What stands in place of a value."""

_WORDS: tuple[PrivateKind, ...] = ("email", *NAMED_KINDS)


@dataclass(frozen=True)
class Scanned:
    """A conversation that was looked through."""

    conversation: Conversation
    """With placeholders, where the recipe asks for them."""
    counts: Counter[str]
    """Kind of personal data → how often it stands in the conversation."""
    secrets: tuple[str, ...]
    """Kinds of the secrets in it, each once."""


class PrivacyScan:
    """Looks through conversations as a recipe's section `privacy` says; without the section, for secrets alone."""

    def __init__(self, privacy: Privacy | None, names: NameFinder | None = None) -> None:
        """Take the section, and an engine for names and addresses in place of Presidio.

        Raises:
            DataError: names or addresses are asked for, and neither an engine is given nor Presidio installed.
        """
        self._finder = _Finder.of(privacy, names) if privacy else None
        self._replaces = privacy is not None and privacy.action == "replace"

    def scan(self, conversation: Conversation) -> Scanned:
        """Look through a conversation; what comes back has placeholders, where `action` is `replace`.

        Raises:
            RowUnusable: `nested_too_deep`, or `keys_alike` where two keys of a tool call became the same.
        """
        secrets = _secrets(conversation)
        if self._finder is None:
            return Scanned(conversation, Counter(), secrets)
        replaced, counts = _replaced(conversation, self._finder)
        return Scanned(replaced if self._replaces else conversation, counts, secrets)


@dataclass(frozen=True)
class _Finder:
    """What is looked for, and what finds it."""

    kinds: tuple[PrivateKind, ...]
    regions: tuple[str, ...]
    names: NameFinder | None

    @classmethod
    def of(cls, privacy: Privacy, names: NameFinder | None) -> _Finder:
        asked = any(kind in NAMED_KINDS for kind in privacy.detect)
        return cls(privacy.detect, privacy.regions, (names or load_name_finder(privacy.detect)) if asked else None)

    def find(self, text: str) -> list[Found]:
        """Find everything in a text; findings may overlap."""
        found = list(find_by_form(text, self.kinds, self.regions))
        if self.names is not None:
            found += (name for name in self.names.find(text) if name.kind in self.kinds)
        return found


def _replaced(conversation: Conversation, finder: _Finder) -> tuple[Conversation, Counter[str]]:
    counts: Counter[str] = Counter()
    placeholders: _Placeholders | None = None
    while values := _values(conversation, finder):
        placeholders = placeholders or _Placeholders(conversation)
        conversation = with_texts(conversation, _Replacement(finder, values, placeholders, counts))
    return conversation, counts


def _values(conversation: Conversation, finder: _Finder) -> dict[str, PrivateKind]:
    """Everything that is found in a conversation, as it is written there, with its kind."""
    values: dict[str, PrivateKind] = {}
    for text in texts_of(conversation):
        if found := finder.find(text):
            values |= {text[span.start : span.stop]: span.kind for span in _joined(found, text)}
    return values


class _Placeholders:
    """Numbers the values of one conversation; placeholders that it came with keep theirs."""

    def __init__(self, conversation: Conversation) -> None:
        self._last: Counter[str] = Counter()
        self._given: dict[tuple[PrivateKind, str], str] = {}
        for text in texts_of(conversation):
            for kind, number in PLACEHOLDER.findall(text):
                self._last[kind] = max(self._last[kind], int(number))

    def of(self, kind: PrivateKind, value: str) -> str:
        """The same for the same value, however it is written."""
        same = _plain(kind, value)
        if (kind, same) not in self._given:
            self._last[kind.upper()] += 1
            self._given[kind, same] = f"[{kind.upper()}_{self._last[kind.upper()]}]"
        return self._given[kind, same]


class _Replacement:
    """Replaces in a text what is found there, and every value that was found elsewhere in the conversation."""

    def __init__(
        self, finder: _Finder, values: dict[str, PrivateKind], placeholders: _Placeholders, counts: Counter[str]
    ) -> None:
        self._finder = finder
        self._values = values
        self._placeholders = placeholders
        self._counts = counts
        self._first_letters = {value[0] for value in values}
        self._lengths = sorted({len(value) for value in values}, reverse=True)

    def __call__(self, text: str) -> str:
        pieces: list[str] = []
        end = 0
        for span in _joined([*self._finder.find(text), *self._known(text)], text):
            self._counts[span.kind] += 1
            pieces += (text[end : span.start], self._placeholders.of(span.kind, text[span.start : span.stop]))
            end = span.stop
        return "".join((*pieces, text[end:]))

    def _known(self, text: str) -> Iterator[Found]:
        """Find the values as they are written; by their lengths, since there may be thousands."""
        starts = (edge.start() for edge in _EDGE.finditer(text) if text[edge.start()] in self._first_letters)
        for start, length in product(starts, self._lengths):
            kind = self._values.get(text[start : start + length])
            if kind and _ALONE_AFTER.match(text, start + length):
                yield Found(kind, start, start + length)


_EDGE = re.compile(r"(?<![A-Za-z0-9])(?=.)", re.DOTALL)
_ALONE_AFTER = re.compile(r"(?![A-Za-z0-9])")


def _joined(found: Iterable[Found], text: str) -> list[Found]:
    """Findings in the order of the text; those that overlap become one, of the kind that was found first.

    What touches a placeholder is none: an engine may take it for a name.
    """
    fixed = [match.span() for match in PLACEHOLDER.finditer(text)]
    joined: list[tuple[int, int, int, PrivateKind]] = []
    for start, stop, rank, kind in sorted((span.start, span.stop, rank, span.kind) for rank, span in enumerate(found)):
        if _touches(start, stop, fixed):
            continue
        if not joined or start >= joined[-1][1]:
            joined.append((start, stop, rank, kind))
            continue
        first, last, best, its_kind = joined[-1]
        joined[-1] = (first, max(last, stop), min(best, rank), kind if rank < best else its_kind)
    return [Found(kind, start, stop) for start, stop, _, kind in joined]


def _touches(start: int, stop: int, fixed: list[tuple[int, int]]) -> bool:
    before = bisect_left(fixed, (stop, 0))
    return before > 0 and fixed[before - 1][1] > start


def _plain(kind: PrivateKind, value: str) -> str:
    """A value without what may differ between two ways to write it: width, case, spaces and signs."""
    same = unicodedata.normalize("NFKC", value).casefold()
    return " ".join(same.split()) if kind in _WORDS else "".join(filter(str.isalnum, same))


def _secrets(conversation: Conversation) -> tuple[str, ...]:
    # In one piece, which is three times as fast; no format goes on over a NUL between two line ends.
    return secrets_in("\n\0\n".join(_texts_for_secrets(conversation)))


def _texts_for_secrets(conversation: Conversation) -> Iterator[str]:
    """What stands in messages, and tools and their calls as JSON, where a key stands beside what it names."""
    for message in conversation.messages:
        yield message.content
        yield from (call.name + json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls)
    yield from (json.dumps(tool, ensure_ascii=False) for tool in conversation.tools)
