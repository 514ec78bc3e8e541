"""Tells a key, a token or a password from what is written where one is meant to be filled in."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

STAND_IN = re.compile(
    r"x{4}|\*{3}|\.{3}|…|[<>{}]|\$\(|^%[sd]$|your|example|placeholder|dummy|sample|change.?me|insert|replace|redacted"
    r"|secret|passwor[dt]|passwd|token|api.?key|test|demo|fake|1234|abcd|qwert|&#?\w{1,6};",
    re.IGNORECASE,
)
"""What is written where a value is meant to be filled in."""

IN_DRAWN = re.compile(
    r"x{6}|\*{3}|\.{3}|…|[<>{}]|example|placeholder|dummy|sample|change.?me|insert|replace|redacted|secret|passwor[dt]"
    r"|123456|abcdef|qwerty|your.{0,3}(?:api|key|token)|(?:^|[_-])(?:your|test|demo|fake|token)(?:[_-]|$)",
    re.IGNORECASE,
)
"""The same in a value that was drawn, where a word of four letters may stand by chance: 1 of 2000 has one."""

WELL_KNOWN = re.compile(r"admin\w{0,4}|guest\w{0,4}|user\w{0,8}|mypass\w{0,4}|postgres|rabbitmq", re.IGNORECASE)
"""Passwords that stand in examples, in full."""

SAMPLE_HOST = re.compile(r"(?:^|\.)(?:example(?:\.\w+)?|test|invalid)\W*$", re.IGNORECASE)
"""Names of machines that do not exist, https://www.rfc-editor.org/rfc/rfc2606."""


_SIGN = re.compile(r"[!#$%&*+?@^~]")


def is_drawn(match: re.Match[str]) -> bool:
    """Whether small letters, capitals and digits change as often as in a drawn value; in words and slugs they do not.

    In a drawn value neighbours differ in class for 30 % (base 32) to 62 % (base 62) of the pairs.
    """
    value = match["value"]
    classes = [_class_of(character) for character in value if character.isalnum()]
    changes = sum(before != after for before, after in pairwise(classes))
    return changes > 0.15 * len(classes) and not _stands_in(value)


def is_no_stand_in(match: re.Match[str]) -> bool:
    """Whether a value of a form that leaves no doubt is more than a stand-in."""
    return not _stands_in(match["value"])


def is_password(match: re.Match[str]) -> bool:
    """Whether what is called a password looks like one: letters and digits mixed or with a sign, 3 bits a character.

    What stands without quotes and has a call, an index or a dotted name in it is a piece of a program.
    """
    value = match["value"]
    runs = re.findall(r"[A-Za-z0-9]+", value)
    mixed = any(re.search("[A-Za-z]", run) and re.search("[0-9]", run) for run in runs) or _SIGN.search(value)
    kinds = {_class_of(character) for character in value if character not in "_-"}
    enough = len(kinds) >= (2 if len(value) >= 20 else 3)
    code = not match["quote"] and re.search(r"[(\[]|\w\.\w", value) is not None
    return bool(mixed) and enough and not code and _bits(value) >= 3 and STAND_IN.search(value) is None


def is_credential(match: re.Match[str]) -> bool:
    """Whether a password in an address is neither a stand-in, nor one of all examples, nor for an example's host."""
    value = match["value"]
    well_known = WELL_KNOWN.fullmatch(value) or value == match["user"] or SAMPLE_HOST.search(match["host"])
    return not well_known and STAND_IN.search(value) is None


def _stands_in(value: str) -> bool:
    return IN_DRAWN.search(value) is not None or len(set(value)) < 8


def _class_of(character: str) -> str:
    return (
        "digit" if character.isdigit() else "capital" if character.isupper() else "small" if character.isalpha() else ""
    )


def _bits(value: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
