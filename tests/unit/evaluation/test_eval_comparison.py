from __future__ import annotations

import pytest
from fakes import FakeModel, identity, ignore_progress, loaded_task

from evaluation.comparison import difference_table, differences, score_table
from evaluation.errors import DataError
from evaluation.results import Difference
from evaluation.runner import Scored, score, score_classical

COLOURS = [(f"{thing} {number}?", "blue") for thing in ("sky", "sea") for number in range(6)]
COLOURS += [(f"grass {number}?", "green") for number in range(6)]
LOADED = loaded_task("choose", COLOURS, ("blue", "green"))


def contender(name: str, right: int, nats: float = 1.0) -> Scored:
    answers = {
        asked: reference if number < right else "green" if reference == "blue" else "blue"
        for number, (asked, reference) in enumerate(COLOURS)
    }
    return score(FakeModel(answers, nats_per_token=nats), LOADED, identity(name), ignore_progress)


def test_differences_cover_every_shared_metric() -> None:
    ours, theirs = contender("tuned", 18, 0.5), contender("base", 4)
    found = {one.metric: one for one in differences(ours, theirs, seed=0)}
    assert list(found) == [
        "exact_match",
        "choice_accuracy",
        "choice_macro_f1",
        "exact_match_macro_f1",
        "perplexity",
        "stopped",
    ]
    gain = found["choice_accuracy"]
    assert (gain.contender, gain.against, gain.n) == ("tuned", "base", 18)
    assert gain.value == pytest.approx(14 / 18)
    assert gain.mcnemar_p == pytest.approx(2**-13)
    assert found["perplexity"].value < 0
    assert found["perplexity"].mcnemar_p is None


def test_a_contender_does_not_differ_from_itself() -> None:
    same = contender("tuned", 9)
    for one in differences(same, same, seed=0):
        assert one.value == 0
        assert one.low <= 0 <= one.high


def test_a_baseline_shares_only_what_it_has() -> None:
    baseline = score_classical(["blue"] * 18, LOADED, identity("baseline"))
    metrics = [one.metric for one in differences(baseline, contender("tuned", 18), seed=0)]
    assert metrics == ["exact_match", "choice_accuracy", "choice_macro_f1", "exact_match_macro_f1"]
    assert metrics == [one.metric for one in differences(contender("tuned", 18), baseline, seed=0)]


def test_another_task_is_refused() -> None:
    ours, theirs = contender("tuned", 3), contender("base", 3)
    other = theirs.result.model_copy(update={"identity": identity("base", "7" * 64)})
    with pytest.raises(DataError, match="different tasks or samples"):
        differences(ours, Scored(other, theirs.outputs), seed=0)


def test_other_samples_are_refused() -> None:
    ours, theirs = contender("tuned", 3), contender("base", 3)
    with pytest.raises(DataError, match="outputs of different samples"):
        differences(ours, Scored(theirs.result, theirs.outputs[::-1]), seed=0)


def test_score_table_has_one_row_per_contender() -> None:
    baseline = score_classical(["blue"] * 18, LOADED, identity("baseline"))
    table = score_table([contender("tuned", 18).result, baseline.result])
    assert table.header[0] == "contender"
    assert table.header[-1] == "n"
    assert [row[0] for row in table.rows] == ["tuned", "baseline"]
    assert table.rows[0][table.header.index("choice_accuracy")].startswith("1.000 [0.8")
    assert table.rows[1][table.header.index("perplexity")] == "–"
    assert table.rows[1][-1] == "18"


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("exact_match", 0.1, 0.3, "better"),
        ("exact_match", -0.3, -0.1, "worse"),
        ("exact_match", -0.1, 0.3, "undecided"),
        ("perplexity", -3.0, -1.0, "better"),
        ("perplexity", 1.0, 3.0, "worse"),
    ],
)
def test_verdict_knows_which_way_is_better(metric: str, low: float, high: float, verdict: str) -> None:
    one = Difference(metric=metric, contender="a", against="b", value=(low + high) / 2, n=9, low=low, high=high)
    assert verdict in difference_table([one]).rows[0]
