"""Works out under which licence a model may be published, from its base, its data and the publisher's choice.

The rules are conservative, and they are this tool's: whether trained weights are derived from the rows at all is not
settled law. The result is never more permissive than anything that went in. This is no legal advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from finetune.errors import DataError, nearest
from finetune.licence_table import KNOWN_BASES, KNOWN_DATA, LICENCES, KnownSource, Licence

NO_ADVICE = "Worked out by conservative rules from base, data and choice; no legal advice."
_STATE_BASE = "state it: --base-license ID, as the base's own page names it"


@dataclass(frozen=True)
class Input:
    """Something that the model was made from."""

    what: str
    """`base` or `data`."""
    name: str
    licence: Licence
    page: str = ""
    """Where the licence is stated; "" where the publisher stated it."""


@dataclass(frozen=True)
class Decision:
    """What follows for the published folder."""

    licence: Licence
    inputs: tuple[Input, ...]
    reason: str
    """One sentence on how the licence was found."""
    built_with: tuple[str, ...]
    notices: tuple[str, ...]
    policies: tuple[str, ...]

    @property
    def texts(self) -> tuple[Licence, ...]:
        """Licences of which a copy has to lie in the folder: the result's own, and the base's."""
        bases = [one.licence for one in self.inputs if one.what == "base"]
        return tuple(dict.fromkeys(licence for licence in (self.licence, *bases) if licence.text_needed))

    @property
    def attributions(self) -> tuple[Input, ...]:
        """What has to be named."""
        return tuple(one for one in self.inputs if "attribution" in one.licence.restrictions)


def find_licence(name: str, where: str) -> Licence:
    """Look a licence up by its id.

    Raises:
        DataError: it is not one whose rules are known.
    """
    licence = LICENCES.get(name.strip().lower())
    if licence is None:
        close = nearest(name.strip().lower(), list(LICENCES))
        raise DataError(f"the rules of the licence {name!r} are not known", where=where, hint=close)
    return licence


def base_input(model: str, stated: str | None) -> Input:
    """Find the licence of a base: as it is known, or as it is stated.

    Raises:
        DataError: neither, or the two differ.
    """
    known = _find(model, KNOWN_BASES)
    if known is None and stated is None:
        raise DataError(f"the licence of the base {model!r} is not known", where="base", hint=_STATE_BASE)
    if known is None:
        return Input("base", model, find_licence(stated or "", "--base-license"))
    if stated is not None and find_licence(stated, "--base-license").id != known.licence:
        raise DataError(f"{model} is under {known.licence}, not {stated}", where="--base-license", hint=known.page)
    return Input("base", model, LICENCES[known.licence], known.page)


def data_inputs(
    sources: Sequence[str], stated: Sequence[tuple[str, str]], shown: Callable[[str], str] = str
) -> tuple[Input, ...]:
    """Find the licence of every source of rows; a statement is (source, licence), with "" for all sources.

    `shown` names a source for others. A statement may use that name where no two sources share it.

    Raises:
        DataError: a source without a licence, two statements about one, or a statement about none or several of them.
    """
    licences: dict[str, str] = {}
    for name, licence in stated:
        source = _meant_source(name, sources, shown) if name else ""
        if source in licences:
            what = f"two licences are stated for {name or 'all sources'}: {licences[source]} and {licence}"
            raise DataError(what, where="--data-license", hint="state one for each source: --data-license SOURCE=ID")
        licences[source] = licence
    for_all = licences.get("")
    return tuple(_data_input(source, shown(source), licences.get(source), for_all) for source in sources)


def _meant_source(name: str, sources: Sequence[str], shown: Callable[[str], str]) -> str:
    meant = [name] if name in sources else [source for source in sources if shown(source) == name]
    if len(meant) == 1:
        return meant[0]
    hint = f"the sources: {', '.join(sources)}"
    what = f"{name!r} is the name of several sources of this run" if meant else f"{name!r} is no source of this run"
    raise DataError(what, where="--data-license", hint=hint)


def work_out(inputs: Sequence[Input], choice: str | None, name: str) -> Decision:
    """Decide under which licence a model is published.

    Raises:
        DataError: what went in forbids it, does not go together, or forbids the choice or the name; and why.
    """
    _refuse_no_derivatives(inputs)
    _refuse_outputs(inputs)
    bound = _bound(inputs)
    chosen = find_licence(choice, "--license") if choice is not None else None
    licence = chosen or bound or _default(inputs)
    if not licence.can_be_published_under:
        raise DataError(f"{licence.id} is no licence to publish under", where="--license", hint="name one, such as mit")
    for one in inputs:
        if why := _why_too_permissive(licence, one):
            where = "--license" if chosen else f"{one.what} {one.name}"
            raise DataError(f"{licence.id} cannot be the licence: {why}", where=where, hint=NO_ADVICE)
    check_name(inputs, name)
    return Decision(
        licence=licence,
        inputs=tuple(inputs),
        reason=_reason(licence, inputs, chosen, bound),
        built_with=_each(one.licence.built_with for one in inputs),
        notices=_each(one.licence.notice for one in inputs),
        policies=_each(one.licence.policy for one in inputs),
    )


def check_name(inputs: Sequence[Input], name: str) -> None:
    """Check a published name against the naming rules of what went in.

    Raises:
        DataError: it has to begin otherwise.
    """
    model = name.rpartition("/")[2]
    for one in inputs:
        begins = one.licence.name_begins
        # Names on the hub have no spaces: "Llama-3-…" is how "Llama 3" is written there.
        if begins and not model.replace("-", " ").replace("_", " ").startswith(begins):
            raise DataError(
                f"the licence {one.licence.id} asks for a name that begins with {begins!r}, and this is {model!r}",
                where=f"{one.what} {one.name}",
                hint=f"publish it --as {name[: len(name) - len(model)]}{begins.replace(' ', '-')}-{model}; see "
                f"section 1.b.i of {one.licence.source}",
            )


def at_least_as_strict(licence: Licence, than: Licence) -> bool:
    """Say whether a licence keeps every restriction of another; one that binds is kept by itself alone."""
    return than.restrictions <= licence.restrictions and (not than.binds or licence.id == than.id)


def _find(name: str, known: Sequence[KnownSource]) -> KnownSource | None:
    return next((one for one in known if one.pattern.fullmatch(name)), None)


def _data_input(source: str, shown: str, named: str | None, for_all: str | None) -> Input:
    known = _find(source, KNOWN_DATA)
    if named is not None:
        stated = find_licence(named, "--data-license")
        if known and not at_least_as_strict(stated, LICENCES[known.licence]):
            raise DataError(f"{source} is under {known.licence}", where="--data-license", hint=known.page)
        return Input("data", shown, stated)
    if known is not None:
        return Input("data", shown, LICENCES[known.licence], known.page)
    if for_all is None:
        raise DataError(
            "the licence of these rows is not known",
            where=source,
            hint=f"state it: --data-license {source}=ID, or one for all sources: --data-license cc-by-4.0; `own` "
            "where the rows are yours",
        )
    return Input("data", shown, find_licence(for_all, "--data-license"))


def _refuse_no_derivatives(inputs: Sequence[Input]) -> None:
    for one in inputs:
        if "no_derivatives" in one.licence.restrictions:
            what = f"{one.licence.id} allows nothing that is made from it to be published"
            raise DataError(what, where=f"{one.what} {one.name}", hint=NO_ADVICE)


def _refuse_outputs(inputs: Sequence[Input]) -> None:
    base = next(one for one in inputs if one.what == "base")
    for one in inputs:
        if one.what == "data" and one.licence.improves_only_itself and one.licence.id != base.licence.id:
            what = f"what a model under {one.licence.id} wrote may be used to train such a model alone"
            raise DataError(what, where=f"data {one.name}", hint=f"section 1.b.v of {one.licence.source}. {NO_ADVICE}")


def _bound(inputs: Sequence[Input]) -> Licence | None:
    """Return the licence that something keeps what is made from it under; none where nothing does."""
    binding = [one for one in inputs if one.licence.binds]
    for one in binding[1:]:
        first = binding[0]
        if one.licence.id != first.licence.id:
            raise DataError(
                f"{first.licence.id} ({first.what} {first.name}) and {one.licence.id} ({one.what} {one.name}) each "
                "keep what is made from them under themselves alone",
                where="licence",
                hint=f"train without one of the two. {NO_ADVICE}",
            )
    return binding[0].licence if binding else None


def _default(inputs: Sequence[Input]) -> Licence:
    restrictions = {restriction for one in inputs for restriction in one.licence.restrictions}
    if "non_commercial" in restrictions:
        return LICENCES["cc-by-nc-4.0"]
    base = next(one.licence for one in inputs if one.what == "base")
    needs_more = not base.can_be_published_under or not restrictions <= base.restrictions
    return LICENCES["cc-by-4.0"] if needs_more and "attribution" in restrictions else base


def _why_too_permissive(licence: Licence, one: Input) -> str:
    if at_least_as_strict(licence, one.licence):
        return ""
    theirs, who = one.licence, f"the {one.what} {one.name} is under {one.licence.id}"
    if theirs.binds and licence.id != theirs.id:
        return f"{who}, which what is made from it keeps"
    if "non_commercial" in theirs.restrictions - licence.restrictions:
        return f"{who}, which forbids commercial use, and {licence.id} allows it"
    return f"{who}, which asks to be named, and {licence.id} does not pass that on"


def _reason(licence: Licence, inputs: Sequence[Input], chosen: Licence | None, bound: Licence | None) -> str:
    if chosen:
        return f"{licence.id} was chosen by the publisher, and keeps what base and data ask for"
    if bound:
        first = next(one for one in inputs if one.licence.id == bound.id)
        return f"the {first.what} {first.name} keeps what is made from it under {licence.id}"
    if licence.id == "cc-by-nc-4.0":
        first = next(one for one in inputs if "non_commercial" in one.licence.restrictions)
        return f"the {first.what} {first.name} forbids commercial use"
    return f"{licence.id} is the licence of the base, and no data asks for more"


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))
