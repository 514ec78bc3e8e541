"""Breaks the guards against hostile input one place at a time, and says which breaks no test notices.

    python benchmarks/mutate_guards.py [MODULE …] [--budget SECONDS]

A mutant is the module with one comparison turned round, one constant changed, one condition fixed, one `raise` or guard
taken out, or one `and` made an `or`. It is written into a copy of the tree, and the module's tests are run on it until
one fails. Which tests belong to which module is said below; a mutant that nothing notices is printed with its line.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2  # noqa: F401
import peft  # noqa: F401
import pytest

# Imported once for all mutants: every one of them is tried in a fork of this process.
import transformers  # noqa: F401

ROOT = Path(__file__).parents[1]
GUARDS: dict[str, tuple[str, ...]] = {
    "evaluation/offline.py": ("tests/hostile/test_offline.py",),
    "evaluation/adapter_files.py": ("tests/hostile/test_adapter_guards.py",),
    "evaluation/model_files.py": ("tests/hostile/test_model_guards.py",),
    "evaluation/screen.py": ("tests/hostile/test_screen.py",),
    "finetune/gguf_header.py": ("tests/hostile/test_model_guards.py",),
    "finetune/base_hashes.py": ("tests/unit/test_hub.py", "tests/hostile/test_damaged_files.py"),
    "finetune/batch_cutting.py": ("tests/laws/test_memory_laws.py",),
    "finetune/checkpoints.py": ("tests/laws/test_resume_laws.py",),
    "finetune/disk_space.py": ("tests/unit/test_disk_space.py",),
    "finetune/hub_cache.py": ("tests/hostile/test_damaged_files.py",),
    "finetune/loss_watch.py": ("tests/unit/test_loss_watch.py",),
    "finetune/memory_fit.py": ("tests/laws/test_memory_laws.py",),
    "finetune/merged_files.py": ("tests/hostile/test_damaged_files.py",),
    "finetune/signals.py": ("tests/unit/test_signals.py",),
    "finetune/training_guards.py": ("tests/laws/test_training_laws.py", "tests/faults/test_not_finite.py"),
    "finetune/weight_files.py": ("tests/hostile/test_model_guards.py", "tests/unit/test_bases.py"),
    "finetune/peft_config.py": ("tests/hostile/test_bad_adapters.py", "tests/hostile/test_adapter_guards.py"),
    "finetune/sandbox.py": ("tests/unit/test_sandbox.py",),
    "finetune/recipe_yaml.py": ("tests/unit/test_recipe_file.py", "tests/hostile/test_bad_recipes.py"),
    "finetune/secret_rules.py": ("tests/hostile/test_bad_recipes.py", "tests/unit/test_recipe_file.py"),
}
"""A guard → the tests that have to notice when it is broken."""
PATIENCE = 120
"""Least seconds for the tests of one mutant; one that never ends is noticed."""
SLOWER = 6
"""Times what they take without a break: on a busy machine, what is slow does not count as noticed."""

_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True)
class Mutant:
    """One break."""

    module: str
    line: int
    what: str
    text: str


def mutants_of(module: str) -> Iterator[Mutant]:
    """Yield every break of a module, in the order of its lines."""
    source = (ROOT / module).read_text(encoding="utf-8")
    broken = (ast.Compare, ast.If, ast.IfExp, ast.Raise, ast.Expr, ast.BoolOp, ast.UnaryOp, ast.Constant)
    for number, kind in enumerate(map(type, ast.walk(ast.parse(source)))):
        if not issubclass(kind, broken):
            continue
        for way in (_compared, _fixed, _removed, _joined, _counted):
            tree = ast.parse(source)
            node = list(ast.walk(tree))[number]
            parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
            if _is_prose(node, parents) or (what := way(node, parents)) is None:
                continue
            yield Mutant(module, getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(tree)))


def _is_prose(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Leave out types, docstrings and what is inside messages: nobody's safety hangs on their words."""
    while node in parents:
        parent = parents[node]
        if isinstance(parent, ast.JoinedStr) or (isinstance(parent, ast.Expr) and isinstance(node, ast.Constant)):
            return True
        if isinstance(parent, (ast.AnnAssign, ast.arg)) and parent.annotation is node:
            return True
        if isinstance(parent, (ast.FunctionDef)) and parent.returns is node:
            return True
        node = parent
    return False


