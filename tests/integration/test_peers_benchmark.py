"""The comparison with other tools, run with the two contenders that need no environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_base

from benchmarks.peer_rows import Row, write_messages

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_round_ends_in_a_table_where_a_failure_is_a_row(tmp_path: Path) -> None:
    model = write_tiny_base(tmp_path / "model")
    write_messages(tmp_path / "rows.jsonl", [Row(f"Say {word}.", word * 3) for word in ("red", "green", "blue")])
    options = {"--peers": "ours-bf16,loop-bf16", "--rounds": "1", "--data": tmp_path / "rows.jsonl", "--model": model}
    command = [sys.executable, "-m", "benchmarks.peers", *[str(word) for pair in options.items() for word in pair]]
    command += ["--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    outcomes = {
        one["contender"]: one for one in json.loads((tmp_path / "results" / "results.json").read_text())["outcomes"]
    }
    assert set(outcomes) == {"ours-bf16", "loop-bf16"}
    for outcome in outcomes.values():
        assert outcome["training"]["seconds"] > 0
        assert outcome["peak_bytes"] > 10**8
        assert outcome["loss_after"] > 0
        assert (tmp_path / "results" / "logs" / f"{outcome['contender']}-1.log").exists()
    assert outcomes["ours-bf16"]["tokens"] == outcomes["loop-bf16"]["tokens"]
    assert done.stdout == (tmp_path / "results" / "table.md").read_text() + "\n"
    assert not (tmp_path / "results" / "work").exists()
