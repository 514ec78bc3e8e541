"""A Modelfile for Ollama: the file to load, the chat template in Go's language, where an answer ends.

The template is not translated from Jinja. It is found by trying: conversations of marked texts are rendered, and what
stands between the marks is what the Go template writes there. Then both are compared on conversations of other texts;
a template that is more than text around messages does not come out the same, and is refused.
The format: https://github.com/ollama/ollama/blob/071c82b16659649df99ce989a60f640845b5e51e/docs/modelfile.mdx.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from evaluation.conversation import Message
from evaluation.rendering import Renderer, Unrenderable
from finetune.errors import DataError
from finetune.go_template import quote_text, render_go

CHECKED = 100
"""Conversations that both templates are compared on."""
LARGEST_CONTEXT = 8192
"""Tokens of context that the file asks for at most: the memory that Ollama takes grows with them."""

_MARKS = tuple(f"Mark{word}Here" for word in ("Aq", "Bw", "Ce", "Dr", "Et", "Fy", "Gu"))
_WORDS = (
    "fever", "the", "x", "3.14", "§ 12 (3)", "naïve", "北京市的天气很好", "مرحبا", "👩🏽‍⚕️", "{{ .System }}",
    "{% if x %}", "\n\n", "\n",
    '"quoted"', "```python\nx = 1\n```", "&lt;", "\\n", "user", "assistant:", "a\tb",
)  # fmt: skip
_HINT = (
    "Ollama cannot say this template: serve the merged model with llama.cpp, which reads the model's own, "
    "or train with `base.chat_template: chatml`"
)


@dataclass(frozen=True)
class GoTemplate:
    """A chat template in Go's language, as Ollama fills it in."""

    text: str
    default_system: str
    """The system message that the model's own template writes where there is none; may be empty."""
    trims: bool
    """Whether the model's own template strips white space around messages, which Go's cannot."""


@dataclass(frozen=True)
class _Between:
    """What a template writes between the messages of a conversation."""

    before_system: str
    after_system: str
    without_system: str
    """Before the first question where there is no system message."""
    to_answer: str
    to_question: str
    ask: str
    """Behind the last question."""


def build_go_template(renderer: Renderer) -> GoTemplate:
    """Find the Go template that writes what the model's own does.

    Raises:
        DataError: the model has no chat template, or one that Go cannot say, and why.
    """
    if not renderer.tokenizer.chat_template:
        raise DataError("the model has no chat template", where="Modelfile", hint="leave --modelfile out")
    try:
        between = _without_beginning(_find_between(renderer), renderer)
        template = GoTemplate(_write_template(between), _default_system(between), _trims(renderer))
        _check(template, renderer)
    except Unrenderable as error:
        raise DataError(f"the chat template refuses a conversation: {error}", where="chat template") from error
    return template


def conversations(count: int, *, padded: bool) -> Iterator[tuple[Message, ...]]:
    """Yield prompts of one to eight questions, with and without a system message, the same every time."""
    draw = random.Random(0)
    for number in range(count):
        questions = 1 + number % 8
        roles = ["user", *["assistant", "user"] * (questions - 1)]
        if draw.random() < 0.5:
            roles.insert(0, "system")
        yield tuple(Message(role=role, content=_text(draw, padded)) for role in roles)


def _text(draw: random.Random, padded: bool) -> str:
    text = " ".join(draw.choices(_WORDS, k=draw.randint(1, 6)))
    return draw.choice((" ", "\n", "")) + text + draw.choice((" ", "\n\n", "")) if padded else f"{text.strip()}."


def _rendered(renderer: Renderer, messages: tuple[Message, ...]) -> str:
    return renderer.chat_text(messages, ask=True)


def _find_between(renderer: Renderer) -> _Between:
    system, *turns = (Message(role="system", content=_MARKS[0]), *_turns())
    before, after, *inner = _cut(_rendered(renderer, (system, *turns)), _MARKS[: len(turns) + 1])
    plain, *same = _cut(_rendered(renderer, tuple(turns)), _MARKS[1 : len(turns) + 1])
    if inner != same or inner[0] != inner[2] or inner[1] != inner[3]:
        raise DataError("it writes other text around later messages", where="chat template", hint=_HINT)
    return _Between(before, after, plain, inner[0], inner[1], inner[-1])


def _turns() -> Iterator[Message]:
    """Three questions with two answers between them, so that each gap but the first is seen twice."""
    for number, mark in enumerate(_MARKS[1:6]):
        yield Message(role="assistant" if number % 2 else "user", content=mark)


