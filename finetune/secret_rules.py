"""Refuses secrets in a recipe: it is copied into the run's folder, its report and its model card."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.recipe_document import Finding

_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # https://huggingface.co/docs/hub/security-tokens
    r"|\bsk-[A-Za-z0-9_-]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}"  # https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|://[^\s/@:]+:[^\s/@]+@"
)
_HINT = "delete it and revoke it; tokens come from `hf auth login` or the environment"


def secrets_in_text(text: str) -> list[Finding]:
    """Lines, comments among them, that hold what looks like a token or a password in an address."""
    lines = text.splitlines()
    return [Finding((), _WHAT, _HINT, line) for line, content in enumerate(lines, 1) if _SECRET.search(content)]


def secrets_in_overrides(overrides: Sequence[str]) -> list[Finding]:
    """`--set` with a secret in it; the value is not repeated."""
    keys = [override.partition("=")[0] for override in overrides if _SECRET.search(override)]
    return [Finding((), _WHAT, _HINT, place=f"--set {without_secrets(key)}") for key in keys]


def without_secrets(text: str) -> str:
    """The text with anything that looks like a secret replaced, for use in messages."""
    return _SECRET.sub("<secret>", text)


_WHAT = "this looks like a secret"
