"""How a figure is spelled: one function per kind of figure, used by every form of the report."""

from __future__ import annotations

import math

from evaluation.results import LOWER_IS_BETTER, METRIC_LABELS, Difference, Estimate
from finetune.report_contents import CONTENDER_LABELS, Outcome


def metric_label(metric: str) -> str:
    """Return what a metric is called for people; its own name if it has no label."""
    return METRIC_LABELS.get(metric, metric)


def contender_label(contender: str) -> str:
    """Return what a contender is called for people; its own name if it has no label."""
    return CONTENDER_LABELS.get(contender, contender)


def metric_value(metric: str, value: float) -> str:
    """Spell a metric: two decimals for shares, three significant digits for perplexity and scores above 1."""
    if not math.isfinite(value):
        return _not_finite(value)
    if metric in LOWER_IS_BETTER or abs(value) > 1:
        return _minus(_significant(value))
    return _minus(f"{value:.2f}")


def metric_difference(metric: str, value: float) -> str:
    """Spell a difference of two metrics with its sign."""
    text = metric_value(metric, value)
    return f"+{text}" if value > 0 else text


def interval(metric: str, estimate: Estimate) -> str:
    """Spell the 95 % interval of a metric as 'low to high'."""
    return f"{metric_value(metric, estimate.low)} to {metric_value(metric, estimate.high)}"


def difference_interval(difference: Difference) -> str:
    """Spell the 95 % interval of a paired difference as 'low to high', both signed."""
    low = metric_difference(difference.metric, difference.low)
    return f"{low} to {metric_difference(difference.metric, difference.high)}"


def p_value(p: float) -> str:
    """Spell a p value as 'p = 0.012' or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def outcome_of(difference: Difference) -> Outcome:
    """Judge a paired difference: level where its interval holds 0, else by the metric's good direction."""
    if difference.low <= 0 <= difference.high or not math.isfinite(difference.value):
        return "level"
    rose = difference.low > 0
    return "better" if rose != (difference.metric in LOWER_IS_BETTER) else "worse"


def count(number: int) -> str:
    """Spell a count with thousands separated by a comma."""
    return _minus(f"{number:,}")


def nats(value: float) -> str:
    """Spell a loss or divergence in nats: four decimals, or an exponent where four would show nothing."""
    if not math.isfinite(value):
        return _not_finite(value)
    return _minus(f"{value:.1e}" if 0 < abs(value) < 0.00005 else f"{value:.4f}")


def percent(share: float, decimals: int = 1) -> str:
    """Spell a share as a percentage."""
    return _minus(f"{100 * share:.{decimals}f} %") if math.isfinite(share) else _not_finite(share)


def duration(seconds: float) -> str:
    """Spell seconds as '4.2 s', '3 min 12 s' or '2 h 05 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int) -> str:
    """Spell bytes as MiB below one GiB and as GiB from there."""
    mebibytes = size / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def legible(text: str, limit: int) -> str:
    """Make untrusted text safe to look at: control and direction characters become visible, the end is cut.

    What is cut is counted. Lone surrogates, which no file can hold, become the replacement character.
    """
    shown = "".join(_visible(character) for character in text[:limit])
    cut = len(text) - limit
    return f"{shown} … ({count(cut)} more characters)" if cut > 0 else shown


_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or (code >= 0xA0 and character not in _DIRECTIONS and not 0xD800 <= code < 0xE000):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code < 0x7F:
        return character
    return "\ufffd" if 0xD800 <= code < 0xE000 else f"⟨U+{code:04X}⟩"


def _significant(value: float) -> str:
    if value == 0:
        return "0.00"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}" if abs(value) < 1e7 else f"{value:.2e}"


def _minus(text: str) -> str:
    # "-0.00" says nothing that "0.00" does not.
    if text.startswith("-") and not text.strip("-0.,% "):
        return text[1:]
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    return "∞" if value > 0 else "−∞"
