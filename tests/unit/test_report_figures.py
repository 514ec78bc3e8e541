"""Figures are spelled so that none is mistaken: signs, digits, and what is not finite."""

from __future__ import annotations

import math

import pytest
from report_inputs import difference

from finetune.report_figures import (
    contender_label,
    count,
    duration,
    legible,
    memory,
    metric_difference,
    metric_label,
    metric_value,
    nats,
    outcome_of,
    p_value,
    percent,
)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("exact_match", 0.6166, "0.62"),
        ("exact_match", 0.0, "0.00"),
        ("exact_match", -0.001, "0.00"),
        ("perplexity", 1.308, "1.31"),
        ("perplexity", 12.08, "12.1"),
        ("perplexity", 1240.4, "1,240"),
        ("perplexity", 0.0, "0.00"),
        ("perplexity", 3.2e9, "3.20e+09"),
        ("perplexity", math.inf, "∞"),
        ("perplexity", -math.inf, "−∞"),
        ("perplexity", math.nan, "undefined"),
    ],
)
def test_a_metric_has_two_decimals_or_three_significant_digits(metric, value, expected):
    assert metric_value(metric, value) == expected


def test_a_difference_always_shows_its_direction():
    assert metric_difference("exact_match", 0.5) == "+0.50"
    assert metric_difference("exact_match", -0.5) == "−0.50"
    assert metric_difference("exact_match", 0.0) == "0.00"


@pytest.mark.parametrize(
    ("metric", "value", "half", "expected"),
    [
        ("exact_match", 0.2, 0.1, "better"),
        ("exact_match", 0.1, 0.1, "level"),
        ("exact_match", -0.2, 0.1, "worse"),
        ("perplexity", -2.0, 1.0, "better"),
        ("perplexity", 2.0, 1.0, "worse"),
        ("perplexity", 0.5, 1.0, "level"),
        ("perplexity", math.nan, 1.0, "level"),
    ],
)
def test_the_reading_follows_the_interval_and_the_good_direction(metric, value, half, expected):
    assert outcome_of(difference(metric, value, half)) == expected


def test_other_figures():
    assert (p_value(0.0004), p_value(0.0123)) == ("p < 0.001", "p = 0.012")
    assert (count(1_234_567), count(-3)) == ("1,234,567", "−3")
    assert (nats(0.5), nats(0.0), nats(3.2e-7), nats(math.nan)) == (
        "0.5000",
        "0.0000",
        "3.2e-07",
        "undefined",
    )
    assert (percent(0.995), percent(0.99497, 2), percent(math.inf)) == ("99.5 %", "99.50 %", "∞")
    assert (duration(4.24), duration(59.97), duration(192), duration(7500)) == (
        "4.2 s",
        "1 min 00 s",
        "3 min 12 s",
        "2 h 05 min",
    )
    assert (memory(640 * 2**20), memory(3 * 2**29)) == ("640 MiB", "1.5 GiB")


def test_unknown_names_stand_for_themselves():
    assert metric_label("new_metric") == "new_metric"
    assert contender_label("teacher") == "teacher"


def test_untrusted_text_becomes_legible():
    assert legible("a\x00b\x1bc\td\ne", 100) == "a␀b␛c\td\ne"
    assert legible("x\u202ey\x7f\x85", 100) == "x⟨U+202E⟩y⟨U+007F⟩⟨U+0085⟩"
    assert legible("\ud800é中", 100) == "\ufffdé中"
    assert legible("abcdef", 4) == "abcd … (2 more characters)"
