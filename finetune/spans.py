"""An example as people read it: pieces of text that are trained on and pieces that are not."""

from __future__ import annotations

from evaluation.rendering import IGNORE, Example, Renderer
from finetune.audit_records import TokenSpan


def spans_of(example: Example, renderer: Renderer) -> tuple[TokenSpan, ...]:
    """Cut an example into runs of tokens that are trained on and runs that are not, as text."""
    spans: list[TokenSpan] = []
    start = 0
    ids, trained = example.input_ids, [label != IGNORE for label in example.labels]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            spans.append(TokenSpan(text=renderer.text(ids[start:end]), trained=trained[start]))
            start = end
    return tuple(spans)
