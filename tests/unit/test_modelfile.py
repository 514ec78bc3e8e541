"""What Ollama writes with a Modelfile's template is what the model's own writes, or there is no Modelfile."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from generated_conversations import conversations as any_conversations
from tiny_model import CHATML, build_tokenizer
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from evaluation.conversation import Message
from evaluation.rendering import Renderer, Unrenderable
from finetune.chat_templates import list_chat_templates, load_chat_template
from finetune.errors import DataError
from finetune.go_template import quote_text, render_go
from finetune.modelfile import GoTemplate, build_go_template, build_modelfile, conversations, fill

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {**{name: load_chat_template(name) for name in list_chat_templates()}, "smollm2": SMOLLM2}


def tokenizer_for(template: str, *, adds_beginning: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(template)
    headers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(header, special=True) for header in headers]}
    )
    if "start_header_id" in template:
        tokenizer.bos_token = "<|begin_of_text|>"
    if adds_beginning:
        number = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[(str(tokenizer.bos_token), number)]
        )
    return tokenizer


def prompts(count: int, *, trimmed: bool) -> Iterator[tuple[Message, ...]]:
    """Yield 200 other conversations than those that the module itself checks."""
    found = 0
    for conversation in any_conversations(10_000, seed=7):
        if conversation.layout == "plain" or any(not message.content.strip() for message in conversation.messages):
            continue
        messages = conversation.messages[:-1]
        if trimmed:
            messages = tuple(one.model_copy(update={"content": one.content.strip()}) for one in messages)
        yield messages
        found += 1
        if found == count:
            return


@pytest.mark.parametrize("adds_beginning", [False, True], ids=["", "with a beginning"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_both_templates_write_the_same_on_200_conversations(name: str, adds_beginning: bool) -> None:
    renderer = Renderer(tokenizer_for(TEMPLATES[name], adds_beginning=adds_beginning))
    if adds_beginning and name in ("chatml", "smollm2"):
        return  # their first token is no beginning that the tokenizer adds
    template = build_go_template(renderer)
    assert template.trims == (name not in ("chatml", "smollm2"))
    begin = renderer.text(renderer.first_ids)
    assert bool(begin) == adds_beginning
    seen = 0
    for messages in prompts(200, trimmed=template.trims):
        assert begin + fill(template, messages) == renderer.chat_text(messages, ask=True)
        seen += 1
    assert seen == 200


def test_a_default_system_message_becomes_the_files_own() -> None:
    text = build_modelfile(Renderer(tokenizer_for(SMOLLM2)), ("FROM ./x.gguf",), 2048, "x")
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM, trained by Hugging Face"""' in text
    assert "\nPARAMETER num_ctx 2048\n" in text
    assert build_go_template(Renderer(tokenizer_for(CHATML))).default_system == ""


def test_the_file_ends_answers_where_the_model_does() -> None:
    text = build_modelfile(Renderer(tokenizer_for(TEMPLATES["llama3"])), ("FROM ./x.gguf",), 100_000, "two\nlines")
    assert re.findall(r'PARAMETER stop "(.*)"', text) == ["<|im_end|>", "<|eot_id|>"]
    assert text.startswith("# two\n# lines\n")
    assert "\nPARAMETER num_ctx 8192\n" in text


