"""What the fixtures of the row templates look like to a model, with what is trained on between ⟦ and ⟧.

After a template has been changed on purpose, write the files anew and read the difference:

    PYTHONPATH=tests python tests/unit/row_template_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import build_tokenizer

from evaluation.rendering import Renderer
from finetune.chat_templates import load_chat_template
from finetune.row_templates import list_row_templates, load_row_template, to_conversation
from finetune.spans import spans_of

FIXTURES = Path(__file__).with_name("row_template_fixtures")
GOLDENS = Path(__file__).with_name("golden_rows")
BETWEEN = "\n--------\n"
"""Stands between two rows."""


def golden_text(name: str) -> str:
    """Render every row of a template's fixture as ChatML, or as plain text."""
    renderer = Renderer(build_tokenizer(load_chat_template("chatml")))
    template = load_row_template(name)
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = []
    for line in lines:
        example = renderer.example(to_conversation(template, json.loads(line), {}))
        spans = spans_of(example, renderer)
        texts.append("".join(f"⟦{span.text}⟧" if span.trained else span.text for span in spans))
    return BETWEEN.join(texts) + "\n"


def main() -> None:
    """Write the goldens of all templates."""
    GOLDENS.mkdir(exist_ok=True)
    for name in list_row_templates():
        (GOLDENS / f"{name}.txt").write_text(golden_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
