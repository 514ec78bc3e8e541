"""Refuses secrets in a recipe: it is copied into the run's folder, its report and its model card.

A recipe has no place for a key, so what stands in for one is refused as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune.recipe_document import Finding
from finetune.secret_patterns import secret_spans

_WHAT = "this looks like a secret"
_HINT = "delete it and revoke it; tokens come from `hf auth login` or the environment"


def secrets_in_text(text: str) -> list[Finding]:
    """Lines, comments among them, where what looks like a key, a token or a password begins."""
    lines = (text.count("\n", 0, span.start) + 1 for span in secret_spans(text))
    return [Finding((), _WHAT, _HINT, line) for line in dict.fromkeys(lines)]


def secrets_in_overrides(overrides: Sequence[str]) -> list[Finding]:
    """`--set` with a secret in it; the value is not repeated."""
    keys = [override.partition("=")[0] for override in overrides if secret_spans(override)]
    return [Finding((), _WHAT, _HINT, place=f"--set {without_secrets(key)}") for key in keys]


def without_secrets(text: str) -> str:
    """The text with anything that looks like a secret replaced, for use in messages."""
    for span in reversed(secret_spans(text)):
        text = text[: span.start] + "<secret>" + text[span.stop :]
    return text