def _cut(text: str, marks: tuple[str, ...]) -> list[str]:
    """Return what stands before, between and behind the marks."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise DataError("it leaves messages out, repeats or moves them", where="chat template", hint=_HINT)
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _without_beginning(between: _Between, renderer: Renderer) -> _Between:
    """Take the beginning of sequence out where the tokenizer adds it: Ollama's does so before every prompt."""
    if not renderer.first_ids:
        return between
    begin = renderer.text(renderer.first_ids)
    if not (between.before_system.startswith(begin) and between.without_system.startswith(begin)):
        what = f"it does not begin with {begin!r}, which the tokenizer puts before every text"
        raise DataError(what, where="chat template", hint="Ollama would add it; let the tokenizer not add it")
    return _Between(
        between.before_system.removeprefix(begin),
        between.after_system,
        between.without_system.removeprefix(begin),
        between.to_answer,
        between.to_question,
        between.ask,
    )


def _default_system(between: _Between) -> str:
    """Return the text that stands where a system message would, if there is none."""
    before, after, text = between.before_system, between.after_system, between.without_system
    if len(text) > len(before) + len(after) and text.startswith(before) and text.endswith(after):
        return text[len(before) : len(text) - len(after)]
    return ""


def _write_template(between: _Between) -> str:
    before, after, plain, to_answer, to_question, ask = (
        quote_text(text)
        for text in (
            between.before_system,
            between.after_system,
            between.without_system,
            between.to_answer,
            between.to_question,
            between.ask,
        )
    )
    first = "{{ if .System }}" + before + "{{ .System }}" + after + "{{ else }}" + plain + "{{ end }}"
    question = "{{ $m.Content }}{{ if $last }}" + ask + "{{ else }}" + to_answer + "{{ end }}"
    answer = "{{ $m.Content }}{{ if not $last }}" + to_question + "{{ end }}"
    return (
        first
        + "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + '{{ if eq $m.Role "user" }}'
        + question
        + '{{ else if eq $m.Role "assistant" }}'
        + answer
        + "{{ end }}{{ end }}"
    )


def _trims(renderer: Renderer) -> bool:
    """Say whether the template writes any message without the white space around it."""
    padded = next(iter(conversations(1, padded=False)))
    longer = tuple(message.model_copy(update={"content": f" {message.content}\n"}) for message in padded)
    return any(message.content not in _rendered(renderer, longer) for message in longer)


def _check(template: GoTemplate, renderer: Renderer) -> None:
    begin = renderer.text(renderer.first_ids)
    for messages in conversations(CHECKED, padded=not template.trims):
        own = _rendered(renderer, messages)
        if begin + fill(template, messages) != own:
            raise DataError("what it writes depends on the texts of the messages", where="chat template", hint=_HINT)


def fill(template: GoTemplate, messages: tuple[Message, ...]) -> str:
    """Write a prompt as Ollama does; without a system message it takes the Modelfile's."""
    found = next((message.content for message in messages if message.role == "system"), template.default_system)
    return render_go(template.text, found, [{"role": one.role, "content": one.content} for one in messages])


def build_modelfile(renderer: Renderer, load: tuple[str, ...], context: int, comment: str) -> str:
    """Build the text of a Modelfile; `load` are its FROM and ADAPTER lines.

    Raises:
        DataError: Ollama cannot say the model's chat template, and why.
    """
    template = build_go_template(renderer)
    if any(not line.isprintable() for line in load):
        raise DataError("a Modelfile cannot hold the name of the file", where=load[0], hint="name it in letters: --out")
    lines = [f"# {line}" for line in comment.splitlines()]
    if template.trims:
        lines.append(
            "# The model's own template strips white space around messages. Ollama's cannot: send texts without."
        )
    lines += [*load, f"TEMPLATE {_quoted(template.text)}"]
    if template.default_system:
        lines.append(f"SYSTEM {_quoted(template.default_system)}")
    lines += [f'PARAMETER stop "{_stop(renderer.text((stop,)))}"' for stop in renderer.stop_ids()]
    lines += ["# As it was scored. A higher temperature is for answers that may differ.", "PARAMETER temperature 0"]
    lines += ["PARAMETER repeat_penalty 1.0", f"PARAMETER num_ctx {min(context, LARGEST_CONTEXT)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a text of several lines; there is no way to escape anything in it."""
    unprintable = [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]
    if '"""' in text or text.endswith('"') or unprintable:
        raise DataError("it has signs that a Modelfile cannot hold", where="chat template", hint=_HINT)
    return f'"""{text}"""'


def _stop(text: str) -> str:
    if '"' in text or not text.isprintable():
        raise DataError(f"{text!r} ends an answer, and a Modelfile cannot say so", where="chat template", hint=_HINT)
    return text
