"""The verdict claims what the paired comparison shows, and says plainly when that is nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_inputs import (
    choose_task,
    classical_metrics,
    difference,
    estimate,
    generate_task,
    language_metrics,
    loss_task,
    result,
    with_tasks,
)

from finetune.report import TaskScores, build_report
from finetune.report_contents import Verdict


def verdict(*tasks: TaskScores) -> Verdict:
    return build_report(with_tasks(*tasks)).verdict


def with_result(task: TaskScores, contender: str, exact: float) -> TaskScores:
    metrics = classical_metrics(exact) if contender in ("majority", "tfidf") else language_metrics(exact, exact, 1.3)
    return replace(task, results={**task.results, contender: result(contender, metrics)})


def without(task: TaskScores, *contenders: str) -> TaskScores:
    return replace(task, results={name: kept for name, kept in task.results.items() if name not in contenders})


def test_a_gain_is_stated_with_everything_it_rests_on():
    found = verdict(choose_task())
    assert found.outcome == "better"
    assert found.sentence() == (
        "The adapter raised the exact match of the generated text from 0.00 to 0.62 on 300 held-out samples "
        "(+0.62, 95 % interval +0.56 to +0.68, McNemar p < 0.001); "
        "the accuracy by log-likelihood over the options went from 0.09 to 0.64 "
        "(+0.55, 95 % interval +0.49 to +0.61, McNemar p < 0.001); "
        "the merged model keeps 99 % of the gain; "
        "TF-IDF trained on the same rows reaches 0.61 (0.55 to 0.67), and the two intervals overlap."
    )


def test_no_gain_is_said_to_be_none():
    found = verdict(generate_task(0.30, 0.31))
    assert found.outcome == "level"
    assert found.finding == (
        "The adapter is not distinguishable from the base: the token F1 went from 0.30 to 0.31 on 300 held-out samples"
    )
    assert found.evidence == "+0.01, 95 % interval −0.01 to +0.03"
    assert found.remarks == ()


def test_a_loss_is_said_to_be_one():
    found = verdict(generate_task(0.40, 0.30))
    assert found.outcome == "worse"
    assert found.finding.startswith("The adapter is worse than the base: the token F1 fell from 0.40 to 0.30")


def test_lower_is_better_for_perplexity():
    assert verdict(loss_task(12.0, 4.0, 1.0)).finding.startswith(
        "The adapter lowered the perplexity of the reference answer from 12.0 to 4.00"
    )
    worse = verdict(loss_task(4.0, 12.0, 1.0))
    assert (worse.outcome, "rose from 4.00 to 12.0" in worse.finding) == ("worse", True)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (0.85, "TF-IDF trained on the same rows beats the adapter, at 0.85 (0.81 to 0.89)"),
        (0.64, "TF-IDF trained on the same rows does no worse than the adapter, at 0.64 (0.59 to 0.69)"),
        (0.60, "TF-IDF trained on the same rows reaches 0.60 (0.54 to 0.66), and the two intervals overlap"),
        (0.30, "TF-IDF trained on the same rows reaches 0.30 (0.25 to 0.35)"),
    ],
)
def test_the_classical_baseline_is_named_whoever_wins(accuracy, expected):
    remarks = verdict(with_result(choose_task(), "tfidf", accuracy)).remarks
    assert expected in remarks


def test_the_majority_class_stands_in_where_there_is_no_stronger_baseline():
    remarks = verdict(without(choose_task(), "tfidf")).remarks
    assert "Majority class trained on the same rows reaches 0.25 (0.20 to 0.30)" in remarks


def test_a_gain_that_the_commonest_answer_has_as_well_says_so():
    said = "always giving the commonest answer reaches 0.60 ("
    assert any(remark.startswith(said) for remark in verdict(with_result(choose_task(), "majority", 0.60)).remarks)
    clear = verdict(with_result(choose_task(), "majority", 0.10)).remarks
    assert not any("commonest" in remark for remark in clear)


def test_a_baseline_without_the_headline_metric_is_compared_by_the_second():
    task = choose_task()
    only_choice = result("tfidf", {"choice_accuracy": estimate(0.9)})
    remarks = verdict(replace(task, results={**task.results, "tfidf": only_choice})).remarks
    assert any(
        remark.startswith("TF-IDF trained on the same rows beats the adapter, at 0.90")
        and remark.endswith("by the accuracy by log-likelihood over the options")
        for remark in remarks
    )


@pytest.mark.parametrize(
    ("merged", "expected"),
    [
        (0.62, "the merged model keeps all of the gain"),
        (0.6199, "the merged model keeps 99 % of the gain"),
        (0.31, "the merged model keeps 50 % of the gain"),
        (0.0, "the merged model keeps none of the gain"),
    ],
)
def test_the_kept_share_of_the_gain_is_never_rounded_up(merged, expected):
    assert expected in verdict(with_result(choose_task(), "merged", merged)).remarks
    fewer_bits = expected.replace("the merged model", "stored anew in 4 bits (NF4) it")
    assert fewer_bits in verdict(with_result(choose_task(), "merged_nf4", merged)).remarks


def test_without_a_gain_the_merge_keeps_no_share_of_it():
    task = replace(choose_task(), differences=(difference("exact_match", 0.01, 0.05),))
    found = verdict(with_result(with_result(task, "base", 0.61), "merged", 0.6))
    assert found.remarks[0] == "the merged model reaches 0.60"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("base",), "the base had no part"),
        (("adapter",), "the adapter had no part"),
        (("base", "adapter"), "the base and the adapter had no part"),
    ],
)
def test_without_both_contenders_nothing_is_claimed(missing, said):
    found = verdict(without(choose_task(), *missing))
    assert found.outcome == "unknown"
    assert said in found.finding
    assert found.sentence().endswith("evaluation.")


def test_without_a_paired_comparison_nothing_is_claimed():
    found = verdict(replace(choose_task(), differences=()))
    assert found.outcome == "unknown"
    assert found.finding.endswith("without a paired comparison this is no verdict")


def test_harm_on_another_task_is_not_left_out():
    level = verdict(choose_task(), generate_task(0.5, 0.5, task="plain_facts"))
    harmed = verdict(choose_task(), generate_task(0.5, 0.4, task="plain_facts"))
    assert not any("plain_facts" in remark for remark in level.remarks)
    assert harmed.remarks[-1] == (
        "it is worse than the base on plain_facts (token F1 −0.10, 95 % interval −0.12 to −0.08)"
    )


def test_a_task_other_than_the_held_out_one_is_named_in_the_finding():
    assert "300 samples of plain_facts" in verdict(generate_task(0.2, 0.5, task="plain_facts")).finding
    one = replace(
        generate_task(0.2, 0.5),
        differences=(difference("token_f1", 0.3, 0.1).model_copy(update={"n": 1}),),
    )
    assert "on 1 held-out sample" in verdict(one).finding
