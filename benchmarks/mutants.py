"""Breaks a module in one place at a time.

A mutant is the module with one comparison turned round, one constant changed, one condition fixed, one `raise` or call
taken out, or one `and` made an `or`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

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
    lines: frozenset[int] = frozenset()
    """Where it stands and where its statement begins: a test that reaches neither cannot notice it."""


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
            lines = _lines(node, parents)
            yield Mutant(module, max(lines), what, ast.unparse(ast.fix_missing_locations(tree)), lines)


def _lines(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> frozenset[int]:
    statement = node
    while not isinstance(statement, ast.stmt):
        statement = parents[statement]
    return frozenset({statement.lineno, node.lineno if isinstance(node, ast.expr) else statement.lineno})


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
