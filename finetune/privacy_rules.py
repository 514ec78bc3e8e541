"""Rules of the recipe's section `privacy`."""

from __future__ import annotations

from finetune.recipe import Recipe
from finetune.recipe_data import Privacy
from finetune.recipe_document import Finding, KeyPath

_REGION: KeyPath = ("privacy", "region")


def privacy_can_be_looked_for(recipe: Recipe) -> list[Finding]:
    """Every country is one whose phone numbers are known, and the countries have an effect."""
    return privacy_problems(recipe.privacy) if recipe.privacy else []


def privacy_problems(privacy: Privacy) -> list[Finding]:
    """Findings in the section, with keys from the recipe's root."""
    if privacy.region is None:
        return []
    if "phone" not in privacy.detect:
        what = "has no effect: phone numbers are not looked for"
        return [Finding(_REGION, what, "delete the key, or add `phone` to privacy.detect")]
    # The library takes 25 ms to import, and few recipes name a region.
    from finetune.privacy_kinds import PHONE_REGIONS

    hint = "write a country's two capitals, such as US, GB, DE or CN"
    named = [(_REGION, privacy.region)] if isinstance(privacy.region, str) else _in_list(privacy.region)
    return [
        Finding(path, f"phone numbers of {region!r} are not known", hint)
        for path, region in named
        if region not in PHONE_REGIONS
    ]


def _in_list(regions: tuple[str, ...]) -> list[tuple[KeyPath, str]]:
    return [((*_REGION, place), region) for place, region in enumerate(regions)]
