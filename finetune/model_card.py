"""README.md of a published folder: what was measured, on what, how to load it, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from finetune.licences import NO_ADVICE, Decision
from finetune.model_loading import Loading
from finetune.publish_answers import ANSWER_TOKENS
from finetune.publish_limits import DomainFinding, energy_sentence, limits_of_use
from finetune.publish_manifest import Manifest
from finetune.report_contents import Report, TaskReport
from finetune.report_data import data_section
from finetune.report_figures import contender_label, interval, metric_label, metric_value
from finetune.report_markdown import coded, fenced, plain, table_block
from finetune.report_sections import fingerprints_section, machine_section, merge_section, training_section
from finetune.report_tables import OUTCOME_LABELS, Section, tasks_tables
from finetune.run_directory import HELD_OUT_TASK
from finetune.server_door import ServerProof, describe_server_proof

CARD_FILE = "README.md"


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says."""

    manifest: Manifest
    """`files` may be empty: the card is one of them."""
    report: Report
    """Without rows and paths."""
    decision: Decision
    domain: DomainFinding
    loading: Loading
    block: str
    """Metadata as YAML."""
    rendered: str
    """A conversation through the chat template."""
    gguf: tuple[str, ...] = field(default=())
    """Paths of GGUF files."""
    served: ServerProof | None = None
    """What a running server made of the merged model, where it is published."""


def render_card(facts: CardFacts) -> str:
    """Render the card as Markdown; texts of others are escaped or fenced, so that none of them acts."""
    environment = Environment(
        loader=FunctionLoader(_package_text),
        autoescape=False,  # Markdown: `plain` and `fenced` do it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(coded=coded, plain=plain, fenced=fenced, table=table_block, section=_section)
    return environment.get_template("model_card.md.jinja").render(_variables(facts))


def _variables(facts: CardFacts) -> Mapping[str, object]:
    report, manifest = facts.report, facts.manifest
    sources = report.recipe.data.sources
    return {
        "adapter": "adapter" in manifest.parts,
        "answer_tokens": ANSWER_TOKENS,
        "answers": manifest.answers,
        "baselines": _baselines(report.tasks),
        "block": facts.block,
        "built_with": facts.decision.built_with,
        "data": data_section(report),
        "decision": facts.decision,
        "domain": facts.domain,
        "energy": energy_sentence(
            sum(stage.seconds for stage in report.stages), report.environment, report.training.devices
        ),
        "forgetting": _forgetting(report.tasks),
        "gguf": facts.gguf,
        "hashes": fingerprints_section(report),
        "limits": limits_of_use(facts.domain.domain),
        "loading": facts.loading,
        "machine": machine_section(report),
        "merge": merge_section(report),
        "name": manifest.name,
        "no_answers": _no_answers(facts),
        "no_advice": NO_ADVICE,
        "outcome": OUTCOME_LABELS[report.verdict.outcome],
        "quantization": manifest.quantization,
        "rendered": facts.rendered,
        "report": report,
        "row_templates": tuple(dict.fromkeys(source.rows for source in sources)),
        "served": describe_server_proof(facts.served) if facts.served else None,
        "score_tables": tasks_tables(report),
        "template_sha256": manifest.template_sha256,
        "training": training_section(report),
        "what": _what(facts),
    }


def _what(facts: CardFacts) -> str:
    base, parts = facts.manifest.base, facts.manifest.parts
    named = {"adapter": "a LoRA adapter", "merged": "the merged model", "gguf": "GGUF files"}
    commit = f" at commit {coded(base.revision)}" if base.revision else ""
    listed = " and ".join(named[part] for part in parts)
    return f"{listed[0].upper()}{listed[1:]}, trained from {coded(base.model)}{commit}."


def _no_answers(facts: CardFacts) -> str:
    if facts.manifest.parts == ("gguf",):
        return "the programs that read these files round otherwise"
    return "the base has no chat template, or every answer repeated something that must not be shown"


def _baselines(tasks: tuple[TaskReport, ...]) -> str:
    held_out = tasks[0]
    found = []
    for contender in ("majority", "tfidf"):
        estimate = held_out.estimate(contender, held_out.headline)
        if estimate is not None:
            figures = f"{metric_value(held_out.headline, estimate.value)} ({interval(held_out.headline, estimate)})"
            found.append(f"{contender_label(contender)}: {metric_label(held_out.headline)} {figures}")
    if not found:
        return "None was scored: they answer with one of the classes of a classification, and this is none."
    return f"Trained on the same rows, scored on the same samples. {'; '.join(found)}."


def _forgetting(tasks: tuple[TaskReport, ...]) -> str:
    others = [task for task in tasks if task.name != HELD_OUT_TASK]
    if not others:
        return (
            "Not measured: no task but the held-out rows was scored, so nothing is known of what the base could do "
            "and this model no longer can."
        )
    said = []
    for task in others:
        base, tuned = task.estimate("base", task.headline), task.estimate("adapter", task.headline)
        if base is None or tuned is None:
            continue
        change = f"{metric_value(task.headline, base.value)} to {metric_value(task.headline, tuned.value)}"
        spread = f"{interval(task.headline, base)}; {interval(task.headline, tuned)}; n = {tuned.n}"
        said.append(f"{task.name}: {metric_label(task.headline)} from {change} ({spread})")
    return f"Base to adapter on tasks that were not trained on. {'; '.join(said) or 'Base or adapter were not scored'}."


def _section(section: Section) -> str:
    sentences = [plain(sentence) for sentence in section.sentences]
    return "\n\n".join([f"{plain(section.summary)}.", *sentences, *(table_block(table) for table in section.tables)])


def _package_text(name: str) -> str:
    return files("finetune").joinpath(name).read_text(encoding="utf-8")
