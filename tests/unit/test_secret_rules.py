"""A secret in a recipe is told by its line, one in `--set` by its key, and neither is repeated."""

from __future__ import annotations

from finetune.secret_rules import secrets_in_overrides, secrets_in_text, without_secrets

KEY = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"
"""Of the form of a token of the hub, and nobody's."""


def test_a_secret_is_told_by_the_line_where_it_begins() -> None:
    assert secrets_in_text("version: 1\nname: x\n") == []
    for before in ("", "\n", "version: 1\n", "\n\n# a comment\n"):
        (found,) = secrets_in_text(f"{before}description: {KEY}\nname: x\n")
        assert found.line == before.count("\n") + 1
        assert KEY not in f"{found.what} {found.hint} {found.place}"
    assert [found.line for found in secrets_in_text(f"a: {KEY}\nb: x\nc: {KEY}\n")] == [1, 3]


def test_a_secret_of_an_override_is_told_by_its_key() -> None:
    overrides = ["training.epochs=2", f"description={KEY}", f"{KEY}=1"]
    assert [found.place for found in secrets_in_overrides(overrides)] == ["--set description", "--set <secret>"]


def test_every_secret_of_a_text_is_replaced() -> None:
    assert without_secrets(f"a {KEY} and {KEY}.") == "a <secret> and <secret>."
    assert without_secrets("none") == "none"
