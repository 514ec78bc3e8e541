"""Finds where each answer stands in the text of a rendered chat, without comparing prefixes of that text.

The conversation is rendered once more with a mark instead of every message's content. What stands between the marks
is the template's own; the rendered text must be those pieces with the contents between them, and so every content's
place is known to the character. Nothing here is shared with what makes the mask in `rendering`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.chat_text import Tools
from evaluation.conversation import Conversation, Message
from evaluation.rendering import Renderer, Unrenderable

Trail = tuple[Any, "Place"] | None
"""The place found last, behind those found before it."""


@dataclass(frozen=True)
class Place:
    """Where the content of a message stands: characters `start` up to `stop`."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True)
class Span:
    """What is trained on of one message: characters `start` up to `stop`, ended by the control token at `end`."""

    message: int
    start: int
    content_stop: int
    end: int
    stop: int

    def holds(self, position: int) -> bool:
        """Tell whether a character is trained on; the template's words between content and end are not."""
        return self.start <= position < self.content_stop or self.end <= position < self.stop


@dataclass(frozen=True)
class Skeleton:
    """What a template writes around contents: `fixed[i]` stands before slot i, the last one after all of them."""

    fixed: tuple[str, ...]
    slots: tuple[int, ...]
    """Number of the message whose content stands in each slot."""
    unasked: tuple[int, ...]
    """Characters before each slot that asking for an answer does not write yet: the model has to write them."""


class Unplaced(Exception):
    """A message cannot be found in the rendered text; `message` is its number."""

    def __init__(self, why: str, message: int) -> None:
        """Take what is the matter and with which message."""
        super().__init__(why)
        self.message = message


