"""How large modules and functions may grow; the limits are those of CONTRIBUTING."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator

from architecture.packages import Module, modules

MEDIAN_MODULE_LINES = 260
LARGEST_MODULE_LINES = 400
LARGEST_FUNCTION_LINES = 60
MOST_PARAMETERS = 6
DEEPEST_NESTING = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef

# A command's options are its parameters; what is overridden has the parameters that it has upstream.
MANY_PARAMETERS = {
    "evaluation.cli.run",
    "finetune.cli.run",
    "finetune.plan_cli.plan",
    "finetune.publish_cli.publish",
    "finetune.talk_cli.chat",
    "finetune.talk_cli.serve",
}

# What decides or repeats. `with` is looked into and not counted: it says how long something is held.
BLOCKS = (ast.If, ast.For, ast.While, ast.Try, ast.Match)


def test_modules_are_short() -> None:
    lengths = {module.name: module.lines for module in modules()}
    assert statistics.median(lengths.values()) <= MEDIAN_MODULE_LINES
    assert {name: lines for name, lines in lengths.items() if lines > LARGEST_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines > LARGEST_FUNCTION_LINES} == {}


def test_functions_have_few_parameters() -> None:
    counts = {name: parameters(node) for name, node in functions()}
    assert {name for name, count in counts.items() if count > MOST_PARAMETERS} == MANY_PARAMETERS


def test_functions_are_shallow() -> None:
    depths = {name: nesting(node.body) for name, node in functions()}
    assert {name: depth for name, depth in depths.items() if depth > DEEPEST_NESTING} == {}


def test_every_module_and_public_function_says_what_it_is() -> None:
    silent = [module.name for module in modules() if not ast.get_docstring(module.tree)]
    for name, node in functions():
        private = any(part.startswith("_") for part in name.split(".")[1:])
        if not private and "<locals>" not in name and not ast.get_docstring(node):
            silent.append(name)
    assert silent == []


def functions() -> Iterator[tuple[str, Function]]:
    for module in modules():
        yield from functions_in(module, module.tree, module.name)


def functions_in(module: Module, node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{name}.{child.name}", child
            yield from functions_in(module, child, f"{name}.{child.name}.<locals>")
        elif isinstance(child, ast.ClassDef):
            yield from functions_in(module, child, f"{name}.{child.name}")


def parameters(node: Function) -> int:
    named = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in named if name not in {"self", "cls"}])


def nesting(body: list[ast.stmt]) -> int:
    """Count how many blocks stand in one another; `elif` and the cases of a match are one level, not many."""
    deepest = 0
    for statement in body:
        if isinstance(statement, (*BLOCKS, ast.With)):
            inside = max((nesting(inner) for inner in inner_bodies(statement)), default=0)
            deepest = max(deepest, inside + isinstance(statement, BLOCKS))
    return deepest


def inner_bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    if isinstance(statement, ast.Match):
        yield from (case.body for case in statement.cases)
        return
    for field in ("body", "finalbody"):
        yield getattr(statement, field, [])
    yield from (handler.body for handler in getattr(statement, "handlers", []))
    other = getattr(statement, "orelse", [])
    if len(other) == 1 and isinstance(other[0], ast.If):
        yield from inner_bodies(other[0])
    else:
        yield other
