"""Computes the mask of examples a second time, by characters instead of tokens, and stops where the two disagree.

The rendered text is tokenized in one piece, and a token is trained on where it begins inside an answer or the control
token that ends it. The first way, in `rendering`, compares prefixes of tokens; a mistake in one of the two does not
show in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from evaluation.conversation import Conversation
from evaluation.errors import DataError
from evaluation.mask_places import Places, Unplaced
from evaluation.mask_probes import PROBES
from evaluation.rendering import IGNORE, Example, Renderer, TrainOn, Unrenderable

Row = tuple[str, Conversation, Example]
Offsets = Sequence[tuple[int, int]]

BATCH_CHARACTERS = 1_000_000
"""Text that is tokenized at once: enough to use the machine, and little enough to hold offsets of."""

HINT = "nothing was trained; please report it with the names of the base and the row template"


@dataclass(frozen=True)
class MaskCheck:
    """How much was computed twice and came out the same."""

    examples: int
    tokens: int
    probes: int
    """Built-in conversations that were checked as well."""


def check_masks(renderer: Renderer, rows: Sequence[Row], train_on: TrainOn) -> MaskCheck:
    """Compute the masks of rows (name, conversation, example) and of built-in conversations in a second way.

    Raises:
        DataError: the first example whose tokens or mask are not what the second way says.
    """
    oracle = _Oracle(renderer, train_on)
    for batch in _batches(rows):
        oracle.check(batch)
    probes = list(_rendered_probes(renderer, {row[1].layout for row in rows}, train_on))
    oracle.check(probes)
    return MaskCheck(len(rows), sum(len(example.input_ids) for _, _, example in rows), len(probes))


class _Oracle:
    """Says what the labels of an example should be."""

    def __init__(self, renderer: Renderer, train_on: TrainOn) -> None:
        self._renderer = renderer
        self._train_on = train_on
        self._places = Places(renderer)
        self._tokenizer = renderer.tokenizer
        self._untrimmed = _untrimmed(renderer.tokenizer)
        self._first = _first_ids(renderer.tokenizer)

    def check(self, rows: Sequence[Row]) -> None:
        """Compare examples with what they should be.

        Raises:
            DataError: the first that is something else.
        """
        texts = [self._texts(conversation) for _, conversation, _ in rows]
        tokenized = iter(self._tokenized([text for pieces in texts for text in pieces]))
        for (name, conversation, example), pieces in zip(rows, texts, strict=True):
            parts = [next(tokenized) for _ in pieces]
            try:
                ids, labels = self._expected(conversation, pieces, parts)
            except Unplaced as unplaced:
                role = conversation.messages[unplaced.message].role
                detail = f"{unplaced} (turn {unplaced.message + 1}, {role})"
                raise DataError(
                    f"the mask cannot be computed in a second way: {detail}", where=name, hint=HINT
                ) from None
            if (example.input_ids, example.labels) != (ids, labels):
                raise DataError(_difference(example, ids, labels), where=name, hint=HINT)

    def _texts(self, conversation: Conversation) -> list[str]:
        """Return what is tokenized in one piece each: a chat's whole text, or the messages of a plain one."""
        if conversation.layout == "plain":
            return [message.content for message in conversation.messages]
        return [self._renderer.chat_text(conversation.messages, conversation.tools, ask=False)]

    def _tokenized(self, texts: list[str]) -> list[tuple[list[int], Offsets]]:
        if self._untrimmed is not None:
            return [(e.ids, e.offsets) for e in self._untrimmed.encode_batch(texts, add_special_tokens=False)]
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def _expected(
        self, conversation: Conversation, texts: list[str], parts: list[tuple[list[int], Offsets]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if conversation.layout == "plain":
            return self._expected_plain(conversation, parts)
        (ids, offsets), messages = parts[0], conversation.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        trained = answers if self._train_on == "assistant" else answers[-1:]
        labels = [IGNORE] * len(ids)
        spans = iter(self._places.spans(conversation, texts[0], trained))
        span = next(spans, None)
        for position, (start, stop) in enumerate(offsets):
            while span is not None and start >= span.stop:
                span = next(spans, None)
            if span is None:
                break
            if start < span.start < stop and ids[position] not in self._renderer.special_ids:
                raise Unplaced("a token holds the end of what is asked and the beginning of the answer", span.message)
            if span.holds(start):
                labels[position] = ids[position]
        return tuple(ids), tuple(labels)

    def _expected_plain(
        self, conversation: Conversation, parts: list[tuple[list[int], Offsets]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids, trained = list(self._first), [False] * len(self._first)
        for message, (own, _) in zip(conversation.messages, parts, strict=True):
            ids += own
            trained += [message.role == "assistant"] * len(own)
        ids.append(int(self._tokenizer.eos_token_id))
        trained = [*trained, True]
        trained[0] = False  # nothing comes before the first token
        return tuple(ids), tuple(i if ours else IGNORE for i, ours in zip(ids, trained, strict=True))


def _difference(example: Example, ids: Sequence[int], labels: Sequence[int]) -> str:
    """Say where an example first is not what it should be, by position and id: never by text."""
    length = len(ids)
    pairs = enumerate(zip_longest(example.input_ids, ids, fillvalue=None))
    for position, (has, should) in pairs:
        if has != should:
            missing = "no token" if has is None else f"token {has}"
            wanted = "no token" if should is None else f"token {should}"
            return f"position {position} of {length} is {missing}, and the rendered text has {wanted} there"
    pairs = enumerate(zip_longest(example.labels, labels, fillvalue=None))
    position, has, should = next((i, a, b) for i, (a, b) in pairs if a != b)
    if position >= length or has is None:
        return f"there are {len(example.labels)} labels for {length} tokens"
    token = f"token {ids[position]} at position {position} of {length}"
    if has not in (IGNORE, ids[position]):
        return f"{token} has another token's label, {has}"
    said = "is trained on" if has != IGNORE else "is not trained on"
    second = "should be" if should != IGNORE else "should not be"
    return f"the mask is wrong: {token} {said}, and by the characters of the answers it {second}"


def _rendered_probes(renderer: Renderer, layouts: set[str], train_on: TrainOn) -> Iterator[Row]:
    """Render the built-in conversations in the layouts of the rows, or in all that the base has."""
    possible = layouts or ({"chat", "plain"} if renderer.tokenizer.chat_template else {"plain"})
    for number, conversation in enumerate(PROBES, start=1):
        if conversation.layout in possible:
            try:
                yield f"built-in conversation {number}", conversation, renderer.example(conversation, train_on)
            except Unrenderable:
                continue


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(message.content) for message in row[1].messages)
        if characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _first_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what the tokenizer writes before a text by itself, where that is its beginning-of-sequence token."""
    first = list(tokenizer.encode("a", add_special_tokens=True))[:1]
    return tuple(first) if first == [tokenizer.bos_token_id] else ()


def _untrimmed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """Return a copy that says where tokens begin, for tokenizers that leave the space before a word out of its place.

    Raises:
        DataError: the tokenizer cannot say at all where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise DataError(
            "the base's tokenizer does not say where its tokens stand in the text, so masks cannot be checked",
            where="base",
            hint="use a base whose folder has a tokenizer.json",
        )
    backend = tokenizer.backend_tokenizer
    if "trim_offsets=True" not in str(backend.post_processor):
        return None
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = None
    copy.no_truncation()
    copy.no_padding()
    return copy
