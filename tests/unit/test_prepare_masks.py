"""The data stage stops where a mask is broken, before it writes anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from mask_breaks import Break, Broken, end_masked, masked_where_it_pads, prompt_trained
from rich.console import Console
from tiny_model import build_tokenizer

import finetune.prepare
import finetune.prepare_examples
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.prepare import prepare
from finetune.recipe import Recipe
from finetune.run_directory import RunDirectory


@pytest.mark.parametrize("masks", ["sample", "full"])
@pytest.mark.parametrize("breaks", [None, end_masked, masked_where_it_pads, prompt_trained])
def test_the_run_stops_before_anything_is_written(
    breaks: Break | None, masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tokenizer().save_pretrained(tmp_path / "base")
    rows = ["text,label", *(f"fever {i},{('red', 'blue')[i % 2]}" for i in range(60))]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    train = {"source": str(tmp_path / "rows.csv"), "rows": "classification"}
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "broken",
            "base": {"model": "./base"},
            "adapter": {"kind": "lora"},
            "data": {"train": (train,), "held_out": {"fraction": 0.2}, "max_tokens": 64, "audit": {"masks": masks}},
        }
    )
    if breaks is not None:
        monkeypatch.setattr(finetune.prepare_examples, "Renderer", Broken.by(breaks))
        # The laws of templates come first and see many of these too; here it is the second way that has to.
        monkeypatch.setattr(finetune.prepare, "check_template", lambda *_: None)
    finetune.prepare_examples.load_renderer.cache_clear()
    run = RunDirectory(tmp_path / "run")
    reporter = Reporter(Console(quiet=True, file=io.StringIO()))
    try:
        if breaks is None:
            assert prepare(recipe, run, tmp_path / "base", tmp_path / "cache", reporter).masks.probes > 0
            return
        with pytest.raises(DataError, match="position"):
            prepare(recipe, run, tmp_path / "base", tmp_path / "cache", reporter)
        assert not run.data.exists()
    finally:
        finetune.prepare_examples.load_renderer.cache_clear()
