from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.near_duplicates import LISTED, DuplicateFinder, Repeat, Repetitions
from evaluation.shingles import WORD_WEIGHT, Lookup, runs, shingle_sets, words

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORT = "the mill by the river was sold to a baker who wanted nothing but its wheel"


def babble(source: random.Random, length: int) -> str:
    return " ".join("".join(source.choices(LETTERS, k=source.randint(2, 9))) for _ in range(length))


def repetitions(texts: Sequence[str]) -> Repetitions:
    finder = DuplicateFinder()
    for number, text in enumerate(texts):
        finder.see(f"row:{number}", text)
    return finder.found()


def similarity(one: str, other: str) -> float:
    first, second = shingle_sets([one, other])
    return len(np.intersect1d(first, second)) / len(np.union1d(first, second))


@pytest.mark.parametrize(
    ("later", "kind"),
    [
        (SHORT, "exact"),
        (f"{SHORT.upper()}!", "exact"),
        (SHORT.replace("baker", "maker"), "near"),
        (SHORT.replace("baker", "tailor"), None),
        ("a text about something else altogether, and that is all there is to say of it", None),
        ("", None),
    ],
)
def test_a_row_that_repeats_an_earlier_one_is_counted(later: str, kind: str | None) -> None:
    found = repetitions(["something that nobody says twice", SHORT, later])
    assert (found.rows, found.exact, found.near) == (3, int(kind == "exact"), int(kind == "near"))
    assert [(one.name, one.earlier, one.kind) for one in found.listed] == ([("row:2", "row:1", kind)] if kind else [])


def test_chinese_rows_repeat_too() -> None:
    text = "租赁期限届满承租人继续使用租赁物而出租人没有提出异议的原租赁合同继续有效但租赁期限为不定期"
    found = repetitions(
        [text, text.replace("继续有效", "依然有效"), "合同", "本合同。", "公司辞职申请是提前一个月辞职"]
    )
    assert (found.exact, found.near) == (0, 1)


def test_empty_rows_repeat_each_other_but_not_what_has_only_punctuation() -> None:
    assert repetitions(["", "!", "", "?", "?"]).exact == 2


def test_no_rows_repeat_nothing() -> None:
    assert DuplicateFinder().found() == Repetitions(0, 0, 0, ())


def test_only_the_first_repeats_are_listed_and_asking_changes_nothing() -> None:
    finder = DuplicateFinder()
    for number in range(LISTED + 10):
        finder.see(f"row:{number}", SHORT)
    found = finder.found()
    assert (found.exact, len(found.listed)) == (LISTED + 9, LISTED)
    assert found.listed[0] == Repeat("row:1", "row:0", "exact")
    finder.see("last", "something else that is said once")
    assert finder.found() == Repetitions(LISTED + 11, LISTED + 9, 0, found.listed)


def test_a_template_makes_no_repeats() -> None:
    source = random.Random(0)
    template = babble(source, 30)
    assert repetitions([f"{template} {babble(source, 5)}" for _ in range(100)]).near == 0


def test_a_repeat_beside_a_template_is_found() -> None:
    source = random.Random(0)
    template = babble(source, 30)
    own = [babble(source, 12) for _ in range(100)]
    assert repetitions([*(f"{template} {text}" for text in own), f"{template} {own[40]}x"]).near == 1


@pytest.mark.parametrize("length", [15, 40, 200])
def test_planted_repeats_are_found_among_other_rows(length: int) -> None:
    """Longer texts are compared by an estimate, so one in a hundred may be missed."""
    source = random.Random(length)
    rows = [babble(source, length) for _ in range(400)]
    altered = []
    for text in rows[:100]:
        parts = text.split()
        for place in source.sample(range(length), max(1, length // 30)):
            parts[place] = parts[place][:-1]
        altered.append(" ".join(parts))
    assert all(similarity(one, other) >= 0.85 for one, other in zip(rows, altered, strict=False))
    found = repetitions([*rows, *altered])
    assert found.exact == 0
    assert 99 <= found.near <= 100


def test_long_rows_that_others_add_to_are_found() -> None:
    source = random.Random(4)
    rows = [babble(source, 200) for _ in range(40)]
    assert repetitions([*rows, *(f"{text} {babble(source, 30)}" for text in rows)]).near >= 36


def test_all_of_several_repeats_are_found() -> None:
    source = random.Random(4)
    variants = [SHORT, SHORT.replace("baker", "maker"), SHORT.replace("mill", "hill"), f"{SHORT}s"]
    assert repetitions([*(babble(source, 12) for _ in range(40)), *variants]).near == 3


def test_unlike_rows_are_not_taken_for_repeats() -> None:
    source = random.Random(3)
    rows = [babble(source, 60) for _ in range(200)]
    altered = [" ".join(text.split()[:50] + babble(source, 12).split()) for text in rows]
    assert all(0.6 <= similarity(one, other) < 0.75 for one, other in zip(rows, altered, strict=True))
    assert repetitions([*rows, *altered]).near <= 2


@given(st.lists(st.text(max_size=40), max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_text_can_be_cut_and_alone_as_among_others(texts: list[str]) -> None:
    together = shingle_sets(texts)
    assert len(together) == len(texts)
    for text, shingles in zip(texts, together, strict=True):
        assert np.array_equal(shingle_sets([text])[0], shingles)


def test_a_run_is_the_same_number_wherever_it_stands() -> None:
    found = runs(words(["So, THE mill by!", "", "the mill BY the river"]), 3 * WORD_WEIGHT)
    assert list(found.text) == [0, 0, 2, 2, 2]
    assert found.hashes[1] == found.hashes[2]
    assert len(set(found.hashes.tolist())) == 4


def test_looking_up_finds_what_is_there_and_nothing_else() -> None:
    numbers = np.unique(np.random.default_rng(0).integers(0, 1 << 63, 2000, np.uint64))
    at, place = Lookup(numbers[::2]).find(numbers)
    assert np.array_equal(at, np.arange(0, len(numbers), 2))
    assert np.array_equal(place, np.arange(len(at)))
    assert not len(Lookup(numbers[:0]).find(numbers)[0])
