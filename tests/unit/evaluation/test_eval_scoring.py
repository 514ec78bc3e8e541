from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from evaluation.scoring import chrf, exact_match, normalized, rouge_l, token_f1

SCORES = [exact_match, token_f1, rouge_l, chrf]


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("New  York", "New York", 0.0),
    ],
)
def test_exact_match_forgives_ends_and_composition_only(generated: str, reference: str, expected: float) -> None:
    assert exact_match(generated, reference) == expected


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat cat", "cat", 2 / 3),
        ("red blue", "blue green", 0.5),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("the", "cat", 0.0),
        ("北京市", "北京", 0.8),
        ("東京です", "東京", 2 / 3),
        ("«да»", "да", 1.0),
        ("서울 시", "서울", 2 / 3),
    ],
)
def test_token_f1(generated: str, reference: str, expected: float) -> None:
    assert token_f1(generated, reference) == pytest.approx(expected)


@given(st.text(st.characters(codec="ascii"), max_size=40), st.text(st.characters(codec="ascii"), max_size=40))
def test_rouge_l_of_ascii_is_the_package_s_own(generated: str, reference: str) -> None:
    own = RougeScorer(["rougeL"]).score(reference, generated)["rougeL"].fmeasure
    assert rouge_l(generated, reference) == pytest.approx(own)


def test_rouge_l_reads_other_scripts() -> None:
    assert rouge_l("Москва река", "Москва") == pytest.approx(2 / 3)
    assert rouge_l("北京", "北京") == 1.0
    assert rouge_l("हिन्दी भाषा", "हिन्दी") == pytest.approx(2 / 3)


def test_chrf_is_sacrebleu_s_as_a_share() -> None:
    theirs = CHRF().sentence_score("the cat", ["the cats"]).score
    assert chrf("the cat", "the cats") == pytest.approx(theirs / 100)
    assert 0 < chrf("the cat", "the cats") < 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_lie_between_zero_and_one(generated: str, reference: str) -> None:
    for score in SCORES:
        assert 0 <= score(generated, reference) <= 1


@given(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=20))
def test_a_text_scores_one_beside_itself(text: str) -> None:
    assert exact_match(text, text) == 1
    assert normalized(normalized(text)) == normalized(text)
    assert token_f1(text, text) == rouge_l(text, text) == 1
    assert chrf(text, text) == pytest.approx(1)
