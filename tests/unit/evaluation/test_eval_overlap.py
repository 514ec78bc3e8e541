from __future__ import annotations

import pytest
from fakes import sample
from hypothesis import given
from hypothesis import strategies as st

from evaluation.conversation import Conversation, Message
from evaluation.overlap import Overlap, TrainPair, find_overlaps, normalized_for_overlap, prompt_text

TRAIN = [
    TrainPair("t:1", "What is red?", "A colour."),
    TrainPair("t:2", "What is red?", "Something else"),
    TrainPair("t:3", "How are you?", "Fine"),
    TrainPair("t:4", "", "Lonely answer"),
]


@pytest.mark.parametrize(
    ("asked", "reference", "expected"),
    [
        ("What is red?", "A colour.", ("t:1", "exact", "both")),
        ("what is RED", "a colour", ("t:1", "normalized", "both")),
        ("What is red?", "something  else!", ("t:2", "normalized", "both")),
        ("What is red?", "New", ("t:1", "exact", "prompt")),
        ("WHAT IS\tRED", "New", ("t:1", "normalized", "prompt")),
        ("New?", "Fine", ("t:3", "exact", "answer")),
        ("New?", "fine.", ("t:3", "normalized", "answer")),
        ("What is red?", "Fine", ("t:1", "exact", "prompt")),
        ("!", "lonely answer", ("t:4", "normalized", "answer")),
        ("?", "!", None),
        ("What is blue?", "A shade.", None),
    ],
)
def test_the_strongest_overlap_is_reported(asked: str, reference: str, expected: tuple[str, str, str] | None) -> None:
    found = find_overlaps(TRAIN, [sample(7, asked, reference)], compare_answers=True)
    assert [(one.train, one.kind, one.part) for one in found] == ([expected] if expected else [])


def test_answers_of_closed_sets_can_be_left_out() -> None:
    samples = [sample(1, "New?", "Fine"), sample(2, "How are you", "Fine")]
    assert find_overlaps(TRAIN, samples, compare_answers=False) == (
        Overlap(held_out="rows.jsonl:2", train="t:3", kind="normalized", part="both"),
    )


def test_normalisation_folds_case_width_punctuation_and_space() -> None:
    assert normalized_for_overlap("Ｓtraße — № 5!") == "strasseno5"


@given(st.text(max_size=30))
def test_normalisation_is_idempotent(text: str) -> None:
    once = normalized_for_overlap(text)
    assert normalized_for_overlap(once) == once


@given(st.lists(st.tuples(st.text("abc!", min_size=1), st.text("xyz ", min_size=1)), max_size=30))
def test_every_planted_row_is_found(rows: list[tuple[str, str]]) -> None:
    train = [TrainPair(f"t:{number}", *row) for number, row in enumerate(rows)]
    samples = [sample(number, *row) for number, row in enumerate(rows)]
    found = find_overlaps(train, samples, compare_answers=True)
    assert [one.held_out for one in found] == [one.id for one in samples]
    assert all((one.kind, one.part) == ("exact", "both") for one in found)


def test_prompt_text_leaves_the_system_message_out() -> None:
    messages = (Message(role="system", content="s"), Message(role="user", content="u"))
    assert prompt_text(Conversation(messages=messages)) == "u"
