"""The quick start on its real 135M model, with few rows: from published files to a report, and again offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import HUNG_SECONDS, PROMISED, Outcome, finetune_process, left_over

from evaluation.result_files import load_result
from finetune.cache import default_cache
from finetune.run_directory import STAGES, RunDirectory

pytestmark = pytest.mark.slow

ROWS, VALIDATION, HELD_OUT = 64, 16, 16
# The other tests share the cores (conftest); this model is large enough to use them.
WHOLE_MACHINE = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
MACHINE_CANNOT = 6

# Put before everything else on the path: no connection leaves this process or its children.
NO_NETWORK = """
import socket

def refused(*_, **__):
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = refused
socket.create_connection = socket.getaddrinfo = refused
"""


def arguments(out: Path) -> list[str]:
    limits = {"train.0": ROWS, "validation": VALIDATION, "held_out": HELD_OUT}
    settings = [word for part, rows in limits.items() for word in ("--set", f"data.{part}.limit={rows}")]
    # So few rows leave answers in the balance.
    settings += ["--set", "merge.minimum_gain_kept=0.5", "--set", "merge.minimum_agreement=0.8"]
    return ["run", "icd10-quickstart", *settings, "--out", str(out)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "run"


@pytest.fixture(scope="module")
def first(out: Path) -> Outcome:
    outcome = finetune_process(*arguments(out), environment=WHOLE_MACHINE)
    if outcome.status == MACHINE_CANNOT:
        pytest.skip(f"the base could not be fetched: {outcome.stderr[-300:]}")
    return outcome


def test_the_quick_start_ends_with_a_proven_report(out: Path, first: Outcome) -> None:
    assert first.status == 0, first.stderr
    missing = [name for name in PROMISED if not (out / name).is_file()]
    assert missing == []
    proof = json.loads((out / "merged" / "merge.json").read_bytes())
    assert proof["agreement"] >= 0.8
    assert proof["kl_to_base"] > 0.01
    assert {candidate["onto"] for candidate in proof["candidates"]} == {"full_precision", "dequantized"}
    for contender in ("base", "adapter", "merged", "majority", "tfidf"):
        result, outputs = load_result(out / "evaluation", contender, "held_out")
        assert len(outputs) == HELD_OUT
        assert {"choice_accuracy", "exact_match"} <= set(result.metrics)
    assert "Traceback" not in first.stderr
    assert left_over(out) == []


def test_no_category_stands_on_two_sides(out: Path, first: Outcome) -> None:
    sides = [
        {json.loads(line)["group"] for line in (out / "data" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "held_out")
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_again_without_a_network_everything_is_skipped(out: Path, first: Outcome, tmp_path: Path) -> None:
    again = without_network(arguments(out), tmp_path)
    assert again.status == 0, again.stderr
    assert again.stderr.count("finished, skipped") == len(STAGES)


def test_another_run_needs_no_network_either(out: Path, first: Outcome, tmp_path: Path) -> None:
    prepared = without_network(["prepare", *arguments(tmp_path / "run")[1:]], tmp_path)
    assert prepared.status == 0, prepared.stderr
    assert RunDirectory(tmp_path / "run").marker("prepare")


def test_the_network_is_really_cut(tmp_path: Path) -> None:
    fetch = [*arguments(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert without_network(fetch, tmp_path).status == MACHINE_CANNOT


PLAIN_ANSWERS = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, run, samples = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(run + "/merged")
merged = AutoModelForCausalLM.from_pretrained(run + "/merged", dtype=torch.float32).eval()
adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run + "/adapter")
found = {"merged": [], "adapter": []}
for messages in json.loads(samples):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for name, model in (("merged", merged), ("adapter", adapted.eval())):
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        found[name].append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
assert not {"finetune", "evaluation", "trl"} & set(sys.modules)
print(json.dumps(found))
"""


def test_what_is_published_answers_as_recorded(out: Path, first: Outcome) -> None:
    held_out = [json.loads(line) for line in (out / "data" / "held_out.jsonl").read_text().splitlines()][:8]
    _, outputs = load_result(out / "evaluation", "merged", "held_out")
    (base,) = (default_cache() / "gguf").glob("*/config.json")
    samples = json.dumps([sample["prompt"]["messages"] for sample in held_out])
    command = [sys.executable, "-c", PLAIN_ANSWERS, str(base.parent), str(out), samples]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HUNG_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    recorded = [output.generated for output in outputs[:8]]
    # A batch rounds differently from a sample alone, so one answer in eight may part at a tie.
    same = sum(a == b for a, b in zip(found["merged"], recorded, strict=True))
    assert same >= 7, list(zip(found["merged"], recorded, strict=True))
    if json.loads((out / "merged" / "merge.json").read_bytes())["onto"] == "full_precision":
        assert sum(a == b for a, b in zip(found["adapter"], found["merged"], strict=True)) >= 6


def without_network(command: list[str], folder: Path) -> Outcome:
    """Run `finetune` where every connection fails."""
    (folder / "cut").mkdir(exist_ok=True)
    (folder / "cut" / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join(filter(None, (str(folder / "cut"), os.environ.get("PYTHONPATH"))))
    assert shutil.which(sys.executable)
    return finetune_process(*command, environment=WHOLE_MACHINE | {"PYTHONPATH": path, "PIP_NO_INDEX": "1"})