class Places:
    """Finds contents in what one renderer writes; remembers what its template does to a sequence of roles."""

    def __init__(self, renderer: Renderer) -> None:
        """Take the renderer, of which only the text of chats is used."""
        added = renderer.tokenizer.added_tokens_decoder.values()
        controls = {str(token) for token in added if token.special} | {*map(str, renderer.tokenizer.all_special_tokens)}
        self._control = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
        self._renderer = renderer
        self._known: dict[tuple[str, ...], Skeleton | None] = {}

    def spans(self, conversation: Conversation, text: str, trained: Sequence[int]) -> list[Span]:
        """Return what is trained on of a rendered chat, for the messages with these numbers.

        Raises:
            Unplaced: a message is not where the template should have put it, or nothing ends it.
        """
        skeleton, places = self._placed(conversation, text)
        return [self._span(skeleton, places, text, message) for message in trained]

    def _placed(self, conversation: Conversation, text: str) -> tuple[Skeleton, list[Place]]:
        for look in (self._by_roles, self._by_contents, self._by_contents_that_show):
            skeleton = look(conversation)
            places = fill(skeleton, conversation.messages, text) if skeleton else None
            if skeleton and places is not None:
                return skeleton, places
        raise Unplaced("the text is not what the template writes around these contents", len(conversation.messages) - 1)

    def _span(self, skeleton: Skeleton, places: Sequence[Place], text: str, message: int) -> Span:
        slots = [i for i, slot in enumerate(skeleton.slots) if slot == message]
        if len(slots) != 1:
            raise Unplaced(f"the template writes the answer {len(slots)} times", message)
        place = places[slots[0]]
        ending = self._control.search(skeleton.fixed[slots[0] + 1])
        if ending is None:
            raise Unplaced("no control token ends the answer", message)
        end, stop = place.stop + ending.start(), place.stop + ending.end()
        blank = not text[place.stop : end].strip()
        start = place.start - skeleton.unasked[slots[0]]
        return Span(message, start, end if blank else place.stop, end, stop)

    def _by_roles(self, conversation: Conversation) -> Skeleton | None:
        """Put a mark instead of every content: what comes of it depends on the roles only, and is remembered."""
        key = (json.dumps(conversation.tools), *(message.role for message in conversation.messages))
        if key not in self._known:
            marks = [f"Content{i}Of{len(key)}Here" for i in range(len(conversation.messages))]
            self._known[key] = self._skeleton(conversation, marks, marks)
        return self._known[key]

    def _by_contents(self, conversation: Conversation) -> Skeleton | None:
        """Put marks around every content, for templates that look at it; a question that is blank stays as it is."""
        return self._by_marks(
            conversation, [m.role == "assistant" or bool(m.content.strip()) for m in conversation.messages]
        )

    def _by_contents_that_show(self, conversation: Conversation) -> Skeleton | None:
        """Put marks around what is not blank, for templates that write nothing of an answer that is."""
        return self._by_marks(conversation, [bool(message.content.strip()) for message in conversation.messages])

    def _by_marks(self, conversation: Conversation, shows: Sequence[bool]) -> Skeleton | None:
        contents = [message.content for message in conversation.messages]
        rounds = 0
        while any(f"Ends{rounds}x" in content for content in contents):
            rounds += 1
        opens = [f"Begins{rounds}x{i}Content" for i in range(len(contents))]
        closes = [f"Ends{rounds}x{i}Content" for i in range(len(contents))]
        marked = [o + c + e if show else c for o, c, e, show in zip(opens, contents, closes, shows, strict=True)]
        patterns = [f"{o}.*?{e}" for o, e in zip(opens, closes, strict=True)]
        return self._skeleton(conversation, marked, patterns)

    def _skeleton(self, conversation: Conversation, marked: list[str], patterns: list[str]) -> Skeleton | None:
        pairs = zip(conversation.messages, marked, strict=True)
        messages = tuple(Message(role=message.role, content=mark) for message, mark in pairs)
        text = self._text(messages, conversation.tools, ask=False)
        if text is None:
            return None
        finder = re.compile("|".join(f"({pattern})" for pattern in patterns), re.DOTALL)
        found = list(finder.finditer(text))
        slots = [(match.lastindex or 0) - 1 for match in found]
        edges = [0, *(edge for match in found for edge in match.span()), len(text)]
        fixed = tuple(text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
        unasked = []
        for slot, match in zip(slots, found, strict=True):
            answer = messages[slot].role == "assistant"
            asked = self._text(messages[:slot], conversation.tools, ask=True) if answer else None
            rest = text[len(asked) : match.start()] if asked and text.startswith(asked) else ""
            unasked.append(0 if rest.strip() else len(rest))
        return Skeleton(fixed, tuple(slots), tuple(unasked))

    def _text(self, messages: tuple[Message, ...], tools: Tools, *, ask: bool) -> str | None:
        try:
            return self._renderer.chat_text(messages, tools, ask=ask)
        except Unrenderable:
            return None


def fill(skeleton: Skeleton, messages: Sequence[Message], text: str) -> list[Place] | None:
    """Lay contents between the template's pieces so that the text comes out; None where they do not make it."""
    if not text.startswith(skeleton.fixed[0]):
        return None
    trails: dict[int, Trail] = {len(skeleton.fixed[0]): None}  # ways to get to a position of the text
    for slot, after in zip(skeleton.slots, skeleton.fixed[1:], strict=True):
        reached: dict[int, Trail] = {}
        for start, trail in trails.items():
            for stop in _stops(messages[slot], text, start, after):
                reached.setdefault(stop + len(after), (trail, Place(slot, start, stop)))
        trails = reached
    trail, places = trails.get(len(text)), []
    while trail is not None:
        places.append(trail[1])
        trail = trail[0]
    return places[::-1] if len(places) == len(skeleton.slots) else None


def _stops(message: Message, text: str, start: int, after: str) -> list[int]:
    """Return where the content of a message that begins at `start` may stop, with `after` behind it."""
    if message.tool_calls:  # how a call is written is the template's affair; it goes up to the end of the turn
        stop = text.find(after, start)
        return [] if stop < 0 else [stop]
    ways = [way for way in _ways(message.content) if text.startswith(way, start)]
    stops = dict.fromkeys(start + len(way) for way in ways)
    return [stop for stop in stops if text.startswith(after, stop)]


def _ways(content: str) -> list[str]:
    """Return how templates write a content: as it is, trimmed, or as JSON."""
    ways = [content]
    if content[:1].isspace() or content[-1:].isspace():
        ways += [content.strip(), content.lstrip(), content.rstrip()]
        ways += [content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")]
    spelled = json.dumps(content, ensure_ascii=False)[1:-1]
    return ways if spelled == content else [*ways, spelled]
