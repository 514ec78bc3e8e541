"""Guesses which languages texts are in, with the model that comes with py3langid (Naive Bayes over byte n-grams)."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable

from py3langid.langid import MODEL_FILE, LanguageIdentifier

UNSURE = "und"
"""What ISO 639 calls undetermined."""
SHORTEST_BYTES = 15
"""Letters in UTF-8 that a guess needs: 15 English letters, 5 Chinese characters."""
LEAST_CONFIDENCE = 0.5
_CHINESE = frozenset({"yue", "wuu"})
"""Formal Chinese is now and then taken for the written forms of Cantonese and Wu."""
_NOT_GUESSED = frozenset({"la", "vo"})
"""English with the names of diseases is taken for Latin far more often than anyone trains on Latin."""


def languages_of(texts: Iterable[str]) -> Counter[str]:
    """Count the texts by language (two letters, ISO 639-1), and as `und` those that are too short or unclear."""
    return Counter(language_of(text) for text in texts)


def language_of(text: str) -> str:
    """Return the language that most of the text is in, or `und`."""
    if sum(len(letter.encode("utf-8", "surrogatepass")) for letter in text if letter.isalpha()) < SHORTEST_BYTES:
        return UNSURE
    likely: dict[str, float] = defaultdict(float)
    for language, probability in _identifier().rank(text):
        likely["zh" if language in _CHINESE else language] += probability
    return max(likely, key=likely.__getitem__) if max(likely.values()) >= LEAST_CONFIDENCE else UNSURE


@functools.cache
def _identifier() -> LanguageIdentifier:
    # An instance of our own: the package's shared one may be restricted by anybody.
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    two_letters = {label for label in identifier.labels if len(label) == 2}
    identifier.set_languages(sorted((two_letters - _NOT_GUESSED) | _CHINESE))
    return identifier
