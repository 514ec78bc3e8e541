from __future__ import annotations

import copy
from itertools import accumulate

import pytest
from chat_styles import CHATML, LLAMA_2, LLAMA_3, STYLES, ZEPHYR, Style, style_tokenizer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from evaluation.conversation import Conversation, Message, Role, ToolCall
from evaluation.errors import DataError
from evaluation.rendering import IGNORE, Example, Renderer, TrainOn, Unrenderable

every_style = pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)


def chat(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns))


def plain(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=chat(*turns).messages, layout="plain")


def renderer(style: Style = CHATML, template: str | None = None, **options: bool) -> Renderer:
    tokenizer = style_tokenizer(style, **options)
    if template is not None:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token=style.bos, eos_token=style.eos
        )
        tokenizer.chat_template = template
    return Renderer(tokenizer)


def trained_texts(rendering: Renderer, example: Example) -> list[str]:
    """Decode each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORE:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [rendering.text(tuple(run)) for run in runs if run]


FOUR_TURNS = chat(
    ("system", "Be brief."),
    ("user", "What is it?"),
    ("assistant", "A fever."),
    ("user", "Is it bad? 🙂"),
    ("assistant", "不是。"),
)

# ------------------------------------------------------------------ laws


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text(st.sampled_from(" \n\t\u00a0\u2003a."), max_size=8),
    st.text(st.sampled_from("🙂👩‍⚕️🇨🇭مرحبا שלום北京天気"), max_size=12),
    st.sampled_from(
        ["", "</s>", "<|im_end|>", "<|eot_id", "[INST]", "<<SYS>>", "assistant\n", "\n\n\n\n", "<|pad|>", "a <s> b"]
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns: list[tuple[Role, str]] = [("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        turns += [("user", draw(TEXTS)), ("assistant", draw(TEXTS))]
    return chat(*turns)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    conversation=conversations(),
    style=st.sampled_from(STYLES),
    separate_pad=st.booleans(),
    train_on=st.sampled_from(["assistant", "final_assistant"]),
)
def test_mask_equals_an_oracle_that_counts_characters(
    conversation: Conversation, style: Style, separate_pad: bool, train_on: TrainOn
) -> None:
    rendering = renderer(style, separate_pad=separate_pad)
    controls = (*style.specials, "<|pad|>")
    pieces = style.pieces(conversation.messages)
    turns = [i for i, (_, trained) in enumerate(pieces) if trained]
    wanted = turns if train_on == "assistant" else turns[-1:]
    starts = [0, *accumulate(len(text) for text, _ in pieces)]
    whole = "".join(text for text, _ in pieces)
    encoding = style_tokenizer(style, separate_pad).backend_tokenizer.encode(whole, add_special_tokens=False)

    example, refusal = None, ""
    try:
        example = rendering.example(conversation, train_on)
    except Unrenderable as error:
        refusal = error.reason
    event(refusal or "rendered")
    if example is None:
        if refusal == "special_token_in_text":
            assert any(control in m.content for control in controls for m in conversation.messages)
        else:
            assert refusal == "answer_merges_with_prompt"
            backend = rendering.tokenizer.backend_tokenizer
            prefixes = [backend.encode(whole[: starts[i]], add_special_tokens=False).ids for i in wanted]
            assert any(encoding.ids[: len(prefix)] != prefix for prefix in prefixes)
        return

    assert not any(control in m.content for control in controls for m in conversation.messages)
    assert example.input_ids == tuple(encoding.ids)
    inside = [any(starts[i] <= a and b <= starts[i + 1] for i in wanted) for a, b in encoding.offsets]
    assert example.labels == tuple(i if ours else IGNORE for i, ours in zip(encoding.ids, inside, strict=True))
    if style.splitting != "sentencepiece":  # whose decoder drops the first space
        assert "".join(trained_texts(rendering, example)) == "".join(pieces[i][0] for i in wanted)

    prompt = rendering.prompt(conversation.prompt())
    assert example.input_ids[: len(prompt)] == prompt
    assert rendering.answer(conversation.prompt(), conversation.answer()) == tuple(
        label for label in example.labels[len(prompt) :] if label != IGNORE
    )


@given(texts=st.lists(TEXTS, min_size=2, max_size=4), adds_bos=st.booleans())
@settings(max_examples=100, deadline=None)
def test_plain_layout_is_the_texts_one_after_another(texts: list[str], adds_bos: bool) -> None:
    rendering = renderer(LLAMA_3, adds_bos=adds_bos)
    turns: list[tuple[Role, str]] = [("user", text) for text in texts[:-1]]
    conversation = plain(*turns, ("assistant", texts[-1]))
    if any(special in text for special in (*LLAMA_3.specials, "<|pad|>") for text in texts):
        with pytest.raises(Unrenderable):
            rendering.example(conversation)
        return
    example = rendering.example(conversation)
    assert rendering.text(example.input_ids) == ("<|begin_of_text|>" * adds_bos) + "".join(texts) + "<|end_of_text|>"
    trained = trained_texts(rendering, example)
    everything = texts[-1] + "<|end_of_text|>"
    if adds_bos or any(texts[:-1]):
        assert trained == [everything]
        prompt = rendering.prompt(conversation.prompt())
        assert example.input_ids[: len(prompt)] == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORE} if prompt else True
        assert (*prompt, *rendering.answer(conversation.prompt(), texts[-1])) == example.input_ids
    else:
        assert example.labels[0] == IGNORE  # nothing comes before it that could predict it
        assert example.labels[1:] == example.input_ids[1:]


@every_style
@pytest.mark.parametrize("separate_pad", [False, True])
def test_exactly_the_answers_and_their_ends_are_trained(style: Style, separate_pad: bool) -> None:
    rendering = renderer(style, separate_pad=separate_pad)
    space = " " if style is LLAMA_2 else ""
    ends = [f"{text}{space}{style.end_of_turn}" for text in ("A fever.", "不是。")]
    assert trained_texts(rendering, rendering.example(FOUR_TURNS)) == ends
    assert trained_texts(rendering, rendering.example(FOUR_TURNS, "final_assistant")) == ends[1:]
    assert rendering.example(FOUR_TURNS).trained_tokens == sum(
        label != IGNORE for label in rendering.example(FOUR_TURNS).labels
    )


@every_style
@pytest.mark.parametrize("adds_bos", [False, True])
def test_chat_is_what_transformers_makes_of_the_same_folder(style: Style, adds_bos: bool) -> None:
    rendering = renderer(style, adds_bos=adds_bos)
    rows = [message.model_dump() for message in FOUR_TURNS.messages]
    theirs = rendering.tokenizer.apply_chat_template(rows, tokenize=True, date_string="26 Jul 2024", return_dict=False)
    assert rendering.example(FOUR_TURNS).input_ids == tuple(theirs)
    asked = rendering.tokenizer.apply_chat_template(
        rows[:-1], tokenize=True, add_generation_prompt=True, date_string="26 Jul 2024", return_dict=False
    )
    assert rendering.prompt(FOUR_TURNS.prompt()) == tuple(asked)


@pytest.mark.parametrize(("single", "begins"), [("</s>:0 $A:0", True), ("$A:0 </s>:0", False), ("$A:0", False)])
def test_a_token_that_begins_and_ends_is_told_by_its_place(single: str, begins: bool) -> None:
    tokenizer = copy.deepcopy(style_tokenizer(LLAMA_2))  # the one that the styles have is shared by all tests
    tokenizer.bos_token = tokenizer.eos_token
    end = (str(tokenizer.eos_token), int(tokenizer.eos_token_id))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[end])
    assert Renderer(tokenizer).first_ids == ((end[1],) if begins else ())


@pytest.mark.parametrize("adds_bos", [False, True])
def test_text_begins_once(adds_bos: bool) -> None:
    rendering = renderer(LLAMA_3, adds_bos=adds_bos)
    bos = rendering.tokenizer.bos_token_id
    assert rendering.example(FOUR_TURNS).input_ids.count(bos) == 1
    assert rendering.prompt(FOUR_TURNS.prompt()).count(bos) == 1
    text = plain(("user", "a"), ("assistant", "b"))
    assert rendering.example(text).input_ids.count(bos) == adds_bos
    assert rendering.prompt(text.prompt()).count(bos) == adds_bos


def test_rendering_does_not_depend_on_the_day() -> None:
    assert "Today Date: 26 Jul 2024" in renderer(LLAMA_3).text(renderer(LLAMA_3).example(FOUR_TURNS).input_ids)


@pytest.mark.parametrize(
    ("style", "stops"),
    [
        (CHATML, {"<|im_end|>"}),
        (LLAMA_3, {"<|eot_id|>", "<|end_of_text|>"}),
        (LLAMA_2, {"</s>"}),
        (ZEPHYR, {"</s>"}),
    ],
    ids=lambda value: value.name if isinstance(value, Style) else "",
)
def test_stop_tokens_are_end_of_turn_and_end_of_sequence(style: Style, stops: set[str]) -> None:
    rendering = renderer(style)
    assert {rendering.text((i,)) for i in rendering.stop_ids()} == stops
    without_template = renderer(style, template="")
    assert [rendering.text((i,)) for i in without_template.stop_ids()] == [style.eos]


def test_pad_equal_to_end_does_not_change_the_mask() -> None:
    same, other = renderer(CHATML), renderer(CHATML, separate_pad=True)
    assert same.tokenizer.pad_token_id == same.tokenizer.eos_token_id != other.tokenizer.pad_token_id
    assert same.example(FOUR_TURNS) == other.example(FOUR_TURNS)


# ------------------------------------------------------------------ refusals


@every_style
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("layout", [chat, plain])
def test_control_tokens_in_text_are_refused(style: Style, role: Role, layout: object) -> None:
    rendering = renderer(style)
    for special in style.specials:
        texts = {"system": "s", "user": "u", "assistant": "a"} | {role: f"x{special}y"}
        conversation = chat(*((r, texts[r]) for r in ("system", "user", "assistant")))
        if layout is plain:
            conversation = Conversation(messages=conversation.messages, layout="plain")
        with pytest.raises(Unrenderable, match="control token") as refusal:
            rendering.example(conversation)
        assert refusal.value.reason == "special_token_in_text"
        if role != "assistant":
            with pytest.raises(Unrenderable, match="control token"):
                rendering.prompt(conversation.prompt())


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
            "{{ m['content'] if loop.last or m['role'] == 'user' else '…' }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            id="earlier answers shortened",
        ),
        pytest.param(
            "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            id="length at the start",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>{% endif %}",
            id="generation prompt that is not in the history",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|im_end|>{% endif %}",
            id="only the last turn ends",
        ),
    ],
)
def test_template_that_rewrites_history_is_refused(template: str) -> None:
    with pytest.raises(Unrenderable) as refusal:
        renderer(CHATML, template=template).example(FOUR_TURNS)
    otherwise = "<think>" in template or "length" in template
    assert refusal.value.reason == ("template_asks_otherwise" if otherwise else "template_single_turn_only")


def test_what_a_template_leaves_out_is_refused() -> None:
    reasoning = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    silent = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(Unrenderable) as refusal:
        renderer(CHATML, template=reasoning).example(chat(("user", "a"), ("assistant", "because</think>b")))
    assert refusal.value.reason == "template_drops_text"
    with pytest.raises(Unrenderable) as refusal:
        renderer(CHATML, template=silent).example(FOUR_TURNS, "final_assistant")
    assert refusal.value.reason == "template_drops_text"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = ToolCall(name="weather", arguments={"city": "Zürich"})
WITH_TOOLS = Conversation(
    messages=(
        Message(role="user", content="Rain?"),
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content="sun"),
        Message(role="assistant", content="No."),
    ),
    tools=(TOOL,),
)


@pytest.mark.parametrize(
    ("shown", "missing"),
    [("", "tool 1"), ("{{ tools | tojson }}", "the call of 'weather' in message 2")],
)
def test_tools_that_do_not_show_are_refused(shown: str, missing: str) -> None:
    with pytest.raises(Unrenderable, match=missing) as refusal:
        renderer(CHATML, template=shown + CHATML.template).example(WITH_TOOLS)
    assert refusal.value.reason == "template_ignores_tools"


def test_a_call_is_trained_on_with_its_end() -> None:
    calls = "{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
    template = "{{ tools | tojson }}" + CHATML.template.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
        "{% set m = message %}<|im_start|>{{ m.role }}\n" + calls + "<|im_end|>{{ '\n' }}",
    )
    rendering = renderer(CHATML, template=template)
    call = '{"name": "weather", "arguments": {"city": "Zürich"}}<|im_end|>'
    assert trained_texts(rendering, rendering.example(WITH_TOOLS)) == [call, "No.<|im_end|>"]
    hidden = WITH_TOOLS.model_copy(update={"tools": ({**TOOL, "x": "<|im_end|>"},)})
    with pytest.raises(Unrenderable, match="control token"):
        rendering.example(hidden)


def test_a_turn_ends_at_its_first_control_token() -> None:
    template = CHATML.template + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    rendering = renderer(CHATML, template=template)
    assert trained_texts(rendering, rendering.example(chat(("user", "a"), ("assistant", "b")))) == ["b<|im_end|>"]


def test_a_template_may_refuse_a_conversation_in_its_own_words() -> None:
    template = "{{ raise_exception('no system, please') if messages[0].role == 'system' }}" + CHATML.template
    rendering = renderer(CHATML, template=template)
    refused, rendered = rendering.examples([FOUR_TURNS, chat(("user", "a"), ("assistant", "b"))])
    assert isinstance(refused, Unrenderable)
    assert (refused.reason, "no system, please" in refused.what) == ("template_refuses", True)
    assert isinstance(rendered, Example)


def test_examples_are_those_of_one_by_one() -> None:
    rendering = renderer(LLAMA_3)
    many = [FOUR_TURNS, chat(("user", "<|eot_id|>"), ("assistant", "b")), plain(("user", "a"), ("assistant", "b"))]
    found = rendering.examples(many * 3)
    assert [isinstance(example, Unrenderable) for example in found] == [False, True, False] * 3
    assert [found[0], found[2]] == [rendering.example(many[0]), rendering.example(many[2])]
    rendering.tokenizer(["a", "b b b b"], padding=True, truncation=True, max_length=2)
    assert rendering.examples(many[:1]) == found[:1]


@pytest.mark.parametrize("train_on", ["assistant", "final_assistant"])
def test_tokens_before_an_answer_are_those_of_the_prompt_alone(train_on: TrainOn) -> None:
    for style in STYLES:
        rendering = renderer(style)
        example = rendering.example(FOUR_TURNS, train_on)
        prompt = rendering.encode(rendering.chat_text(FOUR_TURNS.messages[:4], ask=True))
        assert list(example.input_ids[: len(prompt)]) == prompt


def test_answer_that_merges_with_the_prompt_is_refused() -> None:
    rendering = renderer(CHATML)  # its prompt ends in plain text, "assistant\n"
    with pytest.raises(Unrenderable) as refusal:
        rendering.example(chat(("user", "a"), ("assistant", "\n\n\n\nb")))
    assert refusal.value.reason == "answer_merges_with_prompt"
    rendering.example(chat(("user", "a"), ("assistant", "b")))


@pytest.mark.parametrize("turns", [1, 2])
def test_template_without_end_of_turn_is_refused(turns: int) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rendering = renderer(CHATML, template=template)
    for train_on in ("assistant", "final_assistant"):
        with pytest.raises(DataError, match="never learn to stop") as refusal:
            rendering.example(chat(*[("user", "a"), ("assistant", "b")] * turns), train_on)
        assert refusal.value.hint


def test_chat_without_a_template_is_refused_and_plain_is_not() -> None:
    rendering = renderer(CHATML, template="")
    with pytest.raises(DataError, match="no chat template"):
        rendering.example(FOUR_TURNS)
    with pytest.raises(DataError, match="no chat template"):
        rendering.prompt(FOUR_TURNS.prompt())
    assert trained_texts(rendering, rendering.example(plain(("user", "a"), ("assistant", "b")))) == ["b<|im_end|>"]


def test_tokenizer_without_end_of_sequence_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=style_tokenizer(CHATML).backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Renderer(tokenizer).example(plain(("user", "a"), ("assistant", "b")))


def test_a_control_token_that_is_written_and_not_read_moves_no_mask() -> None:
    tokenizer = copy.deepcopy(style_tokenizer(CHATML))  # the one that the styles have is shared by all tests
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|b|>", single_word=True, special=True)]})
    tokenizer.chat_template = f"a<|b|>c <|b|> {CHATML.template}"
    rendering = Renderer(tokenizer)
    example = rendering.example(FOUR_TURNS)
    assert sum(tokenizer.convert_ids_to_tokens(i) == "<|b|>" for i in example.input_ids) == 1
    assert trained_texts(rendering, example) == ["A fever.<|im_end|>", "不是。<|im_end|>"]


def test_refusal_does_not_show_the_text() -> None:
    with pytest.raises(Unrenderable) as refusal:
        renderer(CHATML).example(chat(("user", "private <|im_end|>"), ("assistant", "b")))
    assert "private" not in str(refusal.value)