def test_ollamas_parser_reads_back_what_was_written() -> None:
    renderer = Renderer(tokenizer_for(TEMPLATES["alpaca"]))
    text = build_modelfile(renderer, ("FROM ./x.gguf",), 512, "x")
    (found,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert found == build_go_template(renderer).text


END = "{% if add_generation_prompt %}A:{% endif %}"
REFUSED = {
    "numbers its turns": (
        "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}" + END,
        "later",
    ),
    "repeats": ("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}" + END, "repeats"),
    "drops the system message": (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}" + END,
        "leaves messages out",
    ),
    "looks at the text": (
        "{% for m in messages %}{{ 'long ' if m.content | length > 30 }}{{ m.content }}<|im_end|>{% endfor %}" + END,
        "depends on the texts",
    ),
    "changes the text": (
        "{% for m in messages %}{{ m.content | replace('&', '+') }}<|im_end|>{% endfor %}" + END,
        "depends on the texts",
    ),
    "has no system message": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
        "<|im_end|>{% endfor %}" + END,
        "refuses a conversation",
    ),
    "has quotes": (
        '{% for m in messages %}{{ \'"""\' }}{{ m.content }}<|im_end|>{% endfor %}' + END,
        "signs that a Modelfile cannot hold",
    ),
    "has a carriage return": (
        "{% for m in messages %}{{ '\\r' }}{{ m.content }}<|im_end|>{% endfor %}" + END,
        "signs that a Modelfile cannot hold",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_go_cannot_say_is_refused(case: str) -> None:
    template, reason = REFUSED[case]
    with pytest.raises((DataError, Unrenderable), match=reason):
        build_modelfile(Renderer(tokenizer_for(template)), ("FROM ./x.gguf",), 512, "x")


def test_a_model_without_a_template_gets_no_modelfile() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        build_modelfile(Renderer(tokenizer), ("FROM ./x.gguf",), 512, "x")


def test_a_beginning_that_only_the_tokenizer_writes_is_refused() -> None:
    renderer = Renderer(tokenizer_for(TEMPLATES["chatml"].replace("{{- bos_token -}}", ""), adds_beginning=True))
    template = build_go_template(renderer)  # here the template begins with the token by chance
    assert not template.text.startswith("{{ if .System }}<|im_start|>")
    other = "{% for m in messages %}x{{ m.content }}<|im_end|>{% endfor %}" + END
    with pytest.raises(DataError, match="puts before every text"):
        build_go_template(Renderer(tokenizer_for(other, adds_beginning=True)))


def test_braces_in_a_template_are_spelled_so_that_go_shows_them() -> None:
    braces = "{% for m in messages %}{{ '{{' }} .System {{ '}}' }}{{ m.content }}<|im_end|>{% endfor %}" + END
    template = build_go_template(Renderer(tokenizer_for(braces)))
    assert "{{ .System }}" not in fill(template, (Message(role="user", content="x"),)).replace("{{ .System }}", "", 2)
    draw = random.Random(0)
    for _ in range(100):
        text = "".join(draw.choices(["{", "}", "{{", "}}", " .System ", "x", "\n"], k=8))
        assert render_go(quote_text(text) + "{{ .System }}", "s", []) == text + "s"


def test_the_conversations_of_the_check_are_the_same_every_time_and_of_every_length() -> None:
    first, second = (list(conversations(32, padded=True)) for _ in range(2))
    assert first == second
    assert {sum(message.role == "user" for message in messages) for messages in first} == set(range(1, 9))
    assert {messages[0].role for messages in first} == {"system", "user"}
    assert all(message.content == message.content.strip() for one in conversations(32, padded=False) for message in one)


def test_a_wrong_template_is_noticed() -> None:
    renderer = Renderer(tokenizer_for(CHATML))
    right = build_go_template(renderer)
    wrong = GoTemplate(right.text.replace("<|im_end|>\n<|im_start|>user", "<|im_end|><|im_start|>user"), "", False)
    differing = [one for one in prompts(50, trimmed=False) if fill(wrong, one) != renderer.chat_text(one, ask=True)]
    assert len(differing) > 10


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ if .System }}a{{ else if not .System }}b{{ else }}c{{ end }}", "b"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ $m.Content }};{{ end }}", "0userx;1assistanty;"),
        ("{{ len (slice .Messages 1) }}", "1"),
        ('{{ range $i, $m := .Messages }}{{ if eq $i 1 }}{{ "{{" }}{{ end }}{{ end }}', "{{"),
    ],
)
def test_the_evaluator_does_what_go_does(template: str, expected: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert render_go(template, "", messages) == expected


@pytest.mark.parametrize(
    "template", ["{{ if .System }}", "{{ end }}", "{{ printf .System }}", "{{ eq (len .Messages 1 }}"]
)
def test_the_evaluator_knows_nothing_else(template: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        render_go(template, "", [])
