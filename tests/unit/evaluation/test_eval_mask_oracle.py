"""The second way to a mask: what it finds, what it refuses, and that a refusal shows no text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chat_styles import CHATML, LLAMA_2, LLAMA_3, STYLES, ZEPHYR, Style, style_tokenizer
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

import evaluation.mask_oracle
from evaluation.chat_text import Tools
from evaluation.conversation import Conversation, Message, Role, ToolCall
from evaluation.errors import DataError
from evaluation.mask_oracle import MaskCheck, check_masks
from evaluation.mask_places import Place, Places, Skeleton, fill
from evaluation.mask_probes import PROBES
from evaluation.rendering import IGNORE, Example, Renderer, TrainOn, Unrenderable

HEADER = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
ASKS = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns))


def plain(*turns: tuple[Role, str]) -> Conversation:
    return chat(*turns).model_copy(update={"layout": "plain"})


def renderer(style: Style = CHATML, template: str | None = None, backend: Tokenizer | None = None) -> Renderer:
    trained = style_tokenizer(style)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend or trained.backend_tokenizer, bos_token=style.bos, eos_token=style.eos
    )
    tokenizer.chat_template = style.template if template is None else template
    return Renderer(tokenizer)


def check(
    rendering: Renderer, conversation: Conversation, example: Example | None = None, train_on: TrainOn = "assistant"
) -> MaskCheck:
    made = example or rendering.example(conversation, train_on)
    return check_masks(rendering, [("rows.csv:7", conversation, made)], train_on)


@pytest.fixture
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.mask_oracle, "PROBES", ())


TWO = chat(("system", "s"), ("user", "private"), ("assistant", "secret"), ("user", "c"), ("assistant", "answer"))

# ------------------------------------------------------------------ what it agrees with


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("train_on", ["assistant", "final_assistant"])
def test_what_was_checked_is_counted(style: Style, train_on: TrainOn) -> None:
    rendering = renderer(style)
    example = rendering.example(TWO, train_on)
    chats = sum(probe.layout == "chat" for probe in PROBES)
    assert check(rendering, TWO, train_on=train_on) == MaskCheck(1, len(example.input_ids), chats)
    both = check_masks(rendering, [("a", TWO, example), ("b", PROBES[-1], rendering.example(PROBES[-1]))], train_on)
    assert both.probes == len(PROBES)
    assert check_masks(rendering, [], train_on) == MaskCheck(0, 0, len(PROBES))


def test_a_blank_answer_behind_a_blank_question_has_its_place() -> None:
    # This template looks whether the first question says something, and so marks have to stand around the contents.
    blank = chat(("system", "s"), ("user", ""), ("assistant", "a"), ("user", "b"), ("assistant", "\u00a0"))
    assert check(renderer(LLAMA_2), blank).examples == 1


def test_a_base_without_template_or_end_is_checked_for_what_it_can() -> None:
    without_template = renderer(template="")
    text = plain(("user", "a"), ("assistant", "b"))
    assert check(without_template, text).probes == sum(probe.layout == "plain" for probe in PROBES)
    assert check_masks(without_template, [], "assistant").probes == check(without_template, text).probes
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=style_tokenizer(CHATML).backend_tokenizer)
    tokenizer.chat_template = CHATML.template
    assert check(Renderer(tokenizer), TWO).probes > 0  # a chat needs no end of sequence


def test_built_in_conversations_that_the_template_refuses_are_left_out() -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    rendering = renderer(template=refuses + CHATML.template)
    fitting = [probe for probe in PROBES if probe.layout == "chat" and probe.messages[0].role != "system"]
    assert 0 < check(rendering, chat(("user", "a"), ("assistant", "b"))).probes == len(fitting)


@pytest.mark.usefixtures("_no_probes")
def test_a_chat_that_the_assistant_begins() -> None:
    check(renderer(), chat(("assistant", "hello"), ("user", "a"), ("assistant", "b")))


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize(
    "template",
    [
        HEADER + "{% if m['content'] %}{{ m['content'] }}{% else %}nothing{% endif %}<|im_end|>" + ASKS,
        HEADER + "{{ m['content'].strip('\n') }}<|im_end|>" + ASKS,
        HEADER + "{% if 'json' in m['content'] %}(as JSON) {% endif %}{{ m['content'] }}<|im_end|>" + ASKS,
        HEADER + "{{ m['content'] }}\n <|im_end|>" + ASKS,
    ],
    ids=["looks at the content", "trims newlines", "reads the content", "blank before the end"],
)
def test_templates_that_do_something_to_contents_are_followed(template: str) -> None:
    rendering = renderer(template=template)
    for system in ("", 'a "quoted"\nline', "json, please", "  s\n", "json Ends0x0Content"):
        check(rendering, chat(("system", system), ("user", " json\n\n"), ("assistant", "b \n\n")))


@pytest.mark.parametrize(
    "template",
    [
        HEADER + "{{ m['content'] | tojson if m['role'] == 'system' else m['content'] }}<|im_end|>" + ASKS,
        HEADER.replace("messages", "messages if m['role'] != 'system'") + "{{ m['content'] }}<|im_end|>" + ASKS,
    ],
    ids=["JSON", "no system"],
)
def test_answers_are_found_behind_what_is_written_otherwise(template: str) -> None:
    rendering = renderer(template=template)
    conversation = chat(("system", 'a "quoted"\nline'), ("user", "a"), ("assistant", "b"))
    text = rendering.chat_text(conversation.messages, ask=False)
    (span,) = Places(rendering).spans(conversation, text, [2])
    assert text[: span.start].endswith("assistant\n")
    assert text[span.start :] == "b<|im_end|>"


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_text_that_looks_like_marks_or_like_the_template_is_no_problem(style: Style) -> None:
    words = "Content0Of2Here Begins0x0Content Ends1x1Content [/INST] assistant\n"
    check(
        renderer(style), chat(("system", words), ("user", words), ("assistant", words), ("user", ""), ("assistant", ""))
    )


@pytest.mark.usefixtures("_no_probes")
def test_a_tool_call_is_trained_on_up_to_its_end() -> None:
    written = "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>"
    rendering = renderer(template=HEADER + written + ASKS)
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="weather", arguments={}),))
    asked = (Message(role="user", content="weather?"), call, Message(role="tool", content="12"))
    conversation = Conversation(messages=(*asked, Message(role="assistant", content="12 degrees")))
    example = rendering.example(conversation)
    check(rendering, conversation, example)
    first = [label != IGNORE for label in example.labels].index(True)
    for labels in (IGNORE, *example.labels[first + 1 :]), (IGNORE,) * (len(example.labels) - first):
        with pytest.raises(DataError, match="should be"):
            check(rendering, conversation, replace(example, labels=(*example.labels[:first], *labels)))


@pytest.mark.usefixtures("_no_probes")
def test_places_that_leave_out_spaces_are_not_taken_for_where_tokens_begin() -> None:
    template = HEADER.replace("\n", " ") + "{{ m['content'] }}<|im_end|>" + ASKS.replace("\n", " ")
    backend = Tokenizer.from_str(style_tokenizer(CHATML).backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    for rendering in (renderer(template=template), renderer(template=template, backend=backend)):
        check(rendering, chat(("user", "  a "), ("assistant", "\n b \n ")))


@pytest.mark.usefixtures("_no_probes")
def test_a_control_token_that_takes_the_space_behind_it_is_not_trained_on() -> None:
    backend = Tokenizer.from_str(style_tokenizer(CHATML).backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<|says|>", rstrip=True, special=True)])
    template = (
        "{% for m in messages %}{{ m['role'] }}<|says|>{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant<|says|>{% endif %}"
    )
    check(renderer(template=template, backend=backend), chat(("user", "a"), ("assistant", "  b")))


# ------------------------------------------------------------------ what it refuses


def test_the_first_wrong_row_is_named_by_position_and_never_by_text() -> None:
    rendering = renderer()
    right = rendering.example(TWO)
    place = [label != IGNORE for label in right.labels].index(True)
    wrong = replace(right, labels=tuple(IGNORE if i == place else label for i, label in enumerate(right.labels)))
    rows = [("rows.csv:2", TWO, right), ("rows.csv:3", TWO, wrong), ("rows.csv:4", TWO, replace(wrong, labels=()))]
    with pytest.raises(DataError) as refusal:
        check_masks(rendering, rows, "assistant")
    assert str(refusal.value).startswith(
        f"rows.csv:3: the mask is wrong: token {right.input_ids[place]} at position {place} of {len(right.labels)} "
        "is not trained on, and by the characters of the answers it should be"
    )
    assert refusal.value.hint
    assert not any(text in str(refusal.value) for text in ("private", "secret", "answer\n"))


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, labels=e.input_ids), "position 0 of .* is trained on, and .* should not be"),
        (lambda e: replace(e, labels=e.labels[:-1]), "labels for"),
        (lambda e: replace(e, labels=(*e.labels, IGNORE)), "labels for"),
        (lambda e: Example(e.input_ids[:-1], e.labels[:-1]), "is no token, and the rendered text has token"),
        (lambda e: Example((*e.input_ids, 5), (*e.labels, IGNORE)), "is token 5, and the rendered text has no token"),
        (lambda e: Example((9, *e.input_ids[1:]), e.labels), "position 0 of .* is token 9"),
        (lambda e: replace(e, labels=tuple(7 if i == IGNORE else i for i in e.labels)), "another token's label, 7"),
    ],
)
@pytest.mark.parametrize("conversation", [TWO, plain(("user", "a"), ("assistant", "b"))], ids=["chat", "plain"])
def test_every_kind_of_difference_is_told(conversation: Conversation, change: object, message: str) -> None:
    rendering = renderer()
    with pytest.raises(DataError, match=message):
        check(rendering, conversation, change(rendering.example(conversation)))  # type: ignore[operator]


@pytest.mark.usefixtures("_no_probes")
def test_a_token_that_holds_prompt_and_answer_is_refused() -> None:
    rendering = renderer()
    conversation = chat(("user", "a"), ("assistant", "\n\n\n\nb"))
    ids = tuple(rendering.encode(rendering.chat_text(conversation.messages, ask=False)))
    with pytest.raises(DataError, match=r"a token holds .* \(turn 2, assistant\)"):
        check(rendering, conversation, Example(ids, ids))


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{{ m['content'] | upper }}<|im_end|>", "not what the template writes"),
        ("{{ m['content'] }} {{ m['content'] }}<|im_end|>", "writes the answer 2 times"),
        ("{{ m['content'] if m['role'] == 'user' }}<|im_end|>", "writes the answer 0 times"),
        ("{{ m['content'] }}\n", "no control token ends the answer"),
    ],
)
def test_what_cannot_be_found_is_refused(written: str, message: str) -> None:
    rendering = renderer(template=HEADER + written + ASKS)
    conversation = chat(("user", "a"), ("assistant", "b"))
    ids = tuple(rendering.encode(rendering.chat_text(conversation.messages, ask=False)))
    with pytest.raises(DataError, match=message):
        check(rendering, conversation, Example(ids, ids))


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize(
    "template",
    [
        HEADER + "{{ m['content'] }}<|im_end|>{% endfor %}",
        HEADER + "<think></think>{{ m['content'] }}<|im_end|>" + ASKS,
        HEADER + "{{ m['content'] }} (end)<|im_end|>" + ASKS,
    ],
    ids=["asks for nothing", "thinks before the answer", "writes behind the answer"],
)
def test_the_templates_own_words_must_not_be_trained_on(template: str) -> None:
    with pytest.raises(DataError, match="should not be"):
        check(renderer(template=template), chat(("user", "a"), ("assistant", "b")))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a: x;", [Place(0, 3, 4)]),
        ("a: x.", None),
        ("a: x;!", None),
        ("b: x;", None),
        ("a: y;", None),
        ("a: ;", None),
    ],
)
def test_contents_stand_between_the_templates_pieces_or_nowhere(text: str, places: list[Place] | None) -> None:
    assert fill(Skeleton(("a: ", ";"), (0,), (0,)), chat(("user", "x")).messages, text) == places


@pytest.mark.usefixtures("_no_probes")
def test_a_template_that_refuses_marks_is_followed_by_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering = renderer()
    example, write = rendering.example(TWO), rendering.chat_text

    def picky(messages: tuple[Message, ...], tools: Tools, *, ask: bool) -> str:
        if "private" not in messages[1].content:
            raise Unrenderable("template_refuses", "the template wants something else")
        return write(messages, tools, ask=ask)

    monkeypatch.setattr(rendering, "chat_text", picky)
    check(rendering, TWO, example)


def test_a_tokenizer_that_knows_no_places_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering = renderer()
    monkeypatch.setattr(type(rendering.tokenizer), "is_fast", False)
    with pytest.raises(DataError, match="where its tokens stand") as refusal:
        check_masks(rendering, [], "assistant")
    assert refusal.value.hint


# ------------------------------------------------------------------ plain texts


@pytest.mark.usefixtures("_no_probes")
@pytest.mark.parametrize("adds", ["bos", "eos as bos", "nothing"])
def test_plain_texts_begin_as_the_tokenizer_says(adds: str) -> None:
    backend = Tokenizer.from_str(style_tokenizer(ZEPHYR).backend_tokenizer.to_str())
    controls = [("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))]
    pattern = {"bos": "<s>:0 $A:0", "eos as bos": "$A:0 </s>:0", "nothing": "$A:0"}[adds]
    backend.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=controls)
    rendering = renderer(ZEPHYR, backend=backend)
    for turns in ((("user", "a "), ("assistant", "b")), (("assistant", "a b"),), (("user", ""), ("assistant", "🙂"))):
        conversation = plain(*turns)  # type: ignore[arg-type]
        example = rendering.example(conversation)
        assert (rendering.tokenizer.bos_token_id in example.input_ids) == (adds == "bos")
        check(rendering, conversation, example)


# ------------------------------------------------------------------ speed


def test_a_sequence_of_roles_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering = renderer(LLAMA_3)
    texts = [chat(("user", f"  {i}"), ("assistant", f"{i}\n")) for i in range(20)]
    rendered = [rendering.chat_text(conversation.messages, ask=False) for conversation in texts]
    calls = []
    write = Renderer.chat_text
    monkeypatch.setattr(Renderer, "chat_text", lambda *a, **k: calls.append(1) or write(*a, **k))
    places = Places(rendering)
    for conversation, text in zip(texts, rendered, strict=True):
        (span,) = places.spans(conversation, text, [1])
        assert text[span.start : span.stop] == conversation.messages[1].content.strip() + "<|eot_id|>"
    assert len(calls) == 2


def test_rows_beyond_one_batch_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.mask_oracle, "BATCH_CHARACTERS", 5)
    rendering = renderer(LLAMA_2)
    right = rendering.example(TWO)
    rows = [(str(i), TWO, right) for i in range(4)]
    assert check_masks(rendering, rows, "assistant").examples == 4
    for i in range(4):
        broken = [row if row[0] != str(i) else (row[0], TWO, replace(right, labels=right.input_ids)) for row in rows]
        with pytest.raises(DataError, match=rf"^{i}: "):
            check_masks(rendering, broken, "assistant")
