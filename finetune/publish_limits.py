"""What a model is made for, as far as its recipe tells, what it must not be used for, and what energy it took."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from finetune.audit_records import Audit
from finetune.publish_settings import Domain
from finetune.recipe import Recipe
from finetune.records import Environment
from finetune.report_figures import duration

_WORDS: dict[Domain, re.Pattern[str]] = {
    "medical": re.compile(
        r"medic|clinic|patient|diagnos|disease|icd.?10|pubmed|medquad|health|hospital|drug|symptom|therap|pharma"
        r"|医|患者|疾病|药物|arzt|klinik|krank",
        re.IGNORECASE,
    ),
    "legal": re.compile(
        r"legal|\blaw|lawyer|court|contract|clause|statute|judg|attorney|litigat|tenan|legislat|jurist"
        r"|法律|法院|合同|诉讼|recht|gericht|vertrag|miete",
        re.IGNORECASE,
    ),
}

LIMITS: dict[Domain, tuple[str, ...]] = {
    "medical": (
        "It is no medical device and gives no medical advice: nothing it says may decide on diagnosis, treatment, "
        "dosage, triage or billing without a qualified person who checks it.",
        "It was not tried on patients, in a clinic, or against harm; the figures above are all that was measured.",
        "It can state what is wrong in the tone of what is right, leave out a warning, and be out of date.",
        "Do not put data of patients into it, unless you may process them where it runs.",
    ),
    "legal": (
        "It gives no legal advice and is no lawyer: nothing it says may be relied on in a case, a contract or a "
        "filing without a qualified person who checks it.",
        "It can make up statutes, cases and quotations; look every one of them up.",
        "Law differs between places and changes with time; it knows only what stood in its rows.",
        "Do not put what is confidential between lawyer and client into it, unless you may process it where it runs.",
    ),
    "general": (
        "It can state what is wrong in the tone of what is right; check what matters.",
        "The figures above are all that was measured; other languages, tasks and kinds of text were not tried.",
    ),
}
"""What stands in the card, by domain."""

_COMMON = (
    "It was not trained to refuse anything, and safeguards of the base may have been weakened by training.",
    "It has the errors and the leanings of its base and of its rows.",
)


@dataclass(frozen=True)
class DomainFinding:
    """What a model is about, and how that is known."""

    domain: Domain
    why: str


def find_domain(recipe: Recipe, audit: Audit, stated: Domain | None) -> DomainFinding:
    """Tell what a model is about by words of the recipe, unless it is stated."""
    if stated is not None:
        return DomainFinding(stated, "as its publisher says")
    texts = [recipe.name, recipe.description, *(audit.labels or {})]
    texts += [text for source in recipe.data.sources for text in (source.source, source.rows, *source.columns.values())]
    found = {
        domain: Counter(m.group().lower() for m in words.finditer("\n".join(texts))) for domain, words in _WORDS.items()
    }
    domain = max(found, key=lambda one: found[one].total())
    if not found[domain]:
        return DomainFinding("general", "no word of the recipe speaks of medicine or law")
    words = ", ".join(word for word, _ in found[domain].most_common(3))
    return DomainFinding(domain, f"told by words of the recipe: {words}")


def limits_of_use(domain: Domain) -> tuple[str, ...]:
    """List what the card warns of."""
    return (*LIMITS[domain], *_COMMON)


_GPU_WATTS = (
    (re.compile(r"H100|H200|H800"), 700, "https://www.nvidia.com/en-us/data-center/h100/"),
    (re.compile(r"A100|A800"), 400, "https://www.nvidia.com/en-us/data-center/a100/"),
    (re.compile(r"L40"), 350, "https://www.nvidia.com/en-us/data-center/l40s/"),
    (re.compile(r"\bL4\b"), 72, "https://www.nvidia.com/en-us/data-center/l4/"),
    (re.compile(r"T4"), 70, "https://www.nvidia.com/en-us/data-center/tesla-t4/"),
)
_PROCESSOR_WATTS = (15, 350)
"""From a laptop's processor to a server's, under load."""
_METHOD = "https://arxiv.org/abs/1910.09700"


def energy_sentence(seconds: float, environment: Environment, devices: int) -> str:
    """Estimate the energy of a run as power times time, with what is assumed."""
    hours = seconds / 3600
    for name, watts, page in _GPU_WATTS:
        if environment.device != "cpu" and name.search(environment.device):
            return (
                f"At most about {hours * watts * devices / 1000:.3g} kWh: {devices} × {watts} W, the largest power "
                f"that its maker states ({page}), for {duration(seconds)} of all stages, as in {_METHOD}. Not measured."
            )
    low, high = (hours * watts / 1000 for watts in _PROCESSOR_WATTS)
    what = "processor" if environment.device == "cpu" else "device"
    return (
        f"Between {low:.2g} and {high:.2g} kWh: the power of the {what} is not known and is taken as "
        f"{_PROCESSOR_WATTS[0]} W (a laptop's) to {_PROCESSOR_WATTS[1]} W (a server's) for {duration(seconds)} of all "
        f"stages, as in {_METHOD}. Not measured."
    )
