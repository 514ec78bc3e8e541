"""The ICD-10-CM builder, on a tabular list small enough to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.icd10 import INSTRUCTION, ROWS_PER_CATEGORY, read_icd10_chapters
from finetune.row_files import Record


def diagnosis(code: str, title: str, *inside: str) -> str:
    """Spell a diagnosis with what stands in it."""
    return f"<diag><name>{code}</name><desc>{title}</desc>{''.join(inside)}</diag>"


def terms(*notes: str) -> str:
    """Spell inclusion terms."""
    return "<inclusionTerm>" + "".join(f"<note>{note}</note>" for note in notes) + "</inclusionTerm>"


def chapter(number: int, title: str, *categories: str) -> str:
    """Spell a chapter with one section."""
    return (
        f"<chapter><name>{number}</name><desc>{title}</desc>"
        f'<section id="x"><desc>Section</desc>{"".join(categories)}</section></chapter>'
    )


def build(tmp_path: Path, *chapters: str) -> list[tuple[str, str, str]]:
    """Return (text, label, group) of the rows built from these chapters."""
    path = tmp_path / "tabular.xml"
    path.write_text(f"<ICD10CM.tabular>{''.join(chapters)}</ICD10CM.tabular>", encoding="utf-8")
    rows = list(read_icd10_chapters(path))
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
    built = []
    for row in rows:
        assert isinstance(row, Record)
        assert row.values["instruction"] == INSTRUCTION
        built.append((str(row.values["text"]), str(row.values["label"]), str(row.values["group"])))
    return built


def test_titles_and_inclusion_terms_become_rows_under_the_chapter_without_its_codes(tmp_path: Path) -> None:
    fever = diagnosis("A01.0", "Typhoid fever", terms("Infection due to Salmonella typhi"))
    rows = build(tmp_path, chapter(1, "Infections (A00-B99)", diagnosis("A01", "Typhoid  fevers", fever)))
    assert sorted(rows) == [
        ("Infection due to Salmonella typhi", "Infections", "A01"),
        ("Typhoid fever", "Infections", "A01"),
        ("Typhoid fevers", "Infections", "A01"),
    ]


def test_chapters_20_and_22_are_left_out(tmp_path: Path) -> None:
    rows = build(
        tmp_path,
        chapter(1, "One", diagnosis("A01", "a")),
        chapter(20, "Twenty", diagnosis("V01", "v")),
        chapter(22, "Twenty-two", diagnosis("U01", "u")),
    )
    assert rows == [("a", "One", "A01")]


def test_terms_that_differ_in_case_alone_are_one_row_as_first_written(tmp_path: Path) -> None:
    rows = build(tmp_path, chapter(1, "One", diagnosis("A01", "Cholera", terms("CHOLERA", "cholera"))))
    assert rows == [("Cholera", "One", "A01")]


def test_a_text_of_two_chapters_is_left_out_and_one_of_two_categories_kept_once(tmp_path: Path) -> None:
    rows = build(
        tmp_path,
        chapter(1, "One", diagnosis("A01", "Both"), diagnosis("A02", "Twice"), diagnosis("A03", "twice")),
        chapter(2, "Two", diagnosis("C01", "both"), diagnosis("C02", "Once")),
    )
    assert rows == [("Twice", "One", "A02"), ("Once", "Two", "C02")]


def test_a_category_is_capped_by_hash_whatever_the_order(tmp_path: Path) -> None:
    codes = [diagnosis(f"A01.{number}", f"Diagnosis {number}") for number in range(30)]
    rows = build(tmp_path, chapter(1, "One", diagnosis("A01", "All", *codes)))
    assert len(rows) == ROWS_PER_CATEGORY
    assert build(tmp_path, chapter(1, "One", diagnosis("A01", "All", *reversed(codes)))) == rows


@pytest.mark.parametrize("text", ["not xml", "<other/>", "<a><chapter><name>1</name></chapter></a>"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.xml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        list(read_icd10_chapters(path))