def _compared(node: ast.AST, _: dict[ast.AST, ast.AST]) -> str | None:
    if not isinstance(node, ast.Compare):
        return None
    before = ast.unparse(node)
    node.ops[0] = _TURNED[type(node.ops[0])]()
    return f"{before} → {ast.unparse(node)}"


def _fixed(node: ast.AST, _: dict[ast.AST, ast.AST]) -> str | None:
    """Never take a branch that refuses."""
    if not isinstance(node, ast.If | ast.IfExp):
        return None
    before = ast.unparse(node.test)
    node.test = ast.Constant(False)
    return f"if {before} → if False"


def _removed(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str | None:
    """Take out a `raise`, or a call whose value nobody takes."""
    parent = parents.get(node)
    guard = isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    if not guard or parent is None or isinstance(parent, ast.ExceptHandler):
        return None
    before = ast.unparse(node)
    for name in ("body", "orelse", "finalbody"):
        body = getattr(parent, name, None)
        if isinstance(body, list) and node in body:
            body[body.index(node)] = ast.Pass()
            return f"{before[:70]} → pass"
    return None


def _joined(node: ast.AST, _: dict[ast.AST, ast.AST]) -> str | None:
    if isinstance(node, ast.BoolOp):
        before = ast.unparse(node)
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"{before} → {ast.unparse(node)}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        before = ast.unparse(node)
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
        return f"{before} → {ast.unparse(node)}"
    return None


def _counted(node: ast.AST, _: dict[ast.AST, ast.AST]) -> str | None:
    """Change a number that a limit is made of."""
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return None
    before = ast.unparse(node)
    node.value = node.value * 1000 + 1
    return f"{before} → {node.value}"


def is_noticed(mutant: Mutant, copied: Path, patience: float = 10 * PATIENCE) -> bool:
    """Run the module's tests on a mutant, and say whether one fails or never ends."""
    file = copied / mutant.module
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    child = os.fork()
    if child == 0:
        os._exit(_tested(mutant, copied))
    try:
        return _status(child, patience) != 0
    finally:
        file.write_text(original, encoding="utf-8")


def _tested(mutant: Mutant, copied: Path) -> int:
    """Run the tests in this fork, which has the large libraries already and nothing of ours."""
    os.chdir(copied)
    sys.path.insert(0, str(copied))
    os.environ["PYTHONPATH"] = str(copied)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    return int(pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *GUARDS[mutant.module]]))


def _status(child: int, patience: float) -> int:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> int:
    """Mutate the guards that are named, or all, and print the score of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(GUARDS))
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds; a sample of what is left is drawn")
    wanted = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    began, noticed, tried = time.monotonic(), 0, 0
    found = [mutant for module in wanted.modules for mutant in mutants_of(module)]
    if wanted.budget < float("inf"):
        random.Random(0).shuffle(found)
    scores: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as place:
        copied = Path(place) / "tree"
        ignored = shutil.ignore_patterns(".git", ".mypy_cache", ".ruff_cache", "__pycache__", "*.egg-info", "runs")
        shutil.copytree(ROOT, copied, ignore=ignored)
        patience = {}
        for module in wanted.modules:
            started = time.monotonic()
            unbroken = Mutant(module, 0, "", (ROOT / module).read_text(encoding="utf-8"))
            assert not is_noticed(unbroken, copied), f"the tests of {module} fail without a break"
            patience[module] = max(PATIENCE, SLOWER * (time.monotonic() - started))
        for mutant in found:
            if time.monotonic() - began > wanted.budget:
                break
            killed = is_noticed(mutant, copied, patience[mutant.module])
            score = scores.setdefault(mutant.module, [0, 0])
            score[0] += killed
            score[1] += 1
            noticed, tried = noticed + killed, tried + 1
            if not killed:
                print(f"{mutant.module}:{mutant.line}: {mutant.what}", flush=True)
    for module, (one, all_) in sorted(scores.items()):
        print(f"{module}: {one} of {all_}")
    print(f"{noticed} of {tried} noticed ({noticed / max(tried, 1):.1%}), of {len(found)} there are")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
