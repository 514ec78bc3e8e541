"""Scores of one generated text beside its reference, each between 0 and 1, higher is better."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.chrf import CHRF

# Han, Hiragana and Katakana are written without spaces; Hangul is not.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """Return the text in Unicode form NFC without surrounding white space, and otherwise as it is.

    This is all that `exact_match` forgives: case, punctuation and inner spaces count.
    """
    return unicodedata.normalize("NFC", text).strip()


def exact_match(generated: str, reference: str) -> float:
    """Return 1 if both texts are equal once `normalized`, else 0."""
    return float(normalized(generated) == normalized(reference))


def token_f1(generated: str, reference: str) -> float:
    """F1 of the words that both texts share, as SQuAD defines it; Chinese and Japanese count by character.

    Case, punctuation and the English articles are dropped first. Where either text is left with no words, the
    score is 1 if both are and 0 otherwise. The definition is that of SQuAD 2.0
    (https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/), with
    Unicode punctuation beside ASCII's as in MLQA (https://arxiv.org/abs/1910.07475).
    """
    ours, theirs = Counter(_squad_words(generated)), Counter(_squad_words(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    # 2PR / (P + R) with P = shared / ours and R = shared / theirs.
    return 2 * shared / (ours.total() + theirs.total())


def rouge_l(generated: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (https://aclanthology.org/W04-1013), not stemmed.

    The words are those of the `rouge-score` package for ASCII text; its own tokenizer drops every other
    letter.
    """
    scorer = RougeScorer(["rougeL"], tokenizer=_AnyScript())
    return _unit(scorer.score(reference, generated)["rougeL"].fmeasure)


def chrf(generated: str, reference: str) -> float:
    """F2 of character n-grams up to 6 (chrF2, https://aclanthology.org/W15-3049), from 0 to 1."""
    return _unit(CHRF().sentence_score(generated, [reference]).score / 100)


class _AnyScript(Tokenizer):  # type: ignore[misc]  # rouge-score has no types
    """Lower-case words of letters, marks and digits of any script."""

    def tokenize(self, text: str) -> list[str]:
        kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in text.lower())
        return _UNSPACED.sub(r" \1 ", "".join(kept)).split()


def _squad_words(text: str) -> list[str]:
    kept = "".join(char for char in text.lower() if not _is_punctuation(char))
    return _UNSPACED.sub(r" \1 ", _ARTICLES.sub(" ", kept)).split()


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def _unit(score: float) -> float:
    return min(1.0, max(0.0, score))
