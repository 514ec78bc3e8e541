"""What the logs of each contender say; the samples are cut from logs of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peer_logs import (
    Training,
    UnreadableLog,
    parse_litgpt,
    parse_loop,
    parse_transformers,
    read_our_run,
)
from finetune.training_records import StepMetrics, TrainingSummary

TRL = """\
Packing train dataset: 100%|██████████| 8/8 [00:00<00:00, 208.47 examples/s]
{'loss': '1.548', 'grad_norm': '0.4722', 'learning_rate': '0.0002', 'num_tokens': '940', 'epoch': '0.5'}
{'loss': '3.501', 'grad_norm': '1.076', 'learning_rate': '0.0002', 'num_tokens': '1371', 'epoch': '1'}
{'train_runtime': '39.22', 'train_samples_per_second': '0.051', 'train_loss': '2.525', 'epoch': '1'}
✅ Training completed.
"""
LLAMAFACTORY = """\
[INFO|trainer.py:1479] 2026-11-26 17:35:23,158 >> Number of trainable parameters = 4,884,480
{'loss': '1.552', 'grad_norm': '0.4745', 'learning_rate': '0.0002', 'epoch': '0.5'}
{'loss': '3.498', 'grad_norm': '1.067', 'learning_rate': '0.0002', 'epoch': '1'}
{'train_runtime': '40.18', 'train_samples_per_second': '0.05', 'train_loss': '2.525', 'epoch': '1'}
***** train metrics *****
  train_runtime            = 0:00:40.17
"""
LITGPT = """\
Epoch 1 | iter 7 step 0 | loss train: 2.529, val: n/a | iter time: 4957.06 ms
Epoch 1 | iter 8 step 1 | loss train: 2.597, val: n/a | iter time: 3384.31 ms (step)
Epoch 1 | iter 9 step 1 | loss train: 2.545, val: n/a | iter time: 10853.85 ms
| - Input Tokens              :   2646
| - Tokens w/ Prompt          :   2646
| - Total Tokens (w/ Padding) :   2646
| - Training Time             :  85.14 s
"""


def test_litgpt_is_timed_by_its_iterations_and_its_loss_is_that_of_steps() -> None:
    training = parse_litgpt(LITGPT)
    assert training == Training(1, pytest.approx(19.19522), 2.597, 2646)
    with pytest.raises(UnreadableLog, match="iter time"):
        parse_litgpt("Verifying settings ...\n")


def test_trl_says_its_steps_time_loss_and_tokens() -> None:
    training = parse_transformers(TRL)
    assert (training.steps, training.seconds, training.tokens) == (2, 39.22, 1371)
    assert training.mean_loss == pytest.approx((1.548 + 3.501) / 2)


def test_llamafactory_says_no_tokens() -> None:
    training = parse_transformers(LLAMAFACTORY)
    assert (training.steps, training.seconds, training.tokens) == (2, 40.18, None)
    assert training.mean_loss == pytest.approx((1.552 + 3.498) / 2)


@pytest.mark.parametrize("text", ["", "{'loss': '1.5'}\n", "{'train_runtime': '40.18'}\n"])
def test_a_log_without_time_or_losses_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableLog, match="train_runtime"):
        parse_transformers(text)


def test_the_bare_loop_ends_with_a_line_of_json() -> None:
    line = {"steps": 2, "tokens": 1371, "seconds": 35.5, "mean_loss": 2.835}
    assert parse_loop("a warning\n" + json.dumps(line) + "\n") == Training(2, 35.5, 2.835, 1371)
    with pytest.raises(UnreadableLog, match="not JSON"):
        parse_loop("")
    with pytest.raises(UnreadableLog, match="not JSON"):
        parse_loop("Killed\n")


def test_our_run_is_read_from_what_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    summary = TrainingSummary(
        steps=2,
        kept_step=2,
        examples=8,
        tokens=1379,
        trained_tokens=1034,
        seconds=4.0,
        tokens_per_second=345.0,
        peak_memory_bytes=10**9,
        device="cpu",
        devices=1,
        trainable_parameters=1,
        base_parameters=10,
        choices={},
        adapter_sha256="",
    )
    (folder / "summary.json").write_text(summary.model_dump_json())
    metrics = [StepMetrics(step=1, loss=3.0), StepMetrics(step=2, loss=2.0), StepMetrics(step=2, validation_loss=9.0)]
    (folder / "metrics.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in metrics))
    assert read_our_run(tmp_path) == Training(2, 4.0, 2.5, 1379)
