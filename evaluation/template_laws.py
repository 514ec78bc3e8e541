"""Checks once per run that a base's chat template can be trained on at all, before a million rows are rendered.

Built-in conversations are rendered; what fails for a single question and answer would fail for every conversation.
What a template cannot do with one conversation, several turns say, is found when that one is rendered.
"""

from __future__ import annotations

from itertools import pairwise

from evaluation.conversation import Conversation, Message, Role
from evaluation.errors import DataError
from evaluation.rendering import IGNORE, TEMPLATE_DATE, Renderer, Unrenderable

_HINT = "name another template in `base.chat_template`: alpaca, chatml, llama2, llama3, vicuna or a .jinja file"


def _chat(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=content) for role, content in turns))


SINGLE = _chat(("user", "What is it?"), ("assistant", "A fever."))
"""What every template has to render."""
PROBES = (
    SINGLE,
    _chat(("user", "a"), ("assistant", "b")),
    _chat(("system", "Be brief."), *((m.role, m.content) for m in SINGLE.messages)),
    _chat(*((m.role, m.content) for m in SINGLE.messages), ("user", "Is it bad? 🙂"), ("assistant", "不是。")),
    _chat(("user", "  spaces \n"), ("assistant", "مرحبا\n\nline")),
)


def check_template(renderer: Renderer) -> None:
    """Check the laws of chat templates on built-in conversations.

    The text before an answer is a prefix of the whole; what is trained on is exactly the answer (trimmed where the
    template trims) and the token that ends it; a text begins once; and our bounded rendering is that of transformers.

    Raises:
        DataError: the template breaks a law for every conversation.
    """
    try:
        renderer.example(SINGLE)
    except Unrenderable as unrenderable:
        raise _broken(f"a question and its answer cannot be rendered: {unrenderable.what}") from unrenderable
    for probe in PROBES:
        try:
            renderer.example(probe)
        except Unrenderable:
            continue
        _check_spans(renderer, probe)
        _check_beginning(renderer, probe)
        for messages, ask in ((probe.messages, False), (probe.messages[:-1], True)):
            _check_same_as_transformers(renderer, messages, ask)


def _broken(why: str) -> DataError:
    return DataError(f"the chat template cannot be trained on: {why}", where="base", hint=_HINT)


def _check_spans(renderer: Renderer, probe: Conversation) -> None:
    """The trained tokens, read as text, are the answers with their ends."""
    example = renderer.example(probe)
    runs: list[list[int]] = [[]]
    for label in example.labels:
        if label != IGNORE:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    answers = [message.content for message in probe.messages if message.role == "assistant"]
    spans = [run for run in runs if run]
    if len(spans) != len(answers):
        raise _broken(f"{len(answers)} answers became {len(spans)} trained spans")
    for span, answer in zip(spans, answers, strict=True):
        *text, end = span
        if renderer.text(tuple(text)).strip() != answer.strip() or end not in renderer.special_ids:
            raise _broken("what is trained on is not exactly the answer and the token that ends it")


def _check_beginning(renderer: Renderer, probe: Conversation) -> None:
    """A text begins once: families that begin every exchange with the token have something between two of them."""
    bos = renderer.tokenizer.bos_token_id
    if bos is None:
        return
    for ids in (renderer.example(probe).input_ids, renderer.prompt(probe.prompt())):
        if any(one == bos == other for one, other in pairwise(ids)):
            raise _broken("the beginning of sequence stands twice in a row")
        if bos in ids and ids[0] != bos:
            raise _broken("the beginning of sequence is not at the beginning")


def _check_same_as_transformers(renderer: Renderer, messages: tuple[Message, ...], ask: bool) -> None:
    if "strftime_now" in str(renderer.tokenizer.chat_template):
        return  # its text depends on the day there, and here it does not
    # The template is known to be harmless by now for these very messages: it was rendered within limits.
    ours = renderer.chat_text(messages, ask=ask)
    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        theirs = renderer.tokenizer.apply_chat_template(
            rows,
            tokenize=False,
            add_generation_prompt=ask,
            date_string=TEMPLATE_DATE,
        )
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise _broken("transformers does not render it") from error
    if ours != theirs:
        raise _broken("it is rendered otherwise by transformers")
