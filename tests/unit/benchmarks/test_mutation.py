"""The tool that breaks guards: which breaks it makes, in which order tests are tried, and what it writes down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import Mutant, mutants_of
from benchmarks.mutate_guards import GUARDS, ROOT, Reached
from benchmarks.mutation_table import BEGIN, END, GUARANTEES, Score, write_scores

MODULE = '''"""Text."""
LIMIT = 4


def check(number: int, name: str) -> None:
    """Text."""
    if number > LIMIT and not name:
        raise ValueError(f"{number:5}")
    print(name)
'''


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mutant]:
    (tmp_path / "module.py").write_text(MODULE)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    return list(mutants_of("module.py"))


def test_each_break_is_one_and_is_python(made: list[Mutant]) -> None:
    assert sorted(one.what for one in made) == [
        "4 → 4001",
        "if number > LIMIT and (not name) → if False",
        "not name → +bool(name)",
        "number > LIMIT and (not name) → number > LIMIT or not name",
        "number > LIMIT → number >= LIMIT",
        "print(name) → pass",
        "raise ValueError(f'{number:5}') → pass",
    ]
    whole = ast.unparse(ast.parse(MODULE)).splitlines()
    for one in made:
        broken = ast.unparse(ast.parse(one.text)).splitlines()
        assert sum(line != other for line, other in zip(whole, broken, strict=True)) == 1
        assert one.line in one.lines


def test_tests_that_reach_the_line_come_first_and_the_quickest_of_a_file() -> None:
    known = Reached({"b::slow": 3.0, "b::quick": 1.0, "a::far": 0.1, "a::near": 9.0}, {7: ["b::slow", "a::near"]})
    assert list(known.order(Mutant("m", 7, "", "", frozenset({7})))) == ["b::slow", "a::near", "b::quick", "a::far"]
    assert list(known.order(Mutant("m", 1, "", "", frozenset({1})))) == ["b::quick", "b::slow", "a::far", "a::near"]


def test_every_guard_and_every_test_file_is_there() -> None:
    for module, tests in GUARDS.items():
        assert (ROOT / module).is_file()
        assert all((ROOT / test).is_file() for test in tests)
    assert f"{BEGIN}\n" in GUARANTEES.read_text(encoding="utf-8")


def test_lines_of_guards_that_were_not_tried_now_stay(tmp_path: Path) -> None:
    file = tmp_path / "guarantees.md"
    file.write_text(f"before\n{BEGIN}\n\n{END}\nafter\n")
    write_scores([Score("b.py", 4, 3, 0, 1, "2026-01-02"), Score("a.py", 9, 2, 1, 0, "2026-01-01")], file)
    write_scores([Score("b.py", 4, 4, 0, 0, "2026-01-03")], file)
    text = file.read_text()
    assert [line for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| a.py | 9 | 3 | 2 | 1 | 0 | 2026-01-01 |",
        "| b.py | 4 | 4 | 4 | 0 | 0 | 2026-01-03 |",
        "| all | 13 | 7 | 6 | 1 | 0 | 2026-01-03 |",
    ]
    assert "- guards of which every break was tried: 4 of 4 noticed (100.0%)\n" in text
    sampled = "2 of 3 noticed (66.7%, 20.8% to 93.9%; of 9 breaks), ran out of time: 1"
    assert f"- guards of which a random sample was tried: {sampled}\n" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
