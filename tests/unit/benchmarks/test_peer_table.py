"""The table of ratios."""

from __future__ import annotations

from benchmarks.matrix_rate import Sizes, share_of_rate
from benchmarks.peer_logs import Training
from benchmarks.peer_table import Machine, Outcome, peers_table, ratios, spread

MACHINE = Machine(rate=8e11, parameters=100_000_000, threads=2)


def outcome(contender: str, number: int, seconds: float) -> Outcome:
    return Outcome(contender, number, seconds + 5, 2 * 10**9, Training(8, seconds, 2.5), 1000)


def test_ratios_compare_runs_of_the_same_round() -> None:
    # Both rounds have the same ratio on a machine that became half as fast; their medians apart would not tell.
    outcomes = [outcome("ours-bf16", 1, 1), outcome("peer", 1, 9), outcome("ours-bf16", 2, 2), outcome("peer", 2, 18)]
    assert ratios("peer", outcomes) == [9.0, 9.0]
    assert ratios("ours-bf16", outcomes) == [1.0, 1.0]


def test_the_table_has_a_line_a_contender_with_smallest_and_largest() -> None:
    runs = [outcome("ours-bf16", 1, 1), outcome("peer", 1, 4), outcome("ours-bf16", 2, 1), outcome("peer", 2, 8)]
    ours, peer = peers_table(runs, MACHINE).splitlines()[2:]
    assert ours.startswith("| ours-bf16 | 1,000 (1,000–1,000) | 1.00 (1.00–1.00) |")
    assert peer.startswith(
        "| peer | 188 (125–250) | 6.00 (4.00–8.00) | 11.0 (9.0–13.0) | 2.0 | 8 | 1,000 | 2.500 | – | 9% |"
    )


def test_a_contender_that_failed_is_a_line_with_its_reason() -> None:
    failed = Outcome("peer", 1, 3.0, 10**9, failure="exit code 1: no | such option")
    table = peers_table([outcome("ours-bf16", 1, 1), failed], MACHINE)
    lines = table.splitlines()
    assert lines[-1].startswith("| peer | exit code 1: no / such option |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_failure_after_a_good_round_stands_below_the_table() -> None:
    later = Outcome("peer", 2, 3.0, 10**9, failure="stopped after 60 s")
    table = peers_table([outcome("peer", 1, 4), later], MACHINE)
    assert table.endswith("\npeer, round 2: stopped after 60 s\n")
    assert "| peer | 250 | – |" in table


def test_a_spread_is_the_median_and_its_bounds() -> None:
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0–3.0)"
    assert spread([], 1) == "–"


def test_the_share_counts_four_operations_a_weight_and_token() -> None:
    sizes = Sizes(layer=((10, 20), (20, 10)), layers=3, embedding=1000)
    assert sizes.parameters == 2200
    assert share_of_rate(50.0, sizes.parameters, rate=880_000.0) == 0.5
