"""The text of chats: the whole of a conversation, and where each assistant turn begins and ends in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from evaluation.chat_template import ChatTemplate, Unrenderable
from evaluation.conversation import Conversation, Message
from evaluation.errors import DataError
from evaluation.template_meter import LONGEST_TEXT

Tools = Sequence[dict[str, JsonValue]]


@dataclass(frozen=True)
class Turn:
    """Where an assistant turn stands in the rendered text, in characters."""

    number: int
    """Of the message, from 0."""
    start: int
    """The prompt ends here."""
    stop: int
    """What the template writes for this turn ends here, with its end-of-turn token and any line break behind it."""
    calls_tools: bool


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text, with the assistant turns in it."""

    whole: str
    turns: tuple[Turn, ...]


class ChatText:
    """Renders chats as text with the chat template of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer; its templates are compiled when they are first needed."""
        self._tokenizer = tokenizer
        self._compiled: dict[str, ChatTemplate] = {}

    def text(self, messages: Sequence[Message], tools: Tools, *, ask: bool) -> str:
        """Render messages as `apply_chat_template` does.

        Raises:
            Unrenderable: the template refuses these messages, or they are too long.
            DataError: there is no template, or it is not accepted.
        """
        if sum(len(message.content) for message in messages) > LONGEST_TEXT:
            raise Unrenderable("too_large", f"more than {LONGEST_TEXT} characters")
        return self._template(tools).render([as_json(message) for message in messages], tools, ask=ask)

    def rendered(self, conversation: Conversation, turns: Sequence[int]) -> RenderedChat:
        """Render a whole conversation and find the given assistant turns in it.

        Raises:
            Unrenderable: the template leaves something out, or changes what stands before as messages follow.
            DataError: as for `text`.
        """
        messages, tools = conversation.messages, conversation.tools
        whole = self.text(messages, tools, ask=False)
        found = [self._turn(conversation, whole, turn) for turn in turns]
        for number, message in enumerate(messages):
            if message.content.strip() not in whole:
                detail = f"the chat template leaves out text of message {number + 1} ({message.role})"
                raise Unrenderable("template_drops_text", detail)
        if tools or any(message.tool_calls for message in messages):
            self._check_tools_show(conversation, whole)
        return RenderedChat(whole, tuple(found))

    def _turn(self, conversation: Conversation, whole: str, turn: int) -> Turn:
        messages, tools = conversation.messages, conversation.tools
        before = self.text(messages[:turn], tools, ask=True)
        last = turn + 1 == len(messages)
        upto = whole if last else self.text(messages[: turn + 1], tools, ask=False)
        if not upto.startswith(before):
            detail = f"what the chat template writes to ask for turn {turn + 1} is not what stands before the answer"
            raise Unrenderable("template_asks_otherwise", detail)
        if not whole.startswith(upto):
            detail = (
                f"the chat template changes the text up to turn {turn + 1} when more turns follow, by leaving out "
                "earlier reasoning or ending only the last turn: train on single turns, or `train_on: final_assistant`"
            )
            raise Unrenderable("template_single_turn_only", detail)
        return Turn(turn, len(before), len(upto), bool(messages[turn].tool_calls))

    def _check_tools_show(self, conversation: Conversation, whole: str) -> None:
        """Leave out one tool or one call at a time: the text must change."""
        for missing, what in _without_one(conversation):
            try:
                text = self.text(missing.messages, missing.tools, ask=False)
            except Unrenderable:
                continue  # it cannot do without, so it does look at it
            if text == whole:
                raise Unrenderable("template_ignores_tools", f"the chat template does not show {what}")

    def _template(self, tools: Tools) -> ChatTemplate:
        if not self._tokenizer.chat_template:
            raise DataError(
                "the base has no chat template, and these rows are chats",
                where="base",
                hint="name one in `base.chat_template`, use an instruction-tuned base, or rows of a plain layout "
                "(prompt_completion, text)",
            )
        try:
            # A tokenizer may have several, by name; one of them may be for conversations with tools.
            text = str(self._tokenizer.get_chat_template(None, list(tools) or None))
        except ValueError as error:
            raise DataError("the base has several chat templates and none is its default", where="base") from error
        if text not in self._compiled:
            named = {str(name): str(token) for name, token in self._tokenizer.special_tokens_map.items()}
            self._compiled[text] = ChatTemplate(text, named)
        return self._compiled[text]


def as_json(message: Message) -> dict[str, JsonValue]:
    """Return a message in the form that chat templates are written for (that of OpenAI's chat format)."""
    row: dict[str, JsonValue] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    return row


def texts_of(conversation: Conversation) -> Iterator[str]:
    """Return every text that a conversation brings into its rendering, tools and calls as JSON."""
    for message in conversation.messages:
        yield message.content
        if message.tool_calls:
            yield json.dumps([call.model_dump() for call in message.tool_calls], ensure_ascii=False)
    if conversation.tools:
        yield json.dumps(conversation.tools, ensure_ascii=False)


def _without_one(conversation: Conversation) -> Iterator[tuple[Conversation, str]]:
    for i in range(len(conversation.tools)):
        tools = conversation.tools[:i] + conversation.tools[i + 1 :]
        yield conversation.model_copy(update={"tools": tools}), f"tool {i + 1}"
    for number, message in enumerate(conversation.messages):
        for i, call in enumerate(message.tool_calls):
            calls = message.tool_calls[:i] + message.tool_calls[i + 1 :]
            messages = list(conversation.messages)
            messages[number] = message.model_copy(update={"tool_calls": calls})
            what = f"the call of {call.name!r} in message {number + 1}"
            yield conversation.model_copy(update={"messages": tuple(messages)}), what
