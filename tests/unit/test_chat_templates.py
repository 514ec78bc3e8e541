"""The chat templates that come with the package, and a user's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.chat_templates import (
    describe,
    list_chat_templates,
    load_chat_template,
    require_control_tokens,
    special_tokens_of,
)
from finetune.errors import DataError

CHATML = {"<|im_start|>", "<|im_end|>"}


def test_templates_are_listed_and_say_what_they_need() -> None:
    assert list_chat_templates() == ["alpaca", "chatml", "llama2", "llama3", "vicuna"]
    for name in list_chat_templates():
        assert load_chat_template(name).startswith("{#")
        assert describe(name)
        assert "Needs a tokenizer" in load_chat_template(name)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(DataError) as caught:
        load_chat_template("lama3")
    assert "did you mean 'llama3'" in str(caught.value)


def test_a_file_is_read_and_its_absence_told(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert load_chat_template(str(tmp_path / "mine.jinja")) == "{{ messages }}"
    with pytest.raises(DataError, match=r"no such chat template.*\n?.*did you mean 'mine.jinja'"):
        load_chat_template(str(tmp_path / "mein.jinja"))
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        load_chat_template(str(tmp_path / "bytes.jinja"))
    (tmp_path / "long.jinja").write_text("x" * 200_000)
    with pytest.raises(DataError, match=r"longer|more than"):
        load_chat_template(str(tmp_path / "long.jinja"))


def test_control_tokens_have_to_be_special_in_the_base() -> None:
    require_control_tokens(load_chat_template("chatml"), CHATML, "chatml")
    require_control_tokens(load_chat_template("alpaca"), set(), "alpaca")
    with pytest.raises(DataError) as caught:
        require_control_tokens(load_chat_template("chatml"), CHATML - {"<|im_end|>"}, "chatml")
    assert "<|im_end|>" in str(caught.value)
    assert "alpaca, llama2, vicuna" in str(caught.value)
    require_control_tokens("{# <|never|> #}x", set(), "a comment writes nothing")


def test_only_special_tokens_of_a_tokenizer_count(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        '{"added_tokens": [{"content": "<|a|>", "special": true}, {"content": "<|b|>", "special": false}]}'
    )
    assert special_tokens_of(tmp_path) == {"<|a|>"}
