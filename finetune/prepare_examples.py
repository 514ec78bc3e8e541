"""From conversations to examples of at most `max_tokens`: an answer is never cut, and every change is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evaluation.conversation import Conversation, Message
from evaluation.rendering import Example, Renderer, Unrenderable
from finetune.errors import DataError
from finetune.prepare_rows import UsableRow
from finetune.recipe_data import Data
from finetune.records import SetAside

NAMED_ROWS = 5
"""Rows that a refusal names."""


@dataclass
class Rendered:
    """Rows that became examples, in order, and those that did not."""

    rows: list[UsableRow] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    too_long: list[tuple[UsableRow, int]] = field(default_factory=list)
    """Rows over the limit with their length in tokens; they are set aside, unless the recipe refuses them."""
    truncated: int = 0


def render_rows(rows: Sequence[UsableRow], data: Data, renderer: Renderer, advance: Callable[[int], None]) -> Rendered:
    """Render rows; those that are too long are shortened or set aside, as the recipe says."""
    rendered = Rendered()
    for row in rows:
        advance(1)
        try:
            example = renderer.example(row.conversation, data.train_on)
        except Unrenderable as unrenderable:
            rendered.set_aside.append(_aside(row, unrenderable.reason, unrenderable.what))
            continue
        if len(example.input_ids) <= data.max_tokens:
            _use(rendered, row, example)
        elif data.overflow == "truncate":
            _truncate(rendered, row, data, renderer)
        else:
            length = len(example.input_ids)
            rendered.too_long.append((row, length))
            rendered.set_aside.append(_aside(row, "too_long", f"{length} tokens, {data.max_tokens} allowed"))
    return rendered


def refuse_too_long(data: Data, parts: Sequence[Rendered]) -> None:
    """Refuse rows that are too long, of all parts at once, where the recipe says so.

    Raises:
        DataError: names the first of them and the length that would do.
    """
    too_long = [row for part in parts for row in part.too_long]
    if too_long and data.overflow == "refuse":
        raise _refusal(too_long, data.max_tokens)


def _use(rendered: Rendered, row: UsableRow, example: Example) -> None:
    if example.trained_tokens == 0:
        rendered.set_aside.append(_aside(row, "nothing_to_learn", "no token of it would be trained on"))
        return
    rendered.rows.append(row)
    rendered.examples.append(example)


def _truncate(rendered: Rendered, row: UsableRow, data: Data, renderer: Renderer) -> None:
    conversation = row.conversation
    while (example := renderer.example(conversation, data.train_on)) and len(example.input_ids) > data.max_tokens:
        shorter = _shortened(conversation, len(example.input_ids) - data.max_tokens, renderer)
        if shorter is None:
            rendered.set_aside.append(_aside(row, "answer_too_long", "even without its prompt it is too long"))
            return
        conversation = shorter
    _use(rendered, replace(row, conversation=conversation), example)
    rendered.truncated += 1


def _shortened(conversation: Conversation, excess: int, renderer: Renderer) -> Conversation | None:
    """Cut at least one and about `excess` tokens off the end of the longest message before the answer."""
    asked = [i for i, message in enumerate(conversation.messages[:-1]) if message.role != "assistant"]
    longest = max(asked, key=lambda i: len(conversation.messages[i].content), default=None)
    if longest is None or len(conversation.messages[longest].content) <= 1:
        return None
    content = conversation.messages[longest].content
    tokens = renderer.tokenizer.encode(content, add_special_tokens=False)
    share = max(0.0, (len(tokens) - excess) / len(tokens))
    kept = content[: max(1, min(len(content) - 1, int(len(content) * share)))]
    messages = list(conversation.messages)
    messages[longest] = Message(role=messages[longest].role, content=kept)
    return Conversation(messages=tuple(messages), layout=conversation.layout)


def _refusal(too_long: Sequence[tuple[UsableRow, int]], limit: int) -> DataError:
    named = "\n".join(f"  {row.id}: {length} tokens" for row, length in too_long[:NAMED_ROWS])
    rest = f"\n  and {len(too_long) - NAMED_ROWS} more" if len(too_long) > NAMED_ROWS else ""
    longest = max(length for _, length in too_long)
    return DataError(
        f"{len(too_long)} rows are longer than data.max_tokens ({limit}):\n{named}{rest}",
        where="data.overflow",
        hint=f"--set data.max_tokens={longest}, or --set data.overflow=drop (or truncate, which shortens prompts)",
    )


def _aside(row: UsableRow, reason: str, detail: str) -> SetAside:
    return SetAside(file=row.file, line=row.line, reason=reason, detail=detail)
