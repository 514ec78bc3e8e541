"""Holds the audit of the data stage against the recipe's limits: beyond them nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.audit_records import LEAKS, Audit
from finetune.errors import DataError
from finetune.prepare_examples import TOO_LONG
from finetune.recipe_data import Data
from finetune.row_lines import DAMAGED

SHOWN_LEAKS = 3
"""Leaked samples that a refusal names, each with the training row that has it."""


def refuse_beyond_limits(data: Data, audit: Audit) -> None:
    """Hold the audit against the recipe's limits.

    Raises:
        DataError: every limit that does not hold, with the figure and the key that would let it pass.
    """
    damaged = audit.set_aside_by_reason.get(DAMAGED, 0)
    if damaged:
        raise DataError(
            f"{damaged} files end early or are damaged, and how many rows that costs cannot be known",
            where="data",
            hint=f"`finetune rows RUN --reason {DAMAGED}` says where; fetch those files again",
        )
    leaks = _beyond_leakage_limits(data, audit)
    broken = [*_beyond_audit_limits(data, audit), *leaks]
    if broken:
        many = f"{len(broken)} limits do" if len(broken) > 1 else "a limit does"
        broken += [_first_leaks(audit)] if leaks else []
        raise DataError(
            f"{many} not hold, and nothing was trained:\n" + "\n".join(f"  {line}" for line in broken),
            where="data",
            hint="mend the rows (`finetune rows RUN` lists those set aside), or raise the limit that is named",
        )


def _beyond_audit_limits(data: Data, audit: Audit) -> list[str]:
    limits = data.audit
    rows = sum(source.rows for source in audit.sources)
    asked_for = {LEAKS, *((TOO_LONG,) if data.overflow == "drop" else ())}
    aside = sum(count for reason, count in audit.set_aside_by_reason.items() if reason not in asked_for)
    repeated = audit.repetition.exact + audit.repetition.near
    labels = audit.labels or {}
    figures: Sequence[tuple[str, float, float, str]] = (
        ("maximum_set_aside", aside / rows, limits.maximum_set_aside, "of the rows cannot be used"),
        ("maximum_truncated", audit.truncated / max(1, rows), limits.maximum_truncated, "of the rows are shortened"),
        (
            "maximum_duplicates",
            repeated / max(1, audit.repetition.rows),
            limits.maximum_duplicates,
            "of the training rows repeat an earlier one",
        ),
        (
            "maximum_class_share",
            max(labels.values(), default=0) / max(1, sum(labels.values())),
            limits.maximum_class_share,
            "of the training rows have one label",
        ),
    )
    broken = [
        f"{share:.1%} {what}, at most {most:.1%} allowed (data.audit.{key})"
        for key, share, most, what in figures
        if share > most
    ]
    trained = audit.train.trained_tokens / audit.train.tokens
    if trained < limits.minimum_trained_share:
        least = f"at least {limits.minimum_trained_share:.2%} wanted (data.audit.minimum_trained_share)"
        broken.append(f"{trained:.2%} of the training tokens are trained on, {least}")
    return broken


def _beyond_leakage_limits(data: Data, audit: Audit) -> list[str]:
    limits = data.leakage
    broken: list[str] = []
    if limits.on_overlap == "set_aside":
        return broken
    for leak in audit.leaks:
        for key, share, most, how in (
            ("maximum_share", leak.share, limits.maximum_share, "stand"),
            ("maximum_near_share", leak.near_share, limits.maximum_near_share, "nearly stand"),
        ):
            if share > most:
                broken.append(
                    f"{share:.1%} of the {leak.samples:,} samples of {leak.task} {how} among the training rows, at most"
                    f" {most:.1%} allowed (data.leakage.{key}); data.leakage.on_overlap=set_aside takes those rows out"
                )
    return broken


def _first_leaks(audit: Audit) -> str:
    found = [f"{leak.sample} in {leak.train} ({leak.kind})" for leak in audit.leaked[:SHOWN_LEAKS]]
    return f"the first of those samples: {', '.join(found)}; refused/audit.json in the run's folder has them all"
