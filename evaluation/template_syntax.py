"""Takes a chat template apart and puts the counting of `template_meter` into it."""
# ruff: noqa: N802 (Jinja finds a visitor by the name of the node)

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from evaluation.template_meter import TemplateExceedsError

_ACCEPTED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Break, nodes.Continue, nodes.With),
    *(nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Assign, nodes.AssignBlock, nodes.NSRef, nodes.Name),
    *(nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Slice),
    *(nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.BinExpr, nodes.UnaryExpr, nodes.ExtensionAttribute),
)
MOST_NODES = 6_000
"""Parts of a template, compiled in half a second; the largest of those that trl 1.16 brings has 1,404."""
_CHEAP_TESTS = frozenset(
    {"boolean", "defined", "false", "iterable", "mapping", "none", "number", "sequence", "string", "true", "undefined"}
)


def bound(tree: nodes.Template) -> nodes.Template:
    """Return the template with every loop and every operation that makes something counted.

    Raises:
        TemplateExceedsError: it uses what chat templates have no need of: other files, blocks, autoescaping.
    """
    for number, node in enumerate(tree.find_all(nodes.Node)):
        if number > MOST_NODES:
            raise TemplateExceedsError(f"it has more than {MOST_NODES:,} parts")
        if not isinstance(node, _ACCEPTED):
            raise TemplateExceedsError(f"{type(node).__name__} is not accepted in a chat template (line {node.lineno})")
    bounded: nodes.Template = _Counting().visit(tree)
    bounded.set_environment(tree.environment)  # type: ignore[arg-type]
    return bounded


def _through(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    """Pass a value through a filter whose name no template can write."""
    return nodes.Filter(value, f" {name}", list(args), [], None, None, lineno=value.lineno)


class _Counting(NodeTransformer):
    """Rewrites nodes from the inside out."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        count = _through("round", nodes.Const(written, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(count, node.test, lineno=node.lineno)
        node.body = [nodes.ExprStmt(count, lineno=node.lineno), *node.body]
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _through("written", n) for n in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("joined", *node.nodes)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._made(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        return self._made(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            return self._made(node)
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        quick = all(o.op not in ("in", "notin") for o in node.ops) and any(
            isinstance(side, nodes.Const) for side in (node.expr, node.ops[0].expr)
        )
        self.generic_visit(node)
        return node if quick and len(node.ops) == 1 else _through("passed", node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        return node if node.name in _CHEAP_TESTS else _through("passed", node)

    def _made(self, node: Any) -> nodes.Node:
        constant = isinstance(node, (nodes.Tuple, nodes.List)) and all(isinstance(n, nodes.Const) for n in node.items)
        self.generic_visit(node)
        return node if constant else _through("made", node)
