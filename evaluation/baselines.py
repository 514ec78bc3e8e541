"""Classical baselines: what a classification task is worth without a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from evaluation.conversation import Conversation
from evaluation.errors import DataError

ClassicalKind = Literal["majority", "tfidf"]


def classical_answers(kind: ClassicalKind, train: Sequence[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Label each question by what (text, label) pairs teach: their commonest label, or TF-IDF and regression.

    `majority` takes the first label in sorted order where several are the commonest. `tfidf` is logistic
    regression on character n-grams of 2 to 5 within words, which needs no word list and so fits every
    language; with one label only, or no text to learn from, it says what `majority` says.

    Raises:
        DataError: there is nothing to learn from.
    """
    if not train:
        raise DataError("a classical baseline needs training rows, and there are none")
    if not questions:
        return []
    texts, labels = [text for text, _ in train], [label for _, label in train]
    learnable = len(set(labels)) > 1 and any(text.strip() for text in texts)
    if kind == "tfidf" and learnable:
        classifier = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            LogisticRegression(C=10.0, max_iter=1000, random_state=0),
        )
    else:
        classifier = DummyClassifier(strategy="most_frequent")
    classifier.fit(texts, labels)
    return [str(label) for label in classifier.predict(list(questions))]


def question_text(prompt: Conversation) -> str:
    """Return what a classical baseline reads of a prompt: the last user message, or else the last message."""
    spoken = [message.content for message in prompt.messages if message.role == "user"]
    if spoken:
        return spoken[-1]
    return prompt.messages[-1].content if prompt.messages else ""
