from __future__ import annotations

import pytest

from evaluation.baselines import classical_answers, question_text
from evaluation.conversation import Conversation, Message
from evaluation.errors import DataError

TRAIN = [
    ("the cat purrs", "cat"),
    ("a cat meows", "cat"),
    ("the dog barks", "dog"),
    ("dogs bark loudly", "dog"),
    ("cats purr", "cat"),
]


def test_majority_says_the_commonest_label() -> None:
    assert classical_answers("majority", TRAIN, ["a dog", "?"]) == ["cat", "cat"]
    assert classical_answers("majority", [("x", "b"), ("y", "a")], ["z"]) == ["a"]


def test_tfidf_learns_words() -> None:
    assert classical_answers("tfidf", TRAIN, ["my dog barked", "purring cat"]) == ["dog", "cat"]


def test_tfidf_learns_scripts_without_spaces() -> None:
    train = [("猫が好き", "cat"), ("犬が好き", "dog"), ("白い猫", "cat"), ("白い犬", "dog")]
    assert classical_answers("tfidf", train, ["黒い犬", "黒い猫"]) == ["dog", "cat"]


@pytest.mark.parametrize("train", [[("a", "x"), ("b", "x")], [("", "x"), (" ", "x"), ("", "y")]])
def test_tfidf_without_anything_to_tell_apart_is_the_majority(train: list[tuple[str, str]]) -> None:
    assert classical_answers("tfidf", train, ["q", ""]) == ["x", "x"]


def test_answers_repeat() -> None:
    asked = ["dog cat", "", "loud"]
    assert classical_answers("tfidf", TRAIN, asked) == classical_answers("tfidf", TRAIN, asked)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="needs training rows"):
        classical_answers("majority", [], ["q"])


def test_no_questions_no_answers() -> None:
    assert classical_answers("tfidf", TRAIN, []) == []


def test_question_is_the_last_user_message() -> None:
    asked = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "last"), ("tool", "t")]
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in asked)
    assert question_text(Conversation(messages=messages)) == "last"
    assert question_text(Conversation(messages=messages[:1])) == "s"
    assert question_text(Conversation(messages=())) == ""
