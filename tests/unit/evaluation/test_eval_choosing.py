"""The likeliest option is found without weighing all of them: it is the one that weighing all of them finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.answers import AnswerLoss, Choice
from evaluation.choosing import SLACK_NATS, Advance, Question, choose_options
from evaluation.option_tree import OptionTree

END = 99
ANSWERS = st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), min_size=2, max_size=8, unique=True).map(
    lambda texts: [(*text, END) for text in texts]
)
PROMPTS = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)

LogProbability = Callable[[tuple[int, ...], int], float]
"""Of a token behind what was read before it."""


def drawn_model(seed: int, sharpness: float) -> LogProbability:
    def of(read: tuple[int, ...], token: int) -> float:
        return -sharpness * Random(f"{seed} {read} {token}").random()

    return of


def sums(of: LogProbability, prompt: tuple[int, ...], answer: Sequence[int]) -> float:
    return sum(of((*prompt, *answer[:i]), token) for i, token in enumerate(answer))


def weighing(of: LogProbability, seen: list[OptionTree] | None = None) -> Callable[..., list[list[float]]]:
    """Weigh trees by the sums over the tokens of their answers."""

    def weigh(trees: Sequence[OptionTree], advance: Advance) -> list[list[float]]:
        if seen is not None:
            seen.extend(trees)
        advance(len(trees))
        return [[sums(of, tree.input_ids[: tree.prompt_length], answer) for answer in tree.answers] for tree in trees]

    return weigh


@settings(max_examples=300, deadline=None)
@given(prompts=PROMPTS, answers=ANSWERS, seed=st.integers(0, 10**6), sharpness=st.floats(0, 6), data=st.data())
def test_the_likeliest_is_that_of_weighing_all(
    prompts: list[tuple[int, ...]], answers: list[tuple[int, ...]], seed: int, sharpness: float, data: st.DataObject
) -> None:
    options = st.integers(0, len(answers) - 1)
    asked = [Question(prompt, data.draw(options), data.draw(st.none() | options)) for prompt in prompts]
    of, told = drawn_model(seed, sharpness), []
    choices = choose_options(asked, answers, weighing(of), told.append)
    for question, choice in zip(asked, choices, strict=True):
        row, reference = [sums(of, tuple(question.prompt), answer) for answer in answers], question.reference
        assert choice.likeliest == row.index(max(row))
        assert choice.reference.nll == pytest.approx(-row[reference])
        assert choice.reference.tokens == len(answers[reference])
        assert all(choice.weighed[option] == pytest.approx(row[option]) for option in choice.weighed)
        left_out = [value for option, value in enumerate(row) if option not in choice.weighed]
        assert all(value < max(row[option] for option in question.known) - SLACK_NATS for value in left_out)
    assert sum(told) == 2 * len(prompts)


def test_a_sure_guess_and_the_reference_are_all_that_is_read() -> None:
    answers = [(1, 2, END), (1, 3, END), (2, END)]

    def sure(read: tuple[int, ...], token: int) -> float:
        return -0.01 if token == {1: 1, 2: 2, 3: END}[len(read)] else -9.0

    trees: list[OptionTree] = []
    for reference in (0, 2):
        (choice,) = choose_options([Question((7,), reference, 0)], answers, weighing(sure, trees), lambda _: None)
        assert set(choice.weighed) == {0, reference}
        assert choice.likeliest == 0
    assert [tree.input_ids for tree in trees] == [(7, 1, 2), (7, 1, 2, 2)]


def test_an_option_that_may_be_likelier_by_a_rounding_is_weighed() -> None:
    def near(_: tuple[int, ...], token: int) -> float:
        return {1: -2.0, 2: -2.0 - 0.99 * SLACK_NATS, 3: -2.0 - 1.01 * SLACK_NATS, END: 0.0}[token]

    (choice,) = choose_options([Question((7,), 0, 0)], [(1, END), (2, END), (3, END)], weighing(near), lambda _: None)
    assert list(choice.weighed) == [0, 1]


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_what_is_no_number_is_not_passed_over(broken: float) -> None:
    def of(_: tuple[int, ...], token: int) -> float:
        return broken if token == 2 else -0.1

    (choice,) = choose_options([Question((7,), 0, 0)], [(1, END), (2, END)], weighing(of), lambda _: None)
    assert not math.isfinite(choice.weighed[1])


def test_of_equally_likely_options_the_first_is_chosen() -> None:
    assert Choice({3: -1.0, 1: -1.0, 2: -2.0}, AnswerLoss(1.0, 2)).likeliest == 1


def test_nothing_is_asked_of_no_prompts() -> None:
    assert choose_options([], [(1, END)], weighing(drawn_model(0, 1.0)), lambda _: None) == []
