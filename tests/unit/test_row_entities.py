"""Named entities: every way of writing them comes out alike, and what does not fit the text is set aside."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from finetune.row_entities import read_entities
from finetune.row_template_types import Entities, TurnsTemplate
from finetune.row_templates import load_row_template
from finetune.turns import RowUnusable

TEXT = "🙂 Anna met Anna in Paris."


def written() -> Entities:
    """Return the words that the bundled template knows."""
    template = load_row_template("ner")
    assert isinstance(template, TurnsTemplate)
    assert template.entities is not None
    return template.entities


@pytest.mark.parametrize(
    "entity",
    [
        {"text": "Anna", "label": "PER"},
        {"word": "Anna", "entity_group": "PER", "score": 0.9},
        {"text": "Anna", "label": "PER", "start": None, "end": None},
        {"start": 2, "end": 6, "label": "PER"},
        {"start_offset": 2, "end_offset": 6, "label": "PER"},
        {"begin": 2, "end": 6, "type": "PER", "text": "Anna"},
        [2, 6, "PER"],
    ],
)
def test_every_way_of_writing_an_entity_comes_out_alike(entity: JsonValue) -> None:
    assert read_entities(written(), [entity], TEXT) == [{"text": "Anna", "label": "PER"}]


def test_entities_with_places_come_in_the_order_of_the_text() -> None:
    places: list[JsonValue] = [[19, 24, "LOC"], [11, 15, "PER"], [2, 24, "ALL"], [2, 6, "PER"], [2, 6, "NAME"]]
    labels = [entity["label"] for entity in read_entities(written(), places, TEXT) if isinstance(entity, dict)]
    assert labels == ["NAME", "PER", "ALL", "PER", "LOC"]


def test_without_places_they_come_as_they_are_listed() -> None:
    texts: list[JsonValue] = [{"text": "Paris", "label": "LOC"}, [2, 6, "PER"]]
    read = read_entities(written(), texts, TEXT)
    assert read == [{"text": "Paris", "label": "LOC"}, {"text": "Anna", "label": "PER"}]


@pytest.mark.parametrize(
    ("entity", "reason"),
    [
        ("SECRET", "bad_entity"),
        ([2, 6], "bad_entity"),
        ([6, 2, "PER"], "bad_entity"),
        ([2, 2, "PER"], "bad_entity"),
        ([-1, 2, "PER"], "bad_entity"),
        ([2, 999, "PER"], "bad_entity"),
        ([True, 6, "PER"], "bad_entity"),
        ([2.0, 6, "PER"], "bad_entity"),
        ([2, None, "PER"], "bad_entity"),
        ([2, 6, ""], "bad_entity"),
        ([2, 6, 3], "bad_entity"),
        ({"start": 2, "label": "PER"}, "bad_entity"),
        ({"label": "PER"}, "bad_entity"),
        ({"text": "", "label": "PER"}, "bad_entity"),
        ({"text": ["Anna"], "label": "PER"}, "bad_entity"),
        ({"text": "Anna"}, "bad_entity"),
        ({"text": "SECRET", "label": "PER"}, "entity_not_in_text"),
        ({"text": "anna", "label": "PER"}, "entity_not_in_text"),
        ({"text": "Anna", "label": "PER", "start": 3, "end": 7}, "entity_not_in_text"),
    ],
)
def test_an_entity_that_is_not_in_the_text_sets_the_row_aside(entity: JsonValue, reason: str) -> None:
    with pytest.raises(RowUnusable, match="entity 2") as caught:
        read_entities(written(), [[2, 6, "PER"], entity], TEXT)
    assert caught.value.reason == reason
    assert "SECRET" not in caught.value.detail
