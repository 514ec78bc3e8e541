"""Looking through conversations: placeholders, engines for names, and that no value is ever shown."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import JsonValue
from rich.console import Console

from evaluation.conversation import Conversation, Message, ToolCall
from finetune.console import Reporter
from finetune.conversation_texts import DEEPEST
from finetune.errors import DataError
from finetune.prepare_rows import collect_source
from finetune.privacy import PrivacyScan
from finetune.privacy_kinds import Found, find_by_form
from finetune.privacy_names import MODELS, load_name_finder, street_addresses
from finetune.privacy_rules import privacy_problems
from finetune.recipe_data import Privacy, PrivateKind, Source
from finetune.turns import RowUnusable

REPLACE = Privacy(action="replace")
KEY = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF3gH6"
MAIL = "anna.berg@firm.de"


def talk(*texts: str, arguments: dict[str, JsonValue] | None = None) -> Conversation:
    calls = (ToolCall(name="f", arguments=arguments),) if arguments else ()
    roles = ("user", "assistant") * len(texts)
    messages = tuple(
        Message(role=role, content=text, tool_calls=calls if role == "assistant" else ())
        for role, text in zip(roles, texts, strict=False)
    )
    return Conversation(messages=messages)


class FakeNames:
    """An engine that knows one person and one address, and takes placeholders for persons."""

    def find(self, text: str) -> Iterator[Found]:
        for match in re.finditer(r"I am (Ada Byron)|\[[A-Z]+_1\]", text):
            yield Found("person", *match.span(1 if match[1] else 0))
        for match in re.finditer("1 Main St", text):
            yield Found("address", *match.span())


def replaced(*texts: str, privacy: Privacy = REPLACE, names: FakeNames | None = None) -> list[str]:
    scanned = PrivacyScan(privacy, names).scan(talk(*texts))
    return [message.content for message in scanned.conversation.messages]


def test_values_are_numbered_in_their_order_and_the_same_have_the_same_number() -> None:
    assert replaced("a@b.de, c@d.de", "A@B.DE and c@d.de") == ["[EMAIL_1], [EMAIL_2]", "[EMAIL_1] and [EMAIL_2]"]
    assert replaced("4111 1111 1111 1111", "4111111111111111") == ["[CARD_1]", "[CARD_1]"]


def test_numbers_go_on_after_placeholders_that_are_there() -> None:
    assert replaced("[EMAIL_3] a@b.de") == ["[EMAIL_3] [EMAIL_4]"]


def test_value_found_by_what_stands_beside_it_is_replaced_elsewhere_as_well() -> None:
    assert replaced("my SSN is 536904399", "536904399, not 5369043990") == [
        "my SSN is [US_SSN_1]",
        "[US_SSN_1], not 5369043990",
    ]


def test_tool_calls_are_replaced_to_their_keys_and_numbers() -> None:
    arguments: dict[str, JsonValue] = {"a@b.de": [{"n": 4111111111111111, "t": True, "f": 1.5}], "k": 41}
    scanned = PrivacyScan(REPLACE).scan(talk("a@b.de", "ok", arguments=arguments))
    (call,) = scanned.conversation.messages[1].tool_calls
    assert call.arguments == {"[EMAIL_1]": [{"n": "[CARD_1]", "t": True, "f": 1.5}], "k": 41}
    assert scanned.counts == {"email": 2, "card": 1}


def test_report_counts_the_same_and_changes_nothing() -> None:
    conversation = talk("a@b.de +49 30 901820", "a@b.de")
    reported = PrivacyScan(Privacy()).scan(conversation)
    assert reported.conversation == conversation
    assert reported.counts == PrivacyScan(REPLACE).scan(conversation).counts == {"email": 2, "phone": 1}


def test_only_what_is_asked_for_is_looked_for() -> None:
    assert replaced("a@b.de +49 30 901820", privacy=Privacy(detect=("phone",), action="replace")) == [
        "a@b.de [PHONE_1]"
    ]
    assert PrivacyScan(None).scan(talk("a@b.de")).counts == {}


def test_findings_that_overlap_become_one() -> None:
    assert replaced("4915112345678@firm.de") == ["[EMAIL_1]"]


def test_keys_that_become_the_same_and_deep_nesting_make_a_row_unusable() -> None:
    with pytest.raises(RowUnusable, match="keys_alike"):
        PrivacyScan(REPLACE).scan(talk("x", "y", arguments={"a@b.de": 1, "A@b.de": 2}))
    deep: JsonValue = 1
    for _ in range(DEEPEST + 2):
        deep = [deep]
    with pytest.raises(RowUnusable, match="nested_too_deep"):
        PrivacyScan(REPLACE).scan(talk("x", "y", arguments={"deep": deep}))


def test_secrets_are_found_in_tool_calls_and_never_replaced() -> None:
    conversation = talk("x", "y", arguments={"password": "hG7kQ2mZ9xLp4"})
    scanned = PrivacyScan(REPLACE).scan(conversation)
    assert scanned.secrets == ("password or key by name",)
    assert scanned.conversation == conversation


def test_engine_of_ones_own_finds_names_and_a_placeholder_is_none() -> None:
    privacy = Privacy(detect=("person", "address", "email"), action="replace")
    texts = replaced("I am Ada Byron, 1 Main St, a@b.de", "Dear Ada Byron", privacy=privacy, names=FakeNames())
    assert texts == ["I am [PERSON_1], [ADDRESS_1], [EMAIL_1]", "Dear [PERSON_1]"]
    assert replaced(*texts, privacy=privacy, names=FakeNames()) == texts


class SecondLook:
    """An engine that knows a person only where an address was replaced."""

    def find(self, text: str) -> Iterator[Found]:
        if "[EMAIL_1]" in text and "Bob" in text:
            yield Found("person", text.index("Bob"), text.index("Bob") + 3)


def test_it_is_looked_again_until_nothing_is_found() -> None:
    scanned = PrivacyScan(Privacy(detect=("person", "email"), action="replace"), SecondLook()).scan(talk("Bob a@b.de"))
    assert scanned.conversation == talk("[PERSON_1] [EMAIL_1]")
    assert scanned.counts == {"email": 1, "person": 1}


def test_number_that_stands_nowhere_else_is_replaced() -> None:
    scanned = PrivacyScan(REPLACE).scan(talk("x", "y", arguments={"n": 4111111111111111}))
    assert scanned.conversation.messages[1].tool_calls[0].arguments == {"n": "[CARD_1]"}


def test_engine_is_asked_for_nothing_but_what_the_recipe_wants() -> None:
    privacy = Privacy(detect=("address",), action="replace")
    assert replaced("I am Ada Byron, 1 Main St", privacy=privacy, names=FakeNames()) == ["I am Ada Byron, [ADDRESS_1]"]


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="Presidio is installed")
@pytest.mark.parametrize("kind", ["person", "address"])
def test_names_without_an_engine_are_refused_with_what_to_install(kind: PrivateKind) -> None:
    with pytest.raises(DataError, match=rf"to look for {kind}, presidio_analyzer") as caught:
        PrivacyScan(Privacy(detect=("email", kind)))
    assert "finetune-recipes[privacy]" in str(caught.value)


@pytest.mark.skipif(
    find_spec("presidio_analyzer") is None or not any(map(find_spec, MODELS)),
    reason="the extra privacy is not installed",
)
def test_presidio_finds_names_and_addresses() -> None:
    finder = load_name_finder(("person", "address"))
    text = "My name is John Smith and I live at 12 Oak Street, Springfield, IL 62704. Paris is a city."
    found = {(span.kind, text[span.start : span.stop]) for span in finder.find(text)}
    assert found == {("person", "John Smith"), ("address", "12 Oak Street, Springfield, IL 62704")}
    assert not list(finder.find("What is the dose of metformin [PERSON_1] should take?"))
    assert not list(finder.find("我叫张伟，住在北京市朝阳区。"))


@pytest.mark.parametrize(
    ("text", "places", "address"),
    [
        ("at 221B Baker Street, London NW1 6XE.", {22: 28}, "221B Baker Street, London NW1 6XE"),
        ("P.O. Box 77, Dayton", {13: 19}, "P.O. Box 77, Dayton"),
        ("5 W. 42nd St., Apt 3, NY 10001", {}, "5 W. 42nd St., Apt 3, NY 10001"),
    ],
)
def test_address_is_a_street_with_what_follows_it(text: str, places: dict[int, int], address: str) -> None:
    assert [text[start:stop] for start, stop in street_addresses(text, places)] == [address]


def test_place_alone_is_no_address() -> None:
    assert not list(street_addresses("London is 2 days away. See 12 Way Out, section 5 Road rules", {0: 6}))


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        (Privacy(region="XX"), "'XX' are not known"),
        (Privacy(region="UK"), "GB"),
        (Privacy(region="DE", detect=("email",)), "no effect"),
    ],
)
def test_region_that_is_unknown_or_idle_is_a_problem(privacy: Privacy, said: str) -> None:
    (finding,) = privacy_problems(privacy)
    assert finding.path == ("privacy", "region")
    assert said in finding.what + finding.hint


@pytest.mark.parametrize("privacy", [Privacy(), Privacy(region="DE"), Privacy(region=("DE", "GB"))])
def test_region_that_is_known_is_none(privacy: Privacy) -> None:
    assert not privacy_problems(privacy)


def test_unknown_country_of_a_list_is_named_at_its_place() -> None:
    (finding,) = privacy_problems(Privacy(region=("US", "UK", "CN")))
    assert finding.path == ("privacy", "region", 1)
    assert "'UK' are not known" in finding.what


TEXT = "call (212) 736-5000, 电话 13812345678, 0049 30 901820 or 011 44 20 7946 0958"


@pytest.mark.parametrize(
    ("region", "left"),
    [
        (None, "call (212) 736-5000, 电话 13812345678, [PHONE_1] or [PHONE_2]"),
        ("US", "call [PHONE_1], 电话 13812345678, [PHONE_2] or [PHONE_3]"),
        (("US", "CN"), "call [PHONE_1], 电话 [PHONE_2], [PHONE_3] or [PHONE_4]"),
        (("CN", "US", "CN"), "call [PHONE_1], 电话 [PHONE_2], [PHONE_3] or [PHONE_4]"),
    ],
)
def test_phones_are_those_of_the_countries_and_all_that_are_dialled_from_abroad(
    region: str | tuple[str, ...] | None, left: str
) -> None:
    assert replaced(TEXT, privacy=Privacy(action="replace", region=region)) == [left]


@pytest.mark.parametrize(
    "text",
    [
        "a0049 30 901820",
        "GTIN 0049 30 901820",
        "5 0049 30 901820",
        "0049 30 901820 €",
        "0049 30 90182012345678",
        "0050 30 901820",
    ],
)
def test_not_every_number_with_zeros_is_dialled_abroad(text: str) -> None:
    assert not list(find_by_form(text, ("phone",), ()))


@pytest.mark.parametrize(
    "text",
    [
        "020 7946 09",
        "1234567812345670",
        "serial 20 7946 0958",
        "IBAN DE89370400440532013001",
        "000-12-3456",
        "078-05-1120",
    ],
)
def test_wrong_and_famous_numbers_are_not_found(text: str) -> None:
    assert not list(find_by_form(text, ("phone", "card", "iban", "us_ssn"), ("GB",)))


def test_number_dialled_abroad_ends_at_a_placeholder() -> None:
    assert replaced("0049 30 901820[EMAIL_1]") == ["[PHONE_1][EMAIL_1]"]


def test_piece_of_a_longer_number_is_no_phone() -> None:
    assert not list(find_by_form("7 002 887 003 1641", ("phone",), ("DE",)))


def test_land_line_without_the_digit_that_one_dials_first_is_any_number() -> None:
    assert [(span.start, span.stop) for span in find_by_form("030 901820", ("phone",), ("DE",))] == [(0, 10)]
    assert not list(find_by_form("30 901820", ("phone",), ("DE",)))


def _rows(folder: Path, *outputs: str) -> Source:
    lines = "".join(f'{{"instruction": "Who is it?", "input": "", "output": "{output}"}}\n' for output in outputs)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return Source(source=str(folder / "rows.jsonl"), rows="alpaca")


def test_refusal_names_the_line_and_not_the_secret(tmp_path: Path) -> None:
    source = _rows(tmp_path, "fine", f"use {KEY}")
    said = io.StringIO()
    with pytest.raises(DataError) as caught:
        collect_source(source, None, None, tmp_path / "cache", Reporter(Console(file=said)))
    assert "rows.jsonl:2: GitHub token" in str(caught.value)
    assert "secrets: set_aside" in str(caught.value)
    assert KEY not in str(caught.value) + repr(caught.value.__cause__) + said.getvalue()


def test_values_are_in_nothing_that_is_written(tmp_path: Path) -> None:
    source = _rows(tmp_path, "fine", f"use {KEY}", f"mail {MAIL}")
    said = io.StringIO()
    privacy = Privacy(action="replace", secrets="set_aside")
    collected = collect_source(source, None, privacy, tmp_path / "cache", Reporter(Console(file=said)))
    assert [(row.line, row.reason, row.detail) for row in collected.set_aside] == [(2, "secret", "GitHub token")]
    assert collected.private == {"email": 1}
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert written
    for value in (KEY, MAIL):
        assert value.encode() not in written
        assert value not in said.getvalue()
