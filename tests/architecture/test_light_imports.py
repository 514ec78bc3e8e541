"""What answers at once: the commands that need no model never import torch, nor what takes as long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate", "sklearn", "scipy"}

# Runs a command line and says, in the last line, which modules it took.
PROBE = """
import json, sys
try:
    {statement}
except SystemExit:
    pass
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

LIGHT = {
    "import finetune": "import finetune.cli",
    "import evaluation": "import evaluation.cli",
    "finetune --help": "from finetune.cli import main; main(['--help'])",
    "finetune run --help": "from finetune.cli import main; main(['run', '--help'])",
    "finetune rerun --help": "from finetune.cli import main; main(['rerun', '--help'])",
    "finetune diff --help": "from finetune.cli import main; main(['diff', '--help'])",
    "finetune check": "from finetune.cli import main; main(['check', 'icd10-quickstart'])",
    "finetune plan": "from finetune.cli import main; main(['plan', 'llama3.1-8b-qlora-chat', '--device', 'h100'])",
    "finetune list": "from finetune.cli import main; main(['list'])",
    "finetune list templates": "from finetune.cli import main; main(['list', 'templates'])",
    "finetune schema": "from finetune.cli import main; main(['schema'])",
    "evaluation --help": "from evaluation.cli import main; main(['--help'])",
    "evaluation tasks": "from evaluation.cli import main; main(['tasks'])",
}


@pytest.mark.parametrize("statement", LIGHT.values(), ids=LIGHT.keys())
def test_no_model_library_is_imported(statement: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    imported = set(json.loads(found.stdout.splitlines()[-1]))
    assert imported & {"finetune", "evaluation"}
    assert imported & HEAVY == set()


def test_the_probe_would_notice() -> None:
    command = [sys.executable, "-c", PROBE.format(statement="import scipy")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "scipy" in json.loads(found.stdout.splitlines()[-1])
