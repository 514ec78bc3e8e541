"""Laws of the search for personal data and secrets: what is planted is found, what resembles it is not."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest
from figures import Figures
from private_values import (
    PRIVATE,
    SECRETS,
    STAND_INS,
    Make,
    look_alike,
    phone,
    phone_abroad,
    plain_card,
    plain_cn_id,
    plain_iban,
    sentence,
    wrong_digit,
)

from evaluation.conversation import Conversation, Message, ToolCall
from finetune import privacy, privacy_kinds, privacy_names, secret_values
from finetune.privacy import PLACEHOLDER, PrivacyScan
from finetune.privacy_kinds import find_by_form
from finetune.recipe_data import Privacy, PrivateKind
from finetune.secret_patterns import PATTERNS, secrets_in

KINDS: tuple[PrivateKind, ...] = ("email", "phone", "iban", "card", "us_ssn", "cn_id")
DOMAIN_DATA = Path(__file__).parents[4] / "shared" / "data"


def named(regions: tuple[str, ...]) -> str:
    return f"region {', '.join(regions)}" if regions else "no region"


def misses(value: str, text: str, kind: PrivateKind, *regions: str) -> bool:
    """Whether what is found in a text is anything but this value, whole."""
    found = [text[span.start : span.stop] for span in find_by_form(text, (kind,), regions)]
    return found != [value]


@pytest.mark.parametrize("kind", PRIVATE)
def test_planted_value_is_found_whole(kind: PrivateKind, figures: Figures) -> None:
    rng = random.Random(f"planted {kind}")
    values = [PRIVATE[kind](rng) for _ in range(figures.amount(200, 2000))]
    failed = [value for value in values if misses(value, sentence(rng, value), kind)]
    note = "English and Chinese sentences; full-width digits; groups by spaces and dashes"
    figures.report("Privacy", f"a planted {kind} is found, whole", len(values), "values", len(failed), note)
    assert not failed


@pytest.mark.parametrize("region", ["US", "DE", "CN", "GB"])
def test_number_as_dialled_within_a_country_is_found(region: str, figures: Figures) -> None:
    rng = random.Random(f"dialled {region}")
    values = [phone(rng, region) for _ in range(figures.amount(100, 1000))]
    failed = [value for value in values if misses(value, sentence(rng, value), "phone", region)]
    claim = f"a planted phone without country code is found (region {region})"
    figures.report("Privacy", claim, len(values), "values", len(failed))
    assert not failed


@pytest.mark.parametrize("regions", [("US", "CN"), ("DE", "GB", "CN")], ids=named)
def test_numbers_of_every_country_of_a_list_are_found(regions: tuple[str, ...], figures: Figures) -> None:
    rng = random.Random(f"dialled {regions}")
    values = [phone(rng, rng.choice(regions)) for _ in range(figures.amount(100, 1000))]
    failed = [value for value in values if misses(value, sentence(rng, value), "phone", *regions)]
    claim = f"a planted phone of one of several countries is found ({named(regions)})"
    figures.report("Privacy", claim, len(values), "values", len(failed))
    assert not failed


@pytest.mark.parametrize("regions", [(), ("US",), ("DE",), ("CN",), ("US", "CN")], ids=named)
def test_number_as_dialled_abroad_is_found(regions: tuple[str, ...], figures: Figures) -> None:
    rng = random.Random(f"abroad {regions}")
    values = [phone_abroad(rng) for _ in range(figures.amount(100, 1000))]
    failed = [value for value in values if misses(value, sentence(rng, value), "phone", *regions)]
    claim = f"a planted phone with 00 or 011 is found ({named(regions)})"
    figures.report("Privacy", claim, len(values), "values", len(failed))
    assert not failed


@pytest.mark.parametrize(("kind", "make"), [("iban", plain_iban), ("card", plain_card), ("cn_id", plain_cn_id)])
def test_wrong_check_digit_is_not_found(kind: PrivateKind, make: Make, figures: Figures) -> None:
    rng = random.Random(f"wrong {kind}")
    # The second last place is a digit in each, and one whose change no check digit leaves unnoticed.
    values = [wrong_digit(value, len(value) - 2) for value in (make(rng) for _ in range(figures.amount(200, 2000)))]
    failed = [value for value in values if list(find_by_form(sentence(rng, value), (kind,), ()))]
    figures.report("Privacy", f"{kind} with a wrong check digit is not found", len(values), "values", len(failed))
    assert not failed


@pytest.mark.parametrize("regions", [(), ("US",), ("DE",), ("CN",), ("US", "CN")], ids=named)
def test_look_alikes_are_not_found(regions: tuple[str, ...], figures: Figures) -> None:
    rng = random.Random(f"alike {named(regions)}")
    texts = [sentence(rng, look_alike(rng)) for _ in range(figures.amount(1000, 20000))]
    failed = [text for text in texts if list(find_by_form(text, KINDS, regions))]
    note = "dates, amounts, ISBN, versions, statutes, case numbers, ICD codes, DOI, PMID, addresses of pages, hashes"
    claim = f"nothing is found in look-alikes ({named(regions)})"
    figures.report("Privacy", claim, len(texts), "texts", len(failed), note)
    assert not failed


def planted_conversation(rng: random.Random, values: list[str]) -> Conversation:
    """Each value somewhere in the messages, a tool's description, and a tool call's keys, texts and lists."""
    question, answer, more = (" | ".join(rng.sample(values, len(values))) for _ in range(3))
    first, second, third = (rng.choice(values) for _ in range(3))
    call = ToolCall(
        name="look_up", arguments={"who": first, "all": [{"note": f"see {second}"}, 7, None, True], third: 1}
    )
    return Conversation(
        messages=(
            Message(role="system", content=sentence(rng, first)),
            Message(role="user", content=question),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content=more),
            Message(role="assistant", content=answer),
        ),
        tools=({"name": "look_up", "description": f"for example {second}"},),
    )


def test_replacing_leaves_no_value_and_the_second_time_changes_nothing(figures: Figures) -> None:
    rng = random.Random("replace")
    scan = PrivacyScan(Privacy(action="replace"))
    cases = figures.amount(100, 2000)
    left = changed = unlike = 0
    for _ in range(cases):
        values = [make(rng) for make in PRIVATE.values()]
        once = scan.scan(planted_conversation(rng, values))
        written = json.dumps(once.conversation.model_dump(), ensure_ascii=False)
        left += any(value in written for value in values)
        changed += scan.scan(once.conversation).conversation != once.conversation
        # Six values, each under one placeholder, however often it stands there.
        unlike += {match[0] for match in PLACEHOLDER.finditer(written)} != {f"[{kind.upper()}_1]" for kind in PRIVATE}
    unit = "conversations"
    figures.report(
        "Privacy", "after replacing, no planted value is left anywhere", cases, unit, left, "and in tool calls"
    )
    figures.report("Privacy", "replacing a second time changes nothing", cases, unit, changed)
    figures.report("Privacy", "the same value has the same placeholder throughout", cases, unit, unlike)
    assert (left, changed, unlike) == (0, 0, 0)


@pytest.mark.parametrize("kind", SECRETS)
def test_planted_secret_is_found(kind: str, figures: Figures) -> None:
    rng = random.Random(f"secret {kind}")
    texts = [sentence(rng, SECRETS[kind](rng)) for _ in range(figures.amount(20, 1000))]
    failed = [text for text in texts if not secrets_in(text)]
    figures.report("Privacy", f"a planted secret is found: {kind}", len(texts), "texts", len(failed))
    assert not failed


def test_stand_ins_for_secrets_are_not_found(figures: Figures) -> None:
    texts = [pattern.format(stand_in) for stand_in in STAND_INS for pattern in ("{}", "Set it: {}\n", "设置 {} 即可")]
    failed = [text for text in texts if secrets_in(text)]
    figures.report("Privacy", "stand-ins for secrets are not found", len(texts), "texts", len(failed))
    assert not failed


def test_look_alikes_are_no_secrets(figures: Figures) -> None:
    rng = random.Random("no secret")
    texts = [sentence(rng, look_alike(rng)) for _ in range(figures.amount(1000, 20000))]
    failed = [text for text in texts if secrets_in(text)]
    figures.report("Privacy", "look-alikes are no secrets", len(texts), "texts", len(failed))
    assert not failed


def test_no_secrets_in_domain_data(figures: Figures) -> None:
    files = sorted(DOMAIN_DATA.glob("*/*.jsonl"))
    if not files:
        pytest.skip(f"{DOMAIN_DATA.name}: there is no domain data beside this checkout")
    lines = [
        line for file in files for line in file.read_text("utf-8").split("\n")[: figures.amount(300, 10**6)] if line
    ]
    failed = sum(bool(secrets_in("\n".join(json.loads(line).values()))) for line in lines)
    figures.report("Privacy", "no secret is reported in public law, health and bank rows", len(lines), "rows", failed)
    assert not failed


# Each drags some pattern along for as far as it can: beginnings without an end, and ends without a beginning.
DRAGS = (
    "a.",
    "a@a.",
    "00 ",
    "AA11-",
    "+49 30 901820 ",
    "0049 30 901820 ",
    "00 1",
    "xoxb-a-",
    "-eyJ",
    "://a:a",
    "password=",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----\n" + "A: b\n" * 12,
    "-----BEGIN RSA PRIVATE KEY-----\\nA: " + "\\" * 250,
    "-----BEGIN RSA PRIVATE KEY-----" + "a" * 59 + " ",
    "Private-Lines: 1",
    "SG.aaaaaaaaaaaaaaaa.",
    "[EMAIL_",
    "12 Main ",
)


def seconds_to_read(text: str, pattern: re.Pattern[str]) -> float:
    began = time.process_time()
    for _ in pattern.finditer(text):
        pass
    return time.process_time() - began


def test_time_grows_with_the_text_alone(figures: Figures) -> None:
    patterns = [
        value
        for module in (privacy, privacy_kinds, privacy_names, secret_values)
        for value in vars(module).values()
        if isinstance(value, re.Pattern)
    ]
    patterns += [pattern.shape for pattern in PATTERNS]
    size = figures.amount(40_000, 1_000_000)
    slow = 0
    for drag in DRAGS:
        text = (drag * size)[:size]
        for pattern in patterns:
            # A busy machine may slow one attempt down, but not three.
            slow += all(seconds_to_read(text, pattern) > 1 for _ in range(3))
    cases = len(DRAGS) * len(patterns)
    claim = f"a pattern takes less than 1 s for {size:,} adversarial characters"
    figures.report("Privacy", claim, cases, "patterns × texts", slow)
    assert not slow
