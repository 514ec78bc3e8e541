"""Rules of the recipe's section `privacy`."""

from __future__ import annotations

from finetune.recipe import Recipe
from finetune.recipe_data import Privacy
from finetune.recipe_document import Finding


def privacy_can_be_looked_for(recipe: Recipe) -> list[Finding]:
    """The country is one whose phone numbers are known, and the country has an effect."""
    return privacy_problems(recipe.privacy) if recipe.privacy else []


def privacy_problems(privacy: Privacy) -> list[Finding]:
    """Findings in the section, with keys from the recipe's root."""
    region = privacy.region
    if region is None:
        return []
    if "phone" not in privacy.detect:
        what = "has no effect: phone numbers are not looked for"
        return [Finding(("privacy", "region"), what, "delete the key, or add `phone` to privacy.detect")]
    # The library takes 25 ms to import, and few recipes name a region.
    from finetune.privacy_kinds import PHONE_REGIONS

    if region in PHONE_REGIONS:
        return []
    hint = "write a country's two capitals, such as US, GB, DE or CN"
    return [Finding(("privacy", "region"), f"phone numbers of {region!r} are not known", hint)]
