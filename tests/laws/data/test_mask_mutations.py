"""Known ways to break a mask: the check at the start of a run catches all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from figures import Figures
from mask_breaks import BREAKS, Break, Broken, answer_cut, beginning_trained, beginning_twice, end_masked, users_instead
from unit.evaluation.chat_styles import STYLES, ZEPHYR, Style, style_tokenizer

import evaluation.mask_oracle
from evaluation.conversation import Conversation, Message, Role
from evaluation.errors import DataError
from evaluation.mask_oracle import check_masks
from evaluation.rendering import Example, Renderer

ISSUE_ASKS_FOR = 12


def chat(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns))


ROWS = (
    chat(("user", "a fever?"), ("assistant", "no fever")),
    chat(("system", "Be brief"), ("user", "a cough?"), ("assistant", "a cough, yes")),
    chat(("user", "eye"), ("assistant", "the eye"), ("user", "and the ear?"), ("assistant", "the ear as well")),
)


def sampled(renderer: Renderer) -> list[tuple[str, Conversation, Example]]:
    return [(f"rows.csv:{line}", c, renderer.example(c, "assistant")) for line, c in enumerate(ROWS, start=2)]


def caught(renderer: Renderer, rows: list[tuple[str, Conversation, Example]]) -> bool:
    try:
        check_masks(renderer, rows, "assistant")
    except DataError:
        return True
    return False


@contextmanager
def no_probes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.mask_oracle, "PROBES", ())
        yield


def changes(breaks: Break, style: Style) -> bool:
    """Tell whether a bug changes any of the rows, for this family."""
    tokenizer = style_tokenizer(style)
    return sampled(Renderer(tokenizer)) != sampled(Broken.by(breaks)(tokenizer))


def test_a_right_renderer_passes() -> None:
    for style in STYLES:
        renderer = Renderer(style_tokenizer(style))
        checked = check_masks(renderer, sampled(renderer), "assistant")
        assert checked.examples == len(ROWS)
        assert checked.probes > 0
        with no_probes():
            assert check_masks(renderer, sampled(renderer), "assistant").probes == 0


def test_every_known_way_to_break_a_mask_is_caught(figures: Figures) -> None:
    missed, pairs = [], 0
    for breaks in BREAKS:
        families = [style for style in STYLES if changes(breaks, style)]
        assert families, f"{breaks.__name__} breaks nothing"
        for style in families[: figures.amount(1, len(STYLES))]:
            pairs += 1
            broken = Broken.by(breaks)(style_tokenizer(style))
            with no_probes():
                by_rows = caught(broken, sampled(broken))
            if not (by_rows and caught(broken, [])):
                missed.append((breaks.__name__, style.name, "missed by rows" if not by_rows else "missed by probes"))
    names = {name for name, _, _ in missed}
    note = f"by its own rows and by built-in ones alone; {pairs} with the family"
    claim = "known ways to break a mask are caught at the start of a run"
    figures.report("Masks", claim, len(BREAKS), "ways", len(names), note)
    assert missed == []
    assert len(BREAKS) >= ISSUE_ASKS_FOR


@pytest.mark.parametrize("breaks", [end_masked, beginning_trained, beginning_twice, users_instead, answer_cut])
def test_plain_texts_are_checked_as_well(breaks: Break) -> None:
    tokenizer = style_tokenizer(ZEPHYR, adds_bos=True)
    broken = Broken.by(breaks)(tokenizer)
    turns = (Message(role="user", content="a fever? "), Message(role="assistant", content="no fever"))
    text = Conversation(messages=turns, layout="plain")
    assert not caught(Renderer(tokenizer), [("1", text, Renderer(tokenizer).example(text))])
    with no_probes():
        assert caught(broken, [("1", text, broken.example(text))])
    assert caught(broken, [("1", text, Renderer(tokenizer).example(text))])  # the built-in ones
