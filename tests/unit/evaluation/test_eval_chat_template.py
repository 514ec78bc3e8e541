"""Rendering within limits: what is allowed reads as in transformers, what is not is refused."""

from __future__ import annotations

import pytest
from chat_styles import CHATML, STYLES, Style, style_tokenizer

from evaluation import template_meter
from evaluation.chat_template import ChatTemplate, Unrenderable, with_fixed_date
from evaluation.errors import DataError
from evaluation.rendering import Renderer
from evaluation.template_laws import check_template

MESSAGES = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Is it <bad> & 'so'? 🙂"},
    {"role": "assistant", "content": "不是。"},
]
HONEST = [
    "{{ messages | tojson }}|{{ messages | tojson(indent=2, ensure_ascii=true) }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x ~ m.role ~ loop.index %}{% endfor %}{{ n.x }}",
    "{%- macro show(m, end='!') -%}{{ m.content | trim }}{{ end }}{%- endmacro -%}{{ show(messages[1], end='?') }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m['content'].split(' ')[-1] }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    "{{ '%s-%5.1f' % ('a', 2) }}{{ '%s' | format('b') }}{{ '{} {x:>4}'.format(1, x='y') }}{{ ('ab' * 3)[1:4] }}",
    "{{ messages[0].content | indent(3) }}{{ messages[::-1][0].role | upper }}{{ [1, 2] + [3] }}{{ {'a': (1, 2)} }}",
    "{{ (messages[1].content | tojson | safe) + '<' }}{{ '<' | e }}{{ dict(a=1).items() | list }}{{ none }}{{ x }}",
    "{% set j = joiner('; ') %}{% for m in messages %}{{ j() }}{{ m.role.replace('s', 'S') | capitalize }}{% endfor %}",
    "{% set text %}{{ bos_token }}{% filter upper %}a{% endfilter %}{% endset %}{{ text.strip() ~ 1 ~ true }}",
    "{{ range(3) | list }}{{ [3, 1] | sort | first }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ 1.256 | round(1) }}{{ 'a' in 'ab' }}",
    "{%- for m in messages recursive %}{{ m.role if m is mapping else m }}{% endfor %}{{ messages is defined }}",
    "  {% if add_generation_prompt %}\n  yes{% endif %}\n{{ tools is none }}{{ documents }}{{ date_string }}",
]

OF_THE_DAY = (
    "{{ strftime_now('%d %B %Y') }}{{ strftime_now( \"%Y-%m-%d\" ) }}",
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
    "{% if not date_string is defined %}{% set date_string = '1 Jan 2020' %}{% endif %}{{ date_string }}",
)


@pytest.mark.parametrize("text", [*HONEST, *(style.template for style in STYLES)])
@pytest.mark.parametrize("ask", [False, True])
def test_text_is_that_of_transformers(text: str, ask: bool) -> None:
    tokenizer = style_tokenizer(CHATML)
    theirs = tokenizer.apply_chat_template(
        MESSAGES, chat_template=text, tokenize=False, add_generation_prompt=ask, date_string="26 Jul 2024"
    )
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    assert ChatTemplate(text, named).render(MESSAGES, ask=ask) == theirs


def test_a_template_does_not_know_the_day() -> None:
    assert ChatTemplate("{{ strftime_now('%d %B %Y') }}", {}).render(MESSAGES, ask=False) == "26 July 2024"


@pytest.mark.parametrize("text", [*HONEST, *(style.template for style in STYLES), *OF_THE_DAY])
@pytest.mark.parametrize("ask", [False, True])
def test_a_template_with_a_fixed_date_writes_the_date_of_training_for_everybody(text: str, ask: bool) -> None:
    tokenizer = style_tokenizer(CHATML)
    fixed = with_fixed_date(text)
    plain = tokenizer.apply_chat_template(MESSAGES, chat_template=fixed, tokenize=False, add_generation_prompt=ask)
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    assert ChatTemplate(text, named).render(MESSAGES, ask=ask) == plain
    assert ChatTemplate(fixed, named).render(MESSAGES, ask=ask) == plain
    assert with_fixed_date(fixed).count("26 Jul 2024") >= fixed.count("26 Jul 2024")


def test_a_template_without_a_date_is_left_alone() -> None:
    assert with_fixed_date("{{ messages }}") == "{{ messages }}"


def test_limits_begin_anew_with_every_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_meter, "MOST_BYTES", 3000)
    template = ChatTemplate("{{ 'a' * 1000 }}", {})
    for _ in range(5):
        assert len(template.render(MESSAGES, ask=False)) == 1000


def test_what_a_template_is_given_is_not_changed_by_it() -> None:
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises(DataError, match="clear"):
        ChatTemplate("{{ messages[0].clear() }}", {}).render(messages, ask=False)
    assert messages == MESSAGES


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('no') }}", "template_refuses"),
        ("{{ absent.x }}", "template_fails"),
        ("{{ 1 + 'a' }}", "template_fails"),
    ],
)
def test_a_conversation_that_a_template_cannot_render_is_told(text: str, reason: str) -> None:
    with pytest.raises(Unrenderable) as refusal:
        ChatTemplate(text, {}).render(MESSAGES, ask=False)
    assert refusal.value.reason == reason


def with_template(text: str, style: Style = CHATML) -> Renderer:
    tokenizer = style_tokenizer(style)
    fresh = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token=style.bos, eos_token=style.eos)
    fresh.chat_template = text
    return Renderer(fresh)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_templates_that_keep_the_laws_pass(style: Style) -> None:
    check_template(with_template(style.template, style))


TURN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ raise_exception('never') }}", "never"),
        ("{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}", "leaves out"),
        (TURN, "not exactly the answer"),
        ("{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}", "never learn to stop"),
        ("{{ bos_token ~ bos_token }}" + CHATML.template, "twice in a row"),
        ("intro" + CHATML.template, "not at the beginning"),
    ],
)
def test_a_template_that_breaks_a_law_for_every_conversation_stops_the_run(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_template(with_template(text))
