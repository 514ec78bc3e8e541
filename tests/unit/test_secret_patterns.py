"""The list of secret formats, and the refusal of rows that hold some."""

from __future__ import annotations

import random

import pytest
from private_values import SECRETS

from finetune.errors import DataError
from finetune.secret_patterns import PATTERNS, refuse_secrets, secret_spans, secrets_in


def test_every_format_has_a_planted_value_and_says_where_it_is_described() -> None:
    rng = random.Random(0)
    found = {kind for make in SECRETS.values() for kind in secrets_in(make(rng))}
    assert found == {pattern.kind for pattern in PATTERNS}
    assert all(pattern.described.startswith("https://") for pattern in PATTERNS)


def test_quick_look_leaves_nothing_out() -> None:
    rng = random.Random(1)
    for name, make in SECRETS.items():
        value = make(rng)
        spans = [pattern.kind for pattern in PATTERNS if pattern.shape.search(value)]
        assert {span.kind for span in secret_spans(value)} <= set(spans), name
        for pattern in PATTERNS:
            if pattern.shape.search(value):
                assert any(beginning in value.lower() for beginning in pattern.begins), (name, pattern.kind)


def test_nothing_found_is_not_refused() -> None:
    refuse_secrets([])


def test_refusal_shows_five_places_and_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        refuse_secrets([("a.jsonl", line, "GitHub token") for line in range(1, 8)])
    said = str(caught.value)
    assert said.startswith("7 rows hold what looks like a password or a key: a.jsonl:1: GitHub token; a.jsonl:2")
    assert "a.jsonl:5" in said
    assert "a.jsonl:6" not in said
    assert "and 2 more" in said
    assert "secrets: set_aside" in said


@pytest.mark.parametrize(
    "code",
    [
        "token = tokens[position + 1].value2",
        "key = lambda row: row['column_12345']",
        "self.api_key = read_key(path='~/.keys/v2')",
        "password = getpass.getpass('Password 1: ')",
    ],
)
def test_program_that_reads_a_secret_holds_none(code: str) -> None:
    assert not secrets_in(code)


KEY_LINE = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz"


@pytest.mark.parametrize(
    "before",
    [
        "",
        "DEK-Info: AES-128-CBC,ABCDEF1234560000xxxxxxEXAMPLE000\n\n",
        "Version: GnuPG v2.0.22 (GNU/Linux)\nComment: GPGTools - https://gpgtools.org\n\n",
        "Comment: an example, to test\n",
    ],
)
def test_only_the_body_of_a_private_key_can_be_a_stand_in(before: str) -> None:
    begin = "-----BEGIN RSA PRIVATE KEY-----\n" + before
    assert secrets_in(begin + KEY_LINE) == ("private key",)
    assert not secrets_in(begin + "EXAMPLE" + KEY_LINE[7:])
    assert not secrets_in(begin + "MIIEexamplexxxxxxxx\n")


@pytest.mark.parametrize(
    "between",
    [
        "\0",
        "\n\0\n",
        "\n-----END RSA PRIVATE KEY-----\n",
        " (body) -----END RSA PRIVATE KEY----- -----BEGIN CERTIFICATE----- ",
        "\n" + "A sentence. " * 3 + "\n",
    ],
)
def test_body_of_a_private_key_stands_near_its_first_line(between: str) -> None:
    assert not secrets_in("-----BEGIN RSA PRIVATE KEY-----" + between + KEY_LINE)
