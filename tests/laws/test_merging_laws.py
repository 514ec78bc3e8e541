"""What must hold of a merge: measured on the tiny model against the unmerged adapter, and refused past each limit."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_model import build_model, build_tokenizer
from tiny_training import silent, tiny_examples, tiny_job, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetune.merging
from evaluation.files import sha256_of_folder
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec, Quantization, dequantized_weights, load_base
from evaluation.rendering import IGNORE, Example
from finetune.adapter import ADAPTER_FILE, build_adapter, write_adapter
from finetune.console import Reporter
from finetune.errors import ProofFailed
from finetune.example_files import example_at, load_examples, write_examples
from finetune.merge_records import GreedyProof, MergeProof
from finetune.merging import DOOR_CONVERSATIONS, merge
from finetune.merging_answers import OTHER_PROMPTS, OWN_PROMPTS, answer_greedily, compare_greedy, greedy_prompts
from finetune.merging_fold import Folding, Onto, fold, load_unfolded, save_merged
from finetune.merging_limits import gain_holds, greedy_holds
from finetune.merging_proof import (
    PROBE_TOKENS,
    Probe,
    agreement,
    answer_logits,
    build_probe,
    largest_difference,
    mean_kl,
)
from finetune.recipe import Merge, Recipe
from finetune.run_directory import RunDirectory

EXAMPLES = tiny_examples(12)
PROBE = build_probe(EXAMPLES)
NF4 = Quantization()


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    if request.param == "untied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("only-tied")
    tokenizer = build_tokenizer()
    build_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_moved_adapter(base: Path, folder: Path, variant: str = "standard", scale: float = 0.05) -> Path:
    """Write an adapter as training might leave it: every tensor away from where it began."""
    recipe = tiny_recipe(base, adapter={"variant": variant})
    model = build_adapter(load_base(ModelSpec(base, dtype="float32", device="cpu")), recipe.adapter, 7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "magnitude" in name:
                parameter.mul_(1 + scale)
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(model, folder, "tiny-base", None)
    build_tokenizer().save_pretrained(folder)
    return folder


def spec(base: Path, adapter: Path | None, quantization: Quantization | None, dtype: str = "float32") -> ModelSpec:
    return ModelSpec(base, adapter, quantization, dtype, "cpu")


# ------------------------------------------------------------------ folding


@pytest.mark.parametrize("variant", ["standard", "rslora", "dora"])
@pytest.mark.parametrize("way", ["full_precision", "nf4 onto full_precision", "nf4 onto dequantized"])
def test_folded_equals_unfolded_and_not_the_base(base: Path, tmp_path: Path, variant: str, way: str) -> None:
    onto: Onto = "dequantized" if way.endswith("dequantized") else "full_precision"
    adapter = write_moved_adapter(base, tmp_path / "adapter", variant)
    unfolded = load_unfolded(Folding(spec(base, adapter, NF4 if "nf4" in way else None), onto))
    expected = answer_logits(unfolded, PROBE)
    assert isinstance(unfolded.model, PeftModel)
    with unfolded.model.disable_adapter():
        untuned = answer_logits(unfolded, PROBE)
    folded = fold(unfolded)
    found = answer_logits(folded, PROBE)
    assert largest_difference(found, expected) <= 1e-5
    assert largest_difference(found, untuned) > 0.1

    save_merged(folded, tmp_path / "merged", "float32")
    saved = load_language_model(spec(tmp_path / "merged", None, None))
    assert torch.equal(answer_logits(saved, PROBE), found)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tied = bool(plain.config.tie_word_embeddings)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    ids = torch.tensor([EXAMPLES[0].input_ids])
    with torch.inference_mode():
        assert torch.equal(plain(input_ids=ids).logits, saved.causal_lm(input_ids=ids).logits)


@pytest.mark.parametrize(("variant", "scale"), [("standard", 8 / 4), ("rslora", 8 / 2)])
def test_folded_weight_is_weight_plus_scaled_product(tied: Path, tmp_path: Path, variant: str, scale: float) -> None:
    adapter = write_moved_adapter(tied, tmp_path / "adapter", variant)
    factors = load_file(adapter / ADAPTER_FILE)
    before = load_file(tied / "model.safetensors")
    save_merged(fold(load_unfolded(Folding(spec(tied, adapter, None), "full_precision"))), tmp_path / "m", "float32")
    after = load_file(tmp_path / "m" / "model.safetensors")
    assert after.keys() == before.keys()
    adapted = 0
    for name, weight in before.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in factors:
            adapted += 1
            product = factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"]
            assert torch.allclose(after[name], weight + scale * product, rtol=0, atol=1e-6)
            assert not torch.equal(after[name], weight)
        else:
            assert torch.equal(after[name], weight)
    assert adapted == 14


def test_dequantized_way_folds_into_what_training_saw(tied: Path, tmp_path: Path) -> None:
    adapter = write_moved_adapter(tied, tmp_path / "adapter")
    trained = spec(tied, adapter, NF4)
    unfolded = load_unfolded(Folding(trained, "dequantized"))
    weights = dict(dequantized_weights(load_base(replace(trained, adapter=None))))
    assert len(weights) == 14
    inside = dict(unfolded.causal_lm.named_parameters())
    for name, weight in weights.items():
        assert torch.equal(inside[name.replace(".weight", ".base_layer.weight")], weight)
    as_trained = answer_logits(load_language_model(trained), PROBE)
    assert largest_difference(answer_logits(unfolded, PROBE), as_trained) <= 1e-5
    other = answer_logits(load_unfolded(Folding(trained, "full_precision")), PROBE)
    assert largest_difference(other, as_trained) > 1e-2


def test_bfloat16_base_is_folded_into_as_it_is_rounded(tied: Path, tmp_path: Path) -> None:
    adapter = write_moved_adapter(tied, tmp_path / "adapter")
    unfolded = load_unfolded(Folding(spec(tied, adapter, None, "bfloat16"), "full_precision"))
    for name, parameter in unfolded.causal_lm.named_parameters():
        assert parameter.dtype == torch.float32
        if "lora" not in name:
            assert torch.equal(parameter.bfloat16().float(), parameter)


def test_saved_merge_names_no_path(tied: Path, tmp_path: Path) -> None:
    adapter = write_moved_adapter(tied, tmp_path / "adapter")
    save_merged(
        fold(load_unfolded(Folding(spec(tied, adapter, None), "full_precision"))), tmp_path / "merged", "bfloat16"
    )
    for path in (tmp_path / "merged").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(tied).encode() not in path.read_bytes()
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def write_base_that_stops_elsewhere(folder: Path) -> Path:
    """Write a base with another end of text than the end of turn that its template brings."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    tokenizer.eos_token = "<|endoftext|>"
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_plain_transformers_stops_where_training_ended_answers(tmp_path: Path) -> None:
    base = write_base_that_stops_elsewhere(tmp_path / "base")
    adapter = write_moved_adapter(base, tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    save_merged(
        fold(load_unfolded(Folding(spec(base, adapter, None), "full_precision"))), tmp_path / "merged", "float32"
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config.eos_token_id == [0, 2]
    assert AutoModelForCausalLM.from_pretrained(base).generation_config.eos_token_id == 0


# ------------------------------------------------------------------ the stage


def prepared(
    base: Path, folder: Path, *, validation: bool = True, scale: float = 0.05, **sections: object
) -> tuple[Recipe, RunDirectory, ModelSpec]:
    """Make a run that has been trained: the validation rows are what the adapter itself would write."""
    recipe = tiny_recipe(base, **sections)
    quantization = Quantization() if recipe.quantization else None
    job = tiny_job(folder, recipe, EXAMPLES, None)
    adapter = write_moved_adapter(base, job.run.adapter, recipe.adapter.variant, scale)
    trained = spec(base, adapter, quantization)
    if validation:
        model = load_language_model(trained)
        liked = [liked_answer(model, example) for example in EXAMPLES]
        write_examples(folder / "data" / "validation.arrow", liked)
    return recipe, job.run, trained


def liked_answer(model: LanguageModel, example: Example) -> Example:
    """Continue a prompt as the model would, so that the adapter is better than the base by construction."""
    prompt = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE]
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(4):
            ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return Example(tuple(ids), (*[IGNORE] * len(prompt), *ids[len(prompt) :]))


def proof_of(run: RunDirectory) -> MergeProof:
    return MergeProof.model_validate_json((run.merged / "merge.json").read_bytes())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stage_writes_a_merge_with_its_proof(tied: Path, tmp_path: Path, dtype: str) -> None:
    recipe, run, trained = prepared(
        tied, tmp_path / "run", quantization={"kind": "nf4"}, merge={"dtype": dtype, "minimum_agreement": 0.9}
    )
    merge(recipe, run, trained, silent())
    proof = proof_of(run)
    assert {candidate.onto for candidate in proof.candidates} == {"full_precision", "dequantized"}
    assert proof.onto == min(proof.candidates, key=lambda candidate: candidate.validation_nll).onto
    assert proof.dtype == dtype
    assert proof.max_logit_difference <= 1e-5 * max(1.0, proof.logit_scale)
    assert proof.kl_to_base > 1e-3
    assert [(door.door, door.conversations) for door in proof.doors] == [
        (door, DOOR_CONVERSATIONS) for door in ("training", "adapter, plain transformers", "merged, plain transformers")
    ]
    assert proof.greedy is not None
    assert proof.greedy.prompts == OWN_PROMPTS + OTHER_PROMPTS
    assert proof.greedy.equal == proof.greedy.prompts or dtype == "bfloat16"
    assert proof.nll_as_trained < proof.nll_base
    assert proof.probe_tokens == 4 * len(EXAMPLES)
    files = {path.name for path in run.merged.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "merge.json"} <= files
    assert not {"full_precision", "dequantized"} & files
    (run.merged / "merge.json").unlink()
    assert sha256_of_folder(run.merged) == proof.merged_sha256
    saved = load_language_model(ModelSpec(run.merged, dtype=dtype, device="cpu"))
    assert sum(loss.nll for loss in saved.example_losses(rows(run))) / proof.probe_tokens == pytest.approx(
        proof.nll_merged, rel=1e-6
    )


def rows(run: RunDirectory) -> list[Example]:
    found = load_examples(run.data / "validation.arrow")
    return [example_at(found, i) for i in range(len(found))]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, {"full_precision"}),
        ({"quantization": {"kind": "nf4"}, "merge": {"onto": "full_precision"}}, {"full_precision"}),
        ({"quantization": {"kind": "nf4"}, "merge": {"onto": "dequantized"}}, {"dequantized"}),
    ],
)
def test_stage_folds_as_the_recipe_says(
    tied: Path, tmp_path: Path, sections: dict[str, dict[str, object]], expected: set[str]
) -> None:
    lenient = {"dtype": "float32", "minimum_gain_kept": 0.0, **sections.get("merge", {})}
    recipe, run, trained = prepared(tied, tmp_path / "run", **{**sections, "merge": lenient})
    merge(recipe, run, trained, silent())
    assert {candidate.onto for candidate in proof_of(run).candidates} == expected
    if expected == {"dequantized"}:
        assert proof_of(run).agreement_as_trained == 1.0
        assert proof_of(run).gain_kept == pytest.approx(1.0, abs=1e-4)


