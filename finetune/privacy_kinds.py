"""Finds private numbers and addresses by their form: e-mail, phone, IBAN, card, US social security, Chinese identity.

Where a number carries a check digit, only numbers whose digit is right are found. Digits may be full-width, between
Chinese characters, and grouped by spaces or dashes. Nothing found here is kept: a finding is a kind and a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain

import phonenumbers
from stdnum import iban, isbn, luhn
from stdnum.iso7064 import mod_11_2
from stdnum.us import ssn

from finetune.recipe_data import PrivateKind

Span = tuple[int, int]

PHONE_REGIONS = frozenset(phonenumbers.SUPPORTED_REGIONS)
"""Countries (`DE`) whose phone numbers can be told without their country code."""


@dataclass(frozen=True)
class Found:
    """Characters from `start` to before `stop` that are of a private kind."""

    kind: PrivateKind
    start: int
    stop: int


def find_by_form(text: str, kinds: Sequence[PrivateKind], regions: Sequence[str]) -> Iterator[Found]:
    """Everything of these kinds, the more specific kind first; findings of different kinds may overlap.

    With regions (`DE`), phone numbers are also found as they are dialled there, without + and country code.
    """
    if not _TELLING.search(text):
        return
    plain = _in_ascii(text)
    for kind, detector in _DETECTORS:
        if kind in kinds:
            yield from (Found(kind, start, stop) for start, stop in detector(plain))
    if "phone" in kinds:
        yield from (Found("phone", start, stop) for start, stop in _phones(plain, regions))


def _in_ascii(text: str) -> str:
    """The text with full-width and Arabic digits, odd spaces and odd dashes replaced, each character by one."""
    return text if text.isascii() else text.translate(_ASCII)


def _alike() -> dict[int, int]:
    full_width = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    digits = {zero + digit: ord("0") + digit for zero in (0x0660, 0x06F0, 0x0966) for digit in range(10)}
    spaces = dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), ord(" "))
    dashes = dict.fromkeys((*range(0x2010, 0x2016), 0x2212), ord("-"))
    return full_width | digits | spaces | dashes


_ASCII = _alike()
# Nothing is found in a text without one of these.
_TELLING = re.compile("[@0-9" + "".join(chr(odd) for odd, code in _ASCII.items() if chr(code) in "@0123456789") + "]")

# Latin letters with accents belong to an address; Chinese characters, which may stand directly beside one, do not.
_LETTERS = "A-Za-z0-9À-ɏ"
_EMAIL = re.compile(
    rf"(?<![{_LETTERS}_%+-])(?P<local>[{_LETTERS}_%+-][{_LETTERS}._%+'-]{{0,63}})"
    rf"@(?:[{_LETTERS}][{_LETTERS}-]{{0,62}}\.){{1,8}}(?P<top>[A-Za-z]{{2,24}})(?![{_LETTERS}])"
)
# Pictures of double size are called logo@2x.png.
_FILE_ENDINGS = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "pdf", "html", "css", "js", "json", "py"})


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        remote = match["local"] == "git" and text.startswith(":", match.end())
        if match["top"].lower() not in _FILE_ENDINGS and not remote:
            yield match.span()


# Inside a look-ahead, so that a group before a number which has the form as well does not hide it.
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?=((?:[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,36}|[a-z]{2}[0-9]{2}[a-z0-9]{11,30})(?![a-z0-9])))"
)
_LETTER_VALUES = {ord("A") + place: str(10 + place) for place in range(26)}
_GROUP_END = re.compile(r"(?<=[A-Za-z0-9])(?![A-Za-z0-9])")


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        # What follows in capitals, such as `BIC`, is taken along by the form: the part that is valid counts.
        ends = (end.start() for end in _GROUP_END.finditer(match[1]))
        yield from ((match.start(), match.start() + end) for end in ends if _is_iban(match[1][:end]))


def _is_iban(written: str) -> bool:
    number = re.sub("[ -]", "", written).upper()
    # The library looks up the country first, which takes thirty times as long as the division.
    return int((number[4:] + number[:4]).translate(_LETTER_VALUES)) % 97 == 1 and iban.is_valid(number)


# Groups as they are embossed, or none: 4-4-4-4(-3), 4-6-5 (American Express), 4-6-4 (Diners), and 6-13 (UnionPay).
_CARD = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)(?=((?:[0-9]{14,19}|[0-9]{6}[ -][0-9]{13}"
    r"|[0-9]{4}(?P<dash>[ -])[0-9]{4}(?P=dash)[0-9]{4}(?P=dash)[0-9]{4}(?:(?P=dash)[0-9]{3}(?![0-9]))?"
    r"|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4,5})(?![A-Za-z0-9_]|\.[0-9])))"
)
# First digits and lengths of the issuers, https://en.wikipedia.org/wiki/Payment_card_number: Visa, Mastercard, American
# Express, Discover, Diners, JCB, UnionPay and Maestro. Without them a tenth of all long numbers would pass for cards.
_ISSUED = re.compile(
    r"4[0-9]{15}|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}|3[47][0-9]{13}"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|35(?:2[89]|[3-8][0-9]))[0-9]{12}|3(?:0[0-5]|[689][0-9])[0-9]{11}"
    r"|62[0-9]{14,17}|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{12,15}"
)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub("[ -]", "", match[1])
        if _ISSUED.fullmatch(number) and len(set(number)) > 1 and luhn.is_valid(number):
            yield match.span(1)


_SSN = re.compile(r"(?<![A-Za-z0-9_-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![A-Za-z0-9_-])")
# Without dashes they are any numbers: there it must be said what they are.
_SSN_NAMED = re.compile(
    r"(?:\bSSN|social security (?:number|no\.?|#))\W{0,3}(?:is|was)?\W{0,3}([0-9]{3} ?[0-9]{2} ?[0-9]{4})(?![0-9])",
    re.IGNORECASE,
)


def _ssns(text: str) -> Iterator[Span]:
    named = (match.span(1) for match in _SSN_NAMED.finditer(text))
    for start, stop in chain((match.span() for match in _SSN.finditer(text)), named):
        if ssn.is_valid(text[start:stop].replace(" ", "-")):
            yield start, stop


# Province (after a 9, of foreigners with permanent residence), county, date of birth, and serial number with check
# digit, https://openstd.samr.gov.cn GB 11643-1999; the numbers of 15 digits before that have none. Counties are not
# looked up: those that no longer exist stand in the numbers of whoever was born there.
_CN_ID = re.compile(
    r"(?<![A-Za-z0-9_])(?:9?(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71)|8[1-3])[0-9]{3,4}(?P<dash>[ -]?)"
    r"(?P<born>(?:18|19|20)[0-9]{6})(?P=dash)[0-9]{3}[0-9Xx](?![A-Za-z0-9_])"
)


def _cn_ids(text: str) -> Iterator[Span]:
    for match in _CN_ID.finditer(text):
        number = re.sub("[ -]", "", match[0]).upper()
        if len(number) == 18 and mod_11_2.is_valid(number) and _is_date(match["born"]):
            yield match.span()


def _is_date(digits: str) -> bool:
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


_DETECTORS: tuple[tuple[PrivateKind, Callable[[str], Iterator[Span]]], ...] = (
    ("email", _emails),
    ("iban", _ibans),
    ("cn_id", _cn_ids),
    ("card", _cards),
    ("us_ssn", _ssns),
)

# The library takes half a millisecond for a sentence, so it is shown only what has enough digits.
_DIALLED = re.compile(r"(?:\+ ?)?\(?[0-9](?:[ ().~/-]{0,3}[0-9]){6,}")
# How + is dialled: 00 in most countries, 011 in North America. After another number it may be a group of that.
_ABROAD = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9][ .,:~/-])\(?(?P<prefix>00|011)(?=[ ().~/-]{0,3}[1-9](?:[ ().~/-]{0,3}[0-9]){5,14})"
)
_UNIT = re.compile(
    r" ?(?:[€$£¥%]|元|美元|万|亿|(?:EUR|USD|CNY|RMB|GBP|CHF|JPY|euros?|dollars?|Euro|Dollar)(?![A-Za-z]))"
)
# A decimal, a date, and an address of a machine.
_NO_NUMBER = re.compile(r"\+?[0-9]{1,3}\.[0-9]+|[0-9]{1,2}([./-])[0-9]{1,2}\1[0-9]{4}|[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_RANGE = re.compile(r"[0-9]\.[0-9]+ ?[-/] ?[0-9]+\.[0-9]")
_NOT_AFTER = re.compile(
    r"(?:(?:ISBN(?:-1[03])?|EAN|GTIN|UPC|PMID|DOI|Case)[: ]{0,3}|[/=_#&@]|[0-9][.:,])$", re.IGNORECASE
)
_NOT_BEFORE = re.compile(r"[.:,][0-9]|-?[A-Za-z0-9_]")


def _phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    """Numbers as they are dialled in any of the regions and from abroad; what is a part of another is left out."""
    end = 0
    spans = {*_dialled_abroad(text), *_dialled(text, regions)}
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if stop > end:
            yield start, stop
            end = stop


def _dialled_abroad(text: str) -> Iterator[Span]:
    if "00" not in text and "011" not in text:
        return
    for prefix in _ABROAD.finditer(text):
        plus = "+".ljust(len(prefix["prefix"]))  # in as many characters
        number = text[prefix.end() : prefix.end() + 60].partition("[")[0]
        window = text[prefix.start() : prefix.start("prefix")] + plus + number
        yield from _read(text, prefix.start(), window, None)


def _dialled(text: str, regions: Sequence[str]) -> Iterator[Span]:
    if not regions and "+" not in text:
        return
    for candidate in _DIALLED.finditer(text):
        if not regions and not candidate[0].startswith("+"):
            continue
        # One character before, since a letter or a currency sign there rules a number out; some after, for `ext. 123`.
        start = candidate.start() - (text[max(0, candidate.start() - 1) : candidate.start()] not in ("", "[", "("))
        after = text[candidate.end() : candidate.end() + 12].partition("[")[0]
        window = text[start : candidate.end()] + after
        for region in regions or (None,):
            yield from _read(text, start, window, region)


def _read(text: str, start: int, window: str, region: str | None) -> Iterator[Span]:
    """Phone numbers of a window that stands for the text from a place on, as they are dialled in a region."""
    for match in phonenumbers.PhoneNumberMatcher(window, region):
        first, stop = start + match.start, start + match.end
        # A parenthesis that is closed after the number, or never, belongs to the sentence.
        first += text[first] == "(" and ")" not in text[first:stop]
        if _is_dialled(text, first, stop, match.number, region):
            yield first, stop


def _is_dialled(text: str, start: int, stop: int, number: phonenumbers.PhoneNumber, region: str | None) -> bool:
    """Whether what could be a phone number is not rather an amount, a date, an ISBN or a serial number."""
    raw = text[start:stop]
    if not _DIALLED.match(raw):  # a piece of a longer number
        return False
    if _NO_NUMBER.fullmatch(raw) or _RANGE.search(raw) or _UNIT.match(text, stop):
        return False
    if raw.startswith("+"):
        return True
    if _NOT_AFTER.search(text, max(0, start - 12), start) or _NOT_BEFORE.match(text, stop):
        return False
    if raw.count("-") >= 3 and isbn.is_valid(raw):
        return False
    if region is None:
        return True
    # Who dials a land line from within a country begins with its trunk prefix; other numbers of that length do not.
    land_line = phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.FIXED_LINE
    trunk = phonenumbers.ndd_prefix_for_region(region, True)
    return not land_line or trunk != "0" or raw.lstrip("(").startswith("0")
