from __future__ import annotations

import math

import pytest
from fakes import FakeModel, identity, ignore_progress, loaded_task

from evaluation.errors import ProofFailed, TaskError
from evaluation.results import METRIC_LABELS
from evaluation.runner import count_steps, installed_versions, score, score_classical

COLOURS = [("sky?", "blue"), ("grass?", "green"), ("sea?", "blue")]


def test_choose_scores_choice_and_text_apart() -> None:
    loaded = loaded_task("choose", COLOURS, ("blue", "green"))
    model = FakeModel({"sky?": " blue ", "grass?": "green", "sea?": "Blue"}, option_scores={"sky?": [-1.0, -2.0]})
    done: list[int] = []
    scored = score(model, loaded, identity("tuned"), done.append)
    metrics = scored.result.metrics
    assert set(metrics) == {
        "choice_accuracy",
        "choice_macro_f1",
        "exact_match",
        "exact_match_macro_f1",
        "perplexity",
        "stopped",
    }
    assert set(metrics) <= set(METRIC_LABELS)
    assert metrics["choice_accuracy"].value == 1.0
    assert metrics["exact_match"].value == pytest.approx(2 / 3)
    assert metrics["exact_match_macro_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["perplexity"].value == pytest.approx(math.e)
    assert sum(done) == count_steps(loaded) == 9
    first = scored.outputs[0]
    assert (first.sample, first.prompt, first.generated, first.chosen) == (
        "rows.jsonl:1",
        "sky?",
        "blue",
        "blue",
    )
    assert first.scores == {"choice_accuracy": 1.0, "exact_match": 1.0, "stopped": 1.0}
    assert scored.result.seconds >= 0


def test_a_tie_goes_to_the_first_option() -> None:
    loaded = loaded_task("choose", [("q", "b")], ("a", "b"))
    model = FakeModel({"q": "b"}, option_scores={"q": [-1.0, -1.0]})
    assert score(model, loaded, identity("x"), ignore_progress).outputs[0].chosen == "a"


def test_generate_compares_texts() -> None:
    loaded = loaded_task("generate", COLOURS)
    model = FakeModel({"sky?": "blue", "grass?": "green grass", "sea?": "red"}, stops=False)
    scored = score(model, loaded, identity("tuned"), ignore_progress)
    assert set(scored.result.metrics) == {
        "exact_match",
        "token_f1",
        "rouge_l",
        "chrf",
        "perplexity",
        "stopped",
    }
    assert scored.outputs[1].scores["token_f1"] == pytest.approx(2 / 3)
    assert scored.outputs[1].stopped is False
    assert scored.result.metrics["stopped"].value == 0
    assert count_steps(loaded) == 6


def test_token_loss_only_measures_the_reference() -> None:
    loaded = loaded_task("token_loss", COLOURS)
    model = FakeModel({}, nats_per_token=0.5)
    scored = score(model, loaded, identity("tuned"), ignore_progress)
    assert model.passes == ["answer_losses"]
    assert set(scored.result.metrics) == {"perplexity"}
    assert scored.result.metrics["perplexity"].value == pytest.approx(math.exp(0.5))
    assert scored.outputs[0].generated is None
    assert scored.outputs[0].scores == {}


@pytest.mark.parametrize("nats", [math.nan, math.inf, 1e6])
def test_a_loss_that_is_no_loss_is_refused(nats: float) -> None:
    loaded = loaded_task("token_loss", COLOURS)
    with pytest.raises(ProofFailed, match=r"sample rows\.jsonl:1"):
        score(FakeModel({}, nats_per_token=nats), loaded, identity("x"), ignore_progress)


@pytest.mark.parametrize("worst", [math.nan, -math.inf])
def test_a_likelihood_that_is_none_is_refused(worst: float) -> None:
    loaded = loaded_task("choose", [("q", "b")], ("a", "b"))
    model = FakeModel({"q": "b"}, option_scores={"q": [-1.0, worst]})
    with pytest.raises(ProofFailed, match="log-likelihood"):
        score(model, loaded, identity("x"), ignore_progress)


def test_a_result_of_another_task_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        score(FakeModel({}), loaded_task("token_loss", COLOURS), identity("x", "6" * 64), ignore_progress)


def test_classical_answers_have_equal_choice_and_text() -> None:
    loaded = loaded_task("choose", COLOURS, ("blue", "green"))
    metrics = score_classical(["blue", "blue", "blue"], loaded, identity("baseline")).result.metrics
    assert set(metrics) == {"choice_accuracy", "choice_macro_f1", "exact_match", "exact_match_macro_f1"}
    assert metrics["choice_accuracy"] == metrics["exact_match"]
    assert metrics["choice_macro_f1"] == metrics["exact_match_macro_f1"]


def test_classical_answers_need_options() -> None:
    with pytest.raises(TaskError, match="`kind: choose` only"):
        score_classical(["x"] * 3, loaded_task("generate", COLOURS), identity("baseline"))


def test_versions_are_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.runner.SCORING_PACKAGES", ("numpy", "no-such-package"))
    assert list(installed_versions()) == ["numpy"]
