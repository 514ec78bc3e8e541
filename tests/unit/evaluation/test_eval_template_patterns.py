"""What is rendered by a pattern is what the template writes; one that looks into a text has no pattern."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import pytest
import trl
from chat_styles import CHATML, STYLES, style_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from evaluation import template_patterns
from evaluation.chat_template import ChatTemplate, with_fixed_date
from evaluation.errors import UserError
from evaluation.template_environment import ChatEnvironment
from evaluation.template_patterns import Patterns, Slot

TOKENIZER = style_tokenizer(CHATML)
NAMED = {name: str(token) for name, token in TOKENIZER.special_tokens_map.items()}
ROLES = (("user",), ("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2)
KNOWN_FILTERS = ("d", "default", "string", "trim")
SHIPPED = ("alpaca", "chatml", "llama2", "llama3", "vicuna")
OPEN = {
    **{style.name: style.template for style in STYLES if ".strip()" not in style.template},
    **{
        path.name: path.read_text()
        for path in files("finetune.data_templates").iterdir()
        if path.name.endswith(".jinja")
    },
    "trimmed": "{% for m in messages %}{{ m.content | trim }};{{ m['content'] ~ 1 ~ m.role }}{% endfor %}",
    "tests": "{% for m in messages if m.content is string and m.content is not none %}{{ m.content }}{% endfor %}",
    "several": "{% for m in messages %}{{ m.content + m['content'] | string }}{{ messages[0].content }}{% endfor %}",
    "carried": "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + m.content %}{% endfor %}{{n.t}}",
    "asks": "{{ messages[-1].content | default('x') }}{% if add_generation_prompt %}A{% endif %}",
}
"""Templates that never look into a text."""
LOOKS = (
    "{{ 'yes' if 'a' in m.content else 'no' }}",
    "{{ 'yes' if m.content else 'no' }}",
    "{{ 'yes' if not m.content else 'no' }}",
    "{{ 'yes' if m.content == 'a' else 'no' }}",
    "{{ 'yes' if 'a' != m.content else 'no' }}",
    "{{ 'yes' if m.content < 'b' else 'no' }}",
    "{{ 'yes' if m.content in ['a', 'b'] else 'no' }}",
    "{{ 'yes' if m.content is lower else 'no' }}",
    "{{ 'yes' if m.content is in ['a'] else 'no' }}",
    "{{ 'yes' if m.content is eq('a') else 'no' }}",
    "{{ 'yes' if 'a' is in m.content else 'no' }}",
    "{{ 'yes' if m.content.startswith('a') else 'no' }}",
    "{{ m.content | length }}",
    "{{ m.content | upper }}",
    "{{ m.content | int(7) }}",
    "{{ m.content | list | length }}",
    "{{ m.content | default('empty', true) }}",
    "{{ nothing | default(m.content) | length }}",
    "{{ m.content | trim('a') }}",
    "{{ m.content | tojson }}",
    "{{ m | tojson }}",
    "{{ m.content[0] }}",
    "{{ m.content[1:] }}",
    "{{ m.content.number }}",
    "{{ m.content.strip() }}",
    "{{ (m.content ~ '!') | length }}",
    "{{ (m.content + '!') | upper }}",
    "{{ '%s' % m.content }}{{ ('%3s' % m.content) | length }}",
    "{{ '{}'.format(m.content) | length }}",
    "{{ 'a-b'.replace('a', m.content) | length }}",
    "{{ [m.content, 'b'] | join('-') | length }}",
    "{{ [m.content, 'b'] | sort | first }}",
    "{{ [m.content, 'b'] | map('upper') | join }}",
    "{{ [m.content, 'b'] | select | list | length }}",
    "{{ [m.content, 'b'] | select('in', 'ab') | list | length }}",
    "{{ [m.content, 'b', 'b'] | unique | list | length }}",
    "{{ [m] | selectattr('content', 'equalto', 'a') | list | length }}",
    "{{ [m.content, 'b'].count('b') }}",
    "{{ {'a': 1}[m.content] }}",
    "{{ {'a': 1}.get(m.content, 2) }}",
    "{% for letter in m.content %}{{ letter }},{% endfor %}",
    "{% macro say(x) %}{{ x }}{% endmacro %}{{ say(m.content) | length }}",
    "{% set x %}{{ m.content }}{% endset %}{{ x | length }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% for x in [m] recursive %}{{ loop(x.children) | length if x.children else x.content }}{% endfor %}",
    "{{ [m.content] | string | length }}",
    "{{ ('<' | safe) + m.content }}",
    "{{ m.content * 2 }}",
)
"""What a template may ask of a text, such that it writes something else for another text."""


def chat(roles: Sequence[str], texts: Sequence[str]) -> list[dict[str, JsonValue]]:
    """Put roles and texts together."""
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def theirs(text: str, messages: list[dict[str, JsonValue]], ask: bool) -> str:
    """Render as transformers does."""
    return str(
        TOKENIZER.apply_chat_template(
            messages, chat_template=text, tokenize=False, add_generation_prompt=ask, date_string="26 Jul 2024"
        )
    )


def patterns_of(template: ChatTemplate) -> list[object]:
    """Return what was learned of a template."""
    return list(template._patterns._known.values())


@pytest.mark.parametrize("name", OPEN)
def test_a_pattern_writes_what_transformers_write(name: str) -> None:
    template = ChatTemplate(OPEN[name], NAMED)
    learned = 0

    @settings(max_examples=25, deadline=None)
    @given(roles=st.sampled_from(ROLES), ask=st.booleans(), data=st.data())
    def check(roles: tuple[str, ...], ask: bool, data: st.DataObject) -> None:
        nonlocal learned
        texts = [data.draw(st.text(st.characters(codec="utf-8"))) for _ in roles]
        for messages in (chat(roles, ["first"] * len(roles)), chat(roles, texts)):
            try:
                ours = template.render(messages, ask=ask)
            except UserError:
                continue  # some have no form for a system turn
            assert ours == theirs(OPEN[name], messages, ask)
        learned = len([pattern for pattern in patterns_of(template) if pattern])

    check()
    assert learned >= 2, "it is rendered a conversation at a time"


@pytest.mark.parametrize("look", LOOKS)
def test_a_template_that_looks_into_a_text_is_rendered_a_conversation_at_a_time(look: str) -> None:
    text = f"{{% for m in messages %}}{look}{{% endfor %}}"
    template = ChatTemplate(text, NAMED)
    for content in ("a", "B<", "", " a ", "12"):
        messages = chat(["user"], [content])
        assert template.render(messages, ask=False) == theirs(text, messages, False)
    assert not any(patterns_of(template))


OTHER_FILTERS = sorted(name for name in ChatEnvironment().filters if name[0] != " " and name not in KNOWN_FILTERS)


@pytest.mark.parametrize("name", OTHER_FILTERS)
def test_a_filter_looks_into_a_text(name: str) -> None:
    template = ChatTemplate(f"{{{{ messages[0].content | {name} }}}}", NAMED)
    with suppress(UserError):  # some want more than a text
        template.render(chat(["user"], ["a"]), ask=False)
    assert not any(patterns_of(template))


def test_templates_of_trl_are_written_as_transformers_write_them() -> None:
    found = learned = 0
    for path in sorted(Path(str(files(trl) / "chat_templates")).glob("*.jinja")):
        template = ChatTemplate(text := with_fixed_date(path.read_text()), NAMED)
        for contents in (("Is it bad?", "No."), ("  </think> [x] ", "<think>\na\n</think>\n\nb ")):
            messages = chat(("user", "assistant"), contents)
            try:
                ours = template.render(messages, ask=False)
            except UserError:
                continue
            assert ours == theirs(text, messages, False), path.name
            found += 1
        learned += any(patterns_of(template))
    assert found >= 50
    assert learned >= 3


def test_what_calls_tools_is_no_shape() -> None:
    template = ChatTemplate(CHATML.template, NAMED)
    call: JsonValue = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    template.render([*chat(["user"], ["a"]), {"role": "assistant", "content": "", "tool_calls": call}], ask=False)
    template.render(chat(["user"], ["a"]), [{"name": "f"}], ask=False)
    assert not patterns_of(template)


def test_a_long_conversation_has_the_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content + '.' }}{% endfor %}", NAMED)
    template.render(chat(["user"], ["a"]), ask=False)
    monkeypatch.setattr(template_patterns.Pattern, "filled", lambda *_: pytest.fail("by its pattern"))
    long = "x" * (template_patterns.LONGEST_FILLED + 1)
    assert template.render(chat(["user"], [long]), ask=False) == f"{long}."


def test_a_pattern_writes_no_more_than_a_rendering_may(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% for i in range(200) %}{{ messages[0].content }}{% endfor %}", NAMED)
    assert template.render(chat(["user"], ["a"]), ask=False) == "a" * 200
    assert any(patterns_of(template))
    monkeypatch.setattr(template_patterns, "LONGEST_FILLED", 10**6)
    with pytest.raises(UserError, match="10000000 characters"):
        template.render(chat(["user"], ["a" * 60_000]), ask=False)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(30000) %}{{ messages[0].content }}{% endfor %}",
        "{% set n = namespace(t=messages[0].content) %}"
        "{% for i in range(300) %}{% set n.t = n.t + messages[0].content %}{% endfor %}{{ n.t }}",
    ],
)
def test_a_run_with_stand_ins_has_its_own_limit(text: str) -> None:
    template = ChatTemplate(text, NAMED)
    template.render(chat(["user"], ["a"]), ask=False)
    assert patterns_of(template) == [None]


def test_a_pattern_that_says_something_else_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = template_patterns.Pattern(("wrong", Slot(0, is_trimmed=False)))
    monkeypatch.setattr(Patterns, "_learned", lambda *_: wrong)
    template = ChatTemplate("{{ messages[0].content }}", NAMED)
    assert [template.render(chat(["user"], ["a"]), ask=False) for _ in range(2)] == ["a", "a"]
    assert patterns_of(template) == [None]


def test_no_more_shapes_are_kept_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_patterns, "MOST_PATTERNS", 3)
    template = ChatTemplate(CHATML.template, NAMED)
    for count in range(1, 9):
        template.render(chat(["user", "assistant"] * count, ["a"] * 2 * count), ask=False)
    assert len(patterns_of(template)) == 3
