"""Who may import whom, and who may speak to which library."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from architecture.packages import ROOT, Module, modules

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
PROTECTED = [contract for contract in CONTRACTS if contract["type"] == "protected"]

LOADERS = {
    "evaluation.model": {"AutoModelForCausalLM", "PeftModel"},
    "evaluation.tokenizer": {"AutoTokenizer"},
    "finetune.gguf": {"AutoTokenizer", "AutoModelForCausalLM"},
    # An adapter on an fp32 copy of its base, to be folded at once; everything else loads through evaluation.model.
    "finetune.merging_fold": {"PeftModel"},
    # What somebody else would write: that a published folder answers so is the point of it.
    "finetune.plain_answers": {"AutoTokenizer", "AutoModelForCausalLM", "PeftModel"},
}
"""Module → classes whose `from_pretrained` it may call."""


@pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter is in the dev extra")
def test_import_contracts_are_kept() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in found.stdout


@pytest.mark.parametrize("contract", PROTECTED, ids=lambda contract: contract["protected_modules"][0])
def test_nobody_is_allowed_a_library_without_using_it(contract: dict[str, list[str]]) -> None:
    (library,) = contract["protected_modules"]
    using = {m.name for m in modules() if library in {name.partition(".")[0] for name in m.imported()}}
    assert using == set(contract["allowed_importers"])


def test_the_library_contracts_cover_what_the_design_names() -> None:
    covered = {contract["protected_modules"][0] for contract in PROTECTED}
    assert covered >= {"trl", "peft", "bitsandbytes", "huggingface_hub", "datasets", "pyarrow", "jinja2"}


def test_models_are_loaded_in_one_place() -> None:
    found: dict[str, set[str]] = {}
    for module in modules():
        for call in from_pretrained_calls(module):
            assert isinstance(call.value, ast.Name), f"{module.name}:{call.lineno}"
            found.setdefault(module.name, set()).add(call.value.id)
    assert found == LOADERS


def test_no_remote_code_and_no_pickle() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), module.name
                assert node.value.value is False, module.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in {"load", "save"}, f"{module.name}:{node.lineno}: torch.{node.attr}"
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & module.imported(), module.name


def test_nothing_imports_tests() -> None:
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests", "pytest", "hypothesis"}
    assert len(tests) > 20
    for module in modules():
        assert not {name.partition(".")[0] for name in module.imported()} & tests, module.name


def test_only_the_command_line_catches_everything() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                allowed = module.name == "finetune.cli" or caught not in {"everything", "Exception", "BaseException"}
                assert allowed, f"{module.name}:{node.lineno} catches {caught}"


def test_only_the_places_that_print_print() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{module.name}:{node.lineno}"


def from_pretrained_calls(module: Module) -> list[ast.Attribute]:
    calls = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    return [func for func in calls if isinstance(func, ast.Attribute) and func.attr == "from_pretrained"]
