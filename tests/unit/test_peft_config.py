"""Settings of an adapter: what they mean for each module, and which of them cannot be folded into weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import DataError
from finetune.peft_config import CONFIG_FILE, PeftConfig, load_peft_config

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def loaded(place: Path, **settings: Any) -> PeftConfig:
    (place / CONFIG_FILE).write_text(json.dumps(PLAIN | settings))
    return load_peft_config(place, "here")


def test_ranks_and_scalings_are_those_of_the_first_pattern_that_ends_a_name(tmp_path: Path) -> None:
    config = loaded(tmp_path, rank_pattern={"q_proj": 16, "proj": 2}, alpha_pattern={"k_proj": 2.0})
    assert [config.rank(name) for name in ("a.q_proj", "q_proj", "a.xq_proj", "proj", "k_proj")] == [16, 16, 4, 2, 4]
    assert [config.scaling(name) for name in ("q_proj", "k_proj", "v_proj")] == [8 / 16, 2 / 4, 8 / 4]
    assert loaded(tmp_path, use_rslora=True).scaling("v_proj") == 8 / 4**0.5


@pytest.mark.parametrize(
    ("settings", "adapted"),
    [
        ({}, ["q_proj", "a.q_proj"]),
        ({"target_modules": ["a.q_proj", "k_proj"]}, ["a.q_proj", "k_proj"]),
        ({"target_modules": ".*"}, []),
        ({"target_modules": None}, []),
        ({"exclude_modules": ["b"]}, []),
        ({"layers_to_transform": [0]}, []),
        ({"layers_to_transform": 0}, []),
    ],
)
def test_modules_are_named_by_their_last_words(settings: dict[str, Any], adapted: list[str], tmp_path: Path) -> None:
    names = ["q_proj", "a.q_proj", "aq_proj", "k_proj", "q_proj.b"]
    assert [name for name in names if loaded(tmp_path, **settings).adapts(name)] == adapted


@pytest.mark.parametrize(
    ("settings", "kind", "residual"),
    [
        ({}, "LoRA", None),
        ({"use_rslora": True}, "rsLoRA", None),
        ({"use_dora": True}, "DoRA", None),
        ({"init_lora_weights": "pissa"}, "PiSSA", "pissa"),
        ({"init_lora_weights": "olora", "use_rslora": True}, "OLoRA", "olora"),
        ({"init_lora_weights": "gaussian"}, "LoRA", None),
    ],
)
def test_variants_have_their_names(settings: dict[str, Any], kind: str, residual: str | None, tmp_path: Path) -> None:
    config = loaded(tmp_path, **settings)
    assert (config.kind, config.residual) == (kind, residual)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "its kind is LOHA"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"rank_pattern": {"a|b": 4}}, "the pattern 'a|b' is more than a name"),
        ({"alpha_pattern": {"(a+)+": 4}}, "is more than a name"),
        ({"init_lora_weights": "corda"}, "init_lora_weights: 'corda' leaves a base"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "init_lora_weights: 'pissa' together with use_dora"),
        ({"of_tomorrow": True}, "of_tomorrow: a setting that is not known here"),
        ({"of_tomorrow": 0.5}, "of_tomorrow"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: its weights lie transposed"),
    ],
)
def test_what_cannot_be_folded_is_told(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, **settings)
    assert refused.value.what.startswith("the adapter cannot be folded: ")
    assert said in refused.value.what
    assert refused.value.where == f"here/{CONFIG_FILE}"


@pytest.mark.parametrize("value", [None, False, {}, [], ""])
def test_a_setting_of_tomorrow_that_is_off_is_let_pass(value: object, tmp_path: Path) -> None:
    assert loaded(tmp_path, of_tomorrow=value).r == 4


def test_a_pattern_may_be_as_long_as_is_said(tmp_path: Path) -> None:
    from finetune.peft_config import _LONGEST_PATTERN

    assert 100 <= _LONGEST_PATTERN <= 10_000
    assert loaded(tmp_path, rank_pattern={"a" * _LONGEST_PATTERN: 4}).r == 4
    with pytest.raises(DataError, match="is more than a name"):
        loaded(tmp_path, rank_pattern={"a" * (_LONGEST_PATTERN + 1): 4})


def test_missing_and_damaged_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no {CONFIG_FILE} in this folder"):
        load_peft_config(tmp_path, "here")
    for text, said in (("{", "the file"), ('{"peft_type": "LORA"}', "r: Field required"), ("[]", "the file")):
        (tmp_path / CONFIG_FILE).write_text(text)
        with pytest.raises(DataError, match=f"{CONFIG_FILE} cannot be read: {said}"):
            load_peft_config(tmp_path, "here")
