"""Row templates cannot call, compute, reach into objects, loop for long, or grow."""

from __future__ import annotations

import json
import re
import time
from typing import NoReturn

import pytest
from jinja2.environment import Template
from pydantic import JsonValue

from finetune import sandbox
from finetune.sandbox import names_in, render
from finetune.turns import RowUnusable

HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ a['__class__'] }}",
    "{{ a|attr('__class__') }}",
    "{{ a.__init__ }}",
    "{{ a() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ range(10**9) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ 2 ** 1000000000 }}",
    "{{ a ~ a }}",
    "{{ a|center(1000000000) }}",
    "{{ a|indent(1000000000) }}",
    "{{ a|replace('', a) }}",
    "{{ a|map('upper') }}",
    "{{ a|join(a) }}",
    "{{ a|join('x')|join('y') }}",
    "{{ a|tojson|upper|tojson }}",
    "{{ a|join(d='x') }}",
    "{{ a|join(', ', attribute='b') }}",
    "{{ a|tojson(4) }}",
    "{{ a|tojson(indent=4) }}",
    "{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}",
    "{% for x in a %}{% for y in a %}{{ y }}{% endfor %}{% endfor %}",
    "{% for x in a %}{% if x %}{% for y in a %}{{ y }}{% endfor %}{% endif %}{% endfor %}",
    "{% for x in a recursive %}{{ loop(x) }}{% endfor %}",
    "{% for x in 'abc' %}{{ x }}{% endfor %}",
    "{% set b = a %}",
    "{% macro m() %}{% endmacro %}",
    "{% include 'a' %}",
    "{% import 'a' as b %}",
    "{% extends 'a' %}",
    "{% filter upper %}a{% endfilter %}",
    "{% block a %}{% endblock %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_what_is_not_of_the_small_language_is_refused_before_it_is_rendered(source: str) -> None:
    with pytest.raises(ValueError, match=r"accepted|Jinja"):
        names_in(source)


def test_the_columns_of_a_template_are_found() -> None:
    source = "{{ a }}{% if b and not c %}{{ d | default('x') | upper }}{% endif %}"
    assert names_in(source) == {"a", "b", "c", "d"}
    assert names_in("{% for option in options if option != '' %}{{ loop }}{% endfor %}") == {"options"}


def test_text_is_kept_as_it_is() -> None:
    assert render("<{{ a }}>\n", {"a": " <b>&'\n"}) == "< <b>&'\n>\n"


def test_a_column_is_never_a_template() -> None:
    assert render("{{ a }}", {"a": "{{ 1 + 1 }}"}) == "{{ 1 + 1 }}"


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LONGEST_OUTPUT", 100)
    source = "{% for x in xs %}{{ a }}{% endfor %}"
    assert len(render(source, {"xs": [1] * 10, "a": "x" * 10})) == 100
    with pytest.raises(RowUnusable, match="too_large"):
        render(source, {"xs": [1] * 11, "a": "x" * 10})


@pytest.mark.parametrize(
    "source",
    [
        "{{ absent }}",
        "{{ number | join }}",
        "{% for x in number %}{% endfor %}",
        "{% for x in absent %}{% endfor %}",
        "{{ absent | tojson }}",
        "{{ infinite | tojson }}",
        "{{ number | join(', ', 'x') }}",
        "{{ none }}",
        "{{ number == 3 }}",
        "{{ null }}",
        "{{ yes }}",
        "{{ numbers }}",
        "{{ nested }}",
        "{% for x in nested %}{{ x }}{% endfor %}",
        "{{ nested | join }}",
        "{{ nested | first }}",
        "{% for x in numbers %}{{ loop }}{% endfor %}",
    ],
)
def test_a_template_that_fails_on_a_row_sets_it_aside(source: str) -> None:
    values: dict[str, JsonValue] = {
        "number": 3, "infinite": float("inf"), "null": None, "yes": True, "numbers": [1], "nested": [[1], {"a": None}]
    }  # fmt: skip
    with pytest.raises(RowUnusable, match="not_rendered"):
        render(source, values)


def test_json_is_plain_and_always_the_same() -> None:
    value: JsonValue = [{"text": "北京 <b>&'\"\n", "label": None}, 1.5, True]
    expected = '[{"text":"北京 <b>&\'\\"\\n","label":null},1.5,true]'
    assert render("{{ a | tojson }}", {"a": value}) == expected
    assert json.loads(expected) == value


def test_lists_of_texts_and_numbers_can_be_joined() -> None:
    assert render("{{ a | join(', ') }}", {"a": ["x", 1, 2.5, "é"]}) == "x, 1, 2.5, é"


def test_a_loop_ends_soon() -> None:
    source = "{% for x in xs %}{% if x in a %}{% endif %}{% endfor %}"
    assert render(source, {"xs": ["x"] * 10, "a": "y" * 1000}) == ""
    began = time.perf_counter()
    for xs in (["x"] * 10**5, "x" * 10**5):
        with pytest.raises(RowUnusable, match="too_large"):
            render(source, {"xs": xs, "a": "y" * 10**6})
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("value", ["x", "", " \n", "{{ a }}", "x" * 101, 3])
def test_a_column_alone_is_what_the_template_engine_makes_of_it(
    value: JsonValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LONGEST_OUTPUT", 100)
    outcomes = []
    for source in ("{{ a }}", "{{ a }}{% if false %}{% endif %}"):
        try:
            outcomes.append(render(source, {"a": value}))
        except RowUnusable as unusable:
            outcomes.append(str(unusable))
    assert outcomes[0] == outcomes[1]


def test_filters_are_those_of_the_list() -> None:
    for source in (
        "{{ a | join(', ') | trim }}",
        "{{ a | tojson }}",
        "{{ a | tojson | trim }}",
        "{{ a | default('x') }}",
    ):
        assert names_in(source) == {"a"}
    for source, said in (
        ("{{ a | map }}", "the filter 'map' is not accepted; accepted: trim, lower"),
        ("{{ a | tojson(2) }}", "only tojson without brackets"),
        ("{{ a | join(b) }}", "only join with a text in quotes"),
        ("{{ a | join(', ') | tojson }}", "tojson of what join or tojson made"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            names_in(source)


def test_a_loop_may_look_through_as_much_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for x in xs %}{% endfor %}"
    monkeypatch.setattr(sandbox, "MOST_LOOP_WORK", 25)
    assert render(source, {"xs": "abcde"}) == ""
    with pytest.raises(RowUnusable, match="a loop of 5 turns over columns of 6 characters"):
        render(source, {"xs": "abcde", "a": "f"})
    assert render("{{ a }}!", {"a": "x", "b": float("inf")}) == "x!", "without a loop no other column is looked at"


def test_a_column_alone_needs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Template, *_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(sandbox, "LONGEST_OUTPUT", 100)
    monkeypatch.setattr(Template, "generate", generate)
    assert render("{{ a }}", {"a": "x" * 100}) == "x" * 100


def test_a_message_is_at_most_some_megabytes() -> None:
    with pytest.raises(RowUnusable, match="too_large"):
        render("{{ a }}", {"a": "x" * (10**7 + 1)})


def test_nothing_of_the_library_is_within_reach() -> None:
    for name in ("range", "dict", "lipsum", "cycler", "joiner", "namespace"):
        with pytest.raises(RowUnusable):
            render(f"{{% if {name} %}}yes{{% endif %}}", {})


def test_few_templates_are_kept() -> None:
    for number in range(100):
        render(f"{number}", {})
    assert sandbox._compile.cache_info().currsize <= 64
