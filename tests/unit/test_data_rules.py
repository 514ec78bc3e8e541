"""Rules on the keys of `data`: each refuses what would do nothing, and lets its nearest neighbour pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from smallest_recipe import check_refused, write_smallest

from finetune.errors import RecipeError
from finetune.recipe_file import load_recipe

TWO = "data.train=[{source: a.jsonl, rows: alpaca%s}, {source: b.jsonl, rows: alpaca%s}]"
MIXING = "data.mixing.temperature=2"
BALANCE = "data.balance.method=draw"
CLASS_SHARE = "data.audit.maximum_class_share=0.9"
SPLIT = "data.overflow=split"
TEXTS = "data.train.0.rows=text"
PARAPHRASES = "data.augmentation.paraphrases=[{text: Say it., alternatives: [%s]}%s]"
SHARE = "data.augmentation.paraphrase=0.5"
SET_ASIDE = "data.leakage.on_overlap=set_aside"

REFUSED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((TWO % ("", ", weight: 1"),), "data.train.0", "data.train.1 has one"),
    ((TWO % (", weight: 2", ""),), "data.train.1", "data.train.0 has one"),
    ((TWO % (", weight: 2", ", weight: 1"), MIXING), "data.mixing", "delete one of the two"),
    (("data.train.0.weight=1",), "data.train.0.weight", "there is one source"),
    ((MIXING,), "data.mixing", "there is one source"),
    ((BALANCE,), "data.balance", "rows of alpaca have no classes"),
    ((CLASS_SHARE,), "data.audit.maximum_class_share", "rows of alpaca have no classes"),
    (("data.augmentation={}",), "data.augmentation", "names no kind of copy"),
    ((PARAPHRASES % ("Tell it.", ""),), "data.augmentation", "names no kind of copy"),
    ((SHARE,), "data.augmentation.paraphrase", "there are no paraphrases"),
    (
        ("data.augmentation.case=0.5", PARAPHRASES % ("Tell it.", "")),
        "data.augmentation.paraphrases",
        "no share of the rows",
    ),
    ((SHARE, PARAPHRASES % ("' Say it. '", "")), "data.augmentation.paraphrases.0.alternatives", "the text itself"),
    ((SHARE, PARAPHRASES % ("' '", "")), "data.augmentation.paraphrases.0", "is blank"),
    (
        (SHARE, PARAPHRASES % ("Tell it.", ", {text: Say it., alternatives: [Do.]}")),
        "data.augmentation.paraphrases.1.text",
        "stands twice",
    ),
    ((TEXTS, "data.augmentation.case=0.5"), "data.augmentation.case", "have no question"),
    ((SPLIT,), "data.overflow", "rows are alpaca"),
    ((SPLIT, "data.train.0.rows=prompt_completion"), "data.overflow", "rows are prompt_completion"),
    ((SET_ASIDE, "data.leakage.maximum_share=0.2"), "data.leakage.maximum_share", "every such row is taken out"),
    ((SET_ASIDE, "data.leakage.maximum_near_share=0.2"), "data.leakage.maximum_near_share", "on_overlap: refuse"),
    (("privacy.region=QQ",), "privacy.region", "not known"),
    (("privacy.region=[US, QQ]",), "privacy.region.1", "not known"),
    (("privacy.region=us",), "privacy.region", "two capitals"),
    (("privacy.region=[US, de]",), "privacy.region.1", "two capitals"),
    (("privacy.region=[]",), "privacy.region", "is an empty list"),
    (("privacy={region: US, detect: [email]}",), "privacy.region", "not looked for"),
)

ACCEPTED: tuple[tuple[str, ...], ...] = (
    (TWO % ("", ""),),
    (TWO % (", weight: 2", ", weight: 1"),),
    (TWO % ("", ""), MIXING),
    (BALANCE, CLASS_SHARE, "data.train.0.rows=classification"),
    (BALANCE, "data.train.0.rows=sentiment"),
    (BALANCE, CLASS_SHARE, SPLIT, "data.train.0.rows=my/rows.yaml"),
    ("data.audit.maximum_class_share=1.0",),
    ("data.augmentation={case: 0.5, punctuation: 0.1}",),
    (SHARE, PARAPHRASES % ("Tell it.", ", {text: Do it., alternatives: [Do.]}")),
    (SPLIT, TEXTS),
    (SPLIT, "data.held_out={source: b.jsonl, rows: text}"),
    (SET_ASIDE, "data.leakage.similarity=0.7"),
    ("data.leakage.maximum_share=0.2",),
    ("privacy.region=US",),
    ("privacy.region=[US, CN]",),
    ("base.chat_template=my/chat.jinja",),
)


@pytest.fixture
def smallest(tmp_path: Path) -> str:
    return str(write_smallest(tmp_path))


@pytest.mark.parametrize(("overrides", "key", "says"), REFUSED)
def test_refuses(smallest: str, overrides: tuple[str, ...], key: str, says: str) -> None:
    check_refused(smallest, overrides, key, says)


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_accepts(smallest: str, overrides: tuple[str, ...]) -> None:
    load_recipe(smallest, overrides)


def test_chat_templates_are_known_by_name(smallest: str) -> None:
    load_recipe(smallest, ["base.chat_template=chatml"])
    with pytest.raises(RecipeError, match=r"base\.chat_template: .*chatlm"):
        load_recipe(smallest, ["base.chat_template=chatlm"])