def test_training_rows_serve_where_there_are_no_validation_rows(tied: Path, tmp_path: Path) -> None:
    recipe, run, trained = prepared(
        tied, tmp_path / "run", validation=False, merge={"dtype": "float32", "minimum_gain_kept": 0.0}
    )
    merge(recipe, run, trained, silent())
    assert proof_of(run).probe_rows == len(EXAMPLES)


def cancelled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return factors whose product is zero, none of which is."""
    kept = tensor.clone()
    kept[(slice(0, 1),) if "lora_A" in name else (slice(None), slice(1, None))] = 0
    return kept


def test_merge_that_changes_nothing_is_refused(tied: Path, tmp_path: Path) -> None:
    recipe, run, trained = prepared(tied, tmp_path / "run", merge={"dtype": "float32"})
    file = run.adapter / ADAPTER_FILE
    save_file({name: cancelled(name, tensor) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ProofFailed, match="nothing was folded in") as failed:
        merge(recipe, run, trained, silent())
    assert failed.value.exit_code == 5
    assert not run.merged.exists()
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".staging")]


def test_fold_that_is_wrong_is_refused(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(unfolded: LanguageModel) -> LanguageModel:
        folded = fold(unfolded)
        with torch.no_grad():
            folded.causal_lm.model.layers[0].mlp.down_proj.weight.mul_(1.001)
        return folded

    monkeypatch.setattr(finetune.merging, "fold", off)
    recipe, run, trained = prepared(tied, tmp_path / "run", merge={"dtype": "float32"})
    with pytest.raises(ProofFailed, match="folded and unfolded logits differ"):
        merge(recipe, run, trained, silent())
    assert not run.merged.exists()


def test_saving_that_is_wrong_is_refused(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(merged: LanguageModel, folder: Path, dtype: str) -> None:
        with torch.no_grad():
            merged.causal_lm.model.layers[0].mlp.down_proj.weight.mul_(3)
        save_merged(merged, folder, dtype)

    monkeypatch.setattr(finetune.merging, "save_merged", off)
    recipe, run, trained = prepared(tied, tmp_path / "run", merge={"dtype": "float32"})
    with pytest.raises(ProofFailed, match="disagree on"):
        merge(recipe, run, trained, silent())
    assert not run.merged.exists()


def test_answers_that_part_at_no_tie_are_refused(tied: Path, tmp_path: Path) -> None:
    adapter = write_moved_adapter(tied, tmp_path / "adapter")
    base, tuned = load_language_model(spec(tied, None, None)), load_language_model(spec(tied, adapter, None))
    prompts = greedy_prompts(tuned, EXAMPLES)
    answers = answer_greedily(tuned, prompts)
    same = compare_greedy(tuned, prompts, answers, 0.0)
    assert (same.equal, same.largest_gap) == (len(prompts), None)
    other = compare_greedy(base, prompts, answers, 1e-6)
    assert other.equal < len(prompts)
    assert not greedy_holds(other)
    difference = largest_difference(answer_logits(base, PROBE), answer_logits(tuned, PROBE))
    assert greedy_holds(compare_greedy(base, prompts, answers, difference))


def test_another_chat_template_beside_the_merge_is_refused(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another(merged: LanguageModel, folder: Path, dtype: str) -> None:
        save_merged(merged, folder, dtype)
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|im_end|>' + '\n'", "<|im_end|>'"))

    monkeypatch.setattr(finetune.merging, "save_merged", with_another)
    recipe, run, trained = prepared(tied, tmp_path / "run", merge={"dtype": "float32"})
    with pytest.raises(ProofFailed, match="merged, plain transformers makes other tokens"):
        merge(recipe, run, trained, silent())
    assert not run.merged.exists()


ANSWERS = {"prompts": 16, "tokens": 32, "stopped": 4}
GOOD = MergeProof(
    onto="full_precision",
    dtype="bfloat16",
    candidates=(),
    probe_rows=10,
    probe_tokens=1000,
    max_logit_difference=1e-6,
    logit_scale=20.0,
    agreement=0.998,
    agreement_as_trained=0.95,
    kl_as_trained=0.01,
    kl_to_base=0.5,
    nll_base=2.0,
    nll_as_trained=1.0,
    nll_merged=1.05,
    gain_kept=0.95,
    merged_sha256="0" * 64,
    seconds=1.0,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"greedy": GreedyProof(**ANSWERS, equal=15, largest_gap=0.4, allowed_gap=0.4)}, None),
        ({"greedy": GreedyProof(**ANSWERS, equal=14, largest_gap=0.41, allowed_gap=0.4)}, "answer 2 of 16 prompts"),
        ({"greedy": GreedyProof(**ANSWERS, equal=15, largest_gap=float("inf"), allowed_gap=0.4)}, "answer 1 of 16"),
        ({"max_logit_difference": 1.9e-4}, None),
        ({"max_logit_difference": 2.1e-4}, "folded and unfolded"),
        ({"max_logit_difference": float("nan")}, "folded and unfolded"),
        ({"max_logit_difference": 0.9e-5, "logit_scale": 0.1}, None),
        ({"max_logit_difference": 1.1e-5, "logit_scale": 0.1}, "folded and unfolded"),
        ({"agreement": 0.995}, None),
        ({"agreement": 0.994}, "disagree on 6 of 1000 answer tokens, 5 are allowed"),
        ({"agreement": 0.9, "probe_tokens": 10}, None),
        ({"agreement": 0.8, "probe_tokens": 10}, "disagree on 2 of 10 answer tokens, 1 are allowed"),
        ({"kl_to_base": 1.1e-6}, None),
        ({"kl_to_base": 0.9e-6}, "nothing was folded in"),
        ({"kl_to_base": float("nan")}, "nothing was folded in"),
        ({"gain_kept": 0.901}, None),
        ({"gain_kept": 0.899}, "keeps 89.9%"),
        ({"gain_kept": float("nan")}, "of the fall in validation loss"),
    ],
)
def test_each_limit_is_a_limit(change: dict[str, float], message: str | None) -> None:
    proof = GOOD.model_copy(update=change)
    if message is None:
        finetune.merging._check(proof, Merge())
    else:
        with pytest.raises(ProofFailed, match=message):
            finetune.merging._check(proof, Merge())


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        ((2.0, 1.0, 1.0), 1.0),
        ((2.0, 1.0, 1.5), 0.5),
        ((2.0, 1.0, 0.9), 1.1),
    ],
)
def test_gain_kept_is_the_share_of_the_fall(figures: tuple[float, float, float], kept: float) -> None:
    assert finetune.merging._gain_kept(*figures) == pytest.approx(kept)


@pytest.mark.parametrize(("merged", "holds"), [(1.2, True), (2.0, False)])
def test_without_a_gain_the_merge_must_be_no_worse_than_trained(merged: float, holds: bool) -> None:
    assert finetune.merging._gain_kept(1.0, 1.2, merged) is None
    proof = GOOD.model_copy(update={"gain_kept": None, "nll_as_trained": 1.2, "nll_merged": merged})
    assert gain_holds(proof, Merge()) == holds


# ------------------------------------------------------------------ the measures


def test_probe_is_the_first_rows_up_to_its_size() -> None:
    many = EXAMPLES * 30
    probe = build_probe(many)
    assert probe.examples == tuple(many[: len(probe.examples)])
    assert PROBE_TOKENS - 10 < probe.tokens <= PROBE_TOKENS
    huge = Example((1, *[5] * 600), (IGNORE, *[5] * 600))
    assert build_probe([huge, *many]) == Probe((huge,))
    assert PROBE.tokens == sum(example.trained_tokens for example in EXAMPLES)


def test_logits_come_in_the_order_of_the_examples(tied: Path) -> None:
    model = load_language_model(spec(tied, None, None))
    found = answer_logits(model, PROBE)
    expected = []
    for example in EXAMPLES:
        with torch.inference_mode():
            logits = model.causal_lm(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        expected.append(logits[torch.tensor(example.labels[1:]) != IGNORE])
    assert largest_difference(found, torch.cat(expected)) <= 1e-5


def test_measures_of_two_sets_of_logits() -> None:
    a = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    b = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    assert agreement(a, b) == 0.5
    assert agreement(a, a) == 1.0
    assert largest_difference(a, b) == 3.0
    assert mean_kl(a, a) == 0.0
    p = torch.softmax(a, -1).double()
    q = torch.softmax(b, -1).double()
    assert mean_kl(a, b) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-6)


def test_stage_says_what_was_kept(tied: Path, tmp_path: Path) -> None:
    recipe, run, trained = prepared(tied, tmp_path / "run", merge={"dtype": "float32"})
    said = io.StringIO()
    merge(recipe, run, trained, Reporter(Console(file=said, width=200)))
    assert "folded onto full_precision: 100.0% agreement, 100.0% of the gain kept" in said.getvalue()
    assert json.loads((run.merged / "merge.json").read_text())["seconds"] > 0
