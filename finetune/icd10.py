"""Rows from the ICD-10-CM tabular list: a diagnosis, and the chapter of the classification it belongs to.

The list is the public XML of the U.S. National Center for Health Statistics
(https://www.cdc.gov/nchs/icd/icd-10-cm/files.html). A row:

    {"text": "Typhoid meningitis", "label": "Certain infectious and parasitic diseases",
     "instruction": "Which ICD-10 chapter does this diagnosis belong to?", "group": "A01"}

Chapters 20 (external causes) and 22 (special purposes) are left out: they are not diagnoses. Texts are
official titles and inclusion terms. A text that stands in two chapters has no one right answer and is left
out; one that stands in two categories of a chapter is kept in the first, so that no text is on both sides of
a split by `group`. At most 12 rows of a category are kept, by the smallest hash, so that a few categories
with thousands of codes do not fill the set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from pydantic import JsonValue

from evaluation.files import sha256_of_json
from finetune.errors import DataError
from finetune.row_files import Record, Unreadable

INSTRUCTION = "Which ICD-10 chapter does this diagnosis belong to?"
ROWS_PER_CATEGORY = 12
_LEFT_OUT = ("20", "22")
_CODE_RANGE = re.compile(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$")

Terms = dict[str, dict[str, str]]
"""Category → text without regard to case → text as written."""


def read_icd10_chapters(path: Path) -> Iterator[Record | Unreadable]:
    """Yield the rows in the order of the classification, numbered from 1.

    Raises:
        DataError: the file is not the tabular list.
    """
    try:
        # The file's hash was checked before: it is the one the recipe's author looked at.
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"not XML: {error}", where=str(path)) from error
    chapters = {_title(chapter): _terms(chapter) for chapter in root.iter("chapter") if not _is_left_out(chapter)}
    if not any(chapters.values()):
        raise DataError("no chapters with diagnoses in it: not the ICD-10-CM tabular list", where=str(path))
    ambiguous = _texts_of_several_chapters(chapters)
    number = 0
    for label, categories in chapters.items():
        taken = set(ambiguous)
        for group, terms in categories.items():
            fresh = [_row(text, label, group) for key, text in terms.items() if key not in taken]
            taken.update(terms)
            for row in sorted(fresh, key=lambda values: sha256_of_json(values))[:ROWS_PER_CATEGORY]:
                number += 1
                yield Record(number, row)


def _row(text: str, label: str, group: str) -> dict[str, JsonValue]:
    return {"text": text, "label": label, "instruction": INSTRUCTION, "group": group}


def _is_left_out(chapter: ElementTree.Element) -> bool:
    return chapter.findtext("name", "") in _LEFT_OUT


def _title(chapter: ElementTree.Element) -> str:
    return _CODE_RANGE.sub("", _one_line(chapter.findtext("desc", "")))


def _terms(chapter: ElementTree.Element) -> Terms:
    """Collect the texts of each three-character category, which are the diagnoses directly in a section."""
    return {
        category.findtext("name", ""): {text.casefold(): text for text in reversed(_texts(category)) if text}
        for category in chapter.findall("section/diag")
    }


def _texts(category: ElementTree.Element) -> list[str]:
    found = []
    for diagnosis in category.iter("diag"):
        found.append(_one_line(diagnosis.findtext("desc", "")))
        found += [_one_line(note.text or "") for note in diagnosis.findall("inclusionTerm/note")]
    return found


def _texts_of_several_chapters(chapters: dict[str, Terms]) -> set[str]:
    seen: set[str] = set()
    repeated: set[str] = set()
    for categories in chapters.values():
        own = {key for terms in categories.values() for key in terms}
        repeated |= seen & own
        seen |= own
    return repeated


def _one_line(text: str) -> str:
    return " ".join(text.split())
