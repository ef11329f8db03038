"""The stream of a benchmark: which cases, in which order, and what is asked about them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nse.architecture import EditableModel
from nse.bench.part import another_wording
from nse.bench.streams import (
    Dataset,
    checkpoints,
    in_rounds,
    ordered,
    questions_about,
    read_dataset,
    standing,
)
from nse.errors import RequestError
from nse.evaluation.probes import KnownFact
from nse.evaluation.suites import Suite
from nse.request import EditRequest
from tests.nse.conftest import CITIES, PEOPLE, fact

ROW = {"subject": "Anna Berg", "prompt": "{} lives in", "target_new": "Rome", "target_true": "Oslo", "relation": "home"}


@pytest.fixture
def family() -> str:
    return "gpt2"


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "cases.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def dataset_of(*requests: EditRequest, others: tuple[EditRequest, ...] = ()) -> Dataset:
    return Dataset(requests, others, (), "digest")


def test_the_first_usable_cases_are_taken_and_the_others_told_with_their_reasons(
    tmp_path: Path, editable: EditableModel
) -> None:
    rows = [
        {**ROW, "case_id": "a"},
        {**ROW, "case_id": "b", "target_new": "Oslo"},
        {**ROW, "case_id": "a"},
        {"subject": "Anna"},
        "no record",
        {**ROW, "case_id": "c"},
        {**ROW, "case_id": "d"},
    ]
    found = read_dataset(written(tmp_path, rows), editable.tokenizer, edits=2, seed=0)
    assert [r.case_id for r in found.requests] == ["a", "c"]
    assert [r.case_id for r in found.others] == ["d"]
    assert [name for name, _ in found.left_out] == ["record 1", "record 2", "record 3", "record 4"]
    assert all(reason for _, reason in found.left_out)


def test_too_few_usable_cases_are_an_error_that_names_the_first_reason(tmp_path: Path, editable: EditableModel) -> None:
    path = written(tmp_path, [ROW, {**ROW, "target_new": "Oslo"}])
    with pytest.raises(RequestError, match=r"has 1 usable cases, 2 edits are asked for.*record 1: target_new equals"):
        read_dataset(path, editable.tokenizer, edits=2, seed=0)


def test_a_suite_gives_one_correction_of_each_subject_before_any_second(
    tmp_path: Path, editable: EditableModel
) -> None:
    lines = [f"{p},{relation},{CITIES[i]}\n" for i, p in enumerate(PEOPLE) for relation in ("home", "work")]
    (tmp_path / "facts.csv").write_text("subject,relation,object\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "templates.yaml").write_text('home: ["{} lives in"]\nwork: ["{} works in"]\n')
    (tmp_path / "suite.yaml").write_text("facts: facts.csv\ntemplates: templates.yaml\nneighbours: 2\n")

    def read(seed: int) -> Dataset:
        return read_dataset(tmp_path / "suite.yaml", editable.tokenizer, edits=8, seed=seed)

    first = read(1)
    assert {r.subject for r in first.requests[:6]} == set(PEOPLE)
    assert all(r.target_new != r.target_true for r in first.requests)
    assert first == read(1)
    assert [r.case_id for r in first.requests] != [r.case_id for r in read(2).requests]


def test_an_order_is_a_permutation_that_seed_and_number_decide() -> None:
    requests = [fact(i) for i in range(20)]
    first, again, second, other = (
        [r.case_id for r in ordered(requests, order=order, seed=seed)]
        for order, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first == again
    assert sorted(first) == sorted(second) == sorted(other) == sorted(r.case_id for r in requests)
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def test_of_one_fact_only_the_latest_correction_stands() -> None:
    old, other, new = fact(0, case_id="old"), fact(1), replace(fact(0, case_id="new"), target_new="Riga")
    assert [r.case_id for r in standing([old, other, new])] == ["new", "case 1"]
    assert [r.case_id for r in standing([new, other, old])] == ["old", "case 1"]


def test_the_rounds_hold_the_whole_stream_and_the_last_is_tested_always() -> None:
    rounds = in_rounds([fact(i) for i in range(7)], 3)
    assert [len(r) for r in rounds] == [3, 3, 1]
    assert checkpoints(10, 5) == [2, 4, 6, 8, 10]
    assert checkpoints(3, 5) == [1, 2, 3]
    assert checkpoints(7, 1) == [7]


def test_what_the_stream_corrects_is_no_neighbour() -> None:
    anna = replace(
        fact(0),
        neighborhood_prompts=("Boris Cole lives in", "The home of boris cole is", "Clara Dahl lives in"),
        paraphrase_prompts=("The home of Anna Berg is",),
    )
    boris = fact(1)
    probes = questions_about(dataset_of(anna, boris), None).cases["case 0"]
    assert [(p.kind, p.prompt) for p in probes] == [
        ("efficacy", "Anna Berg lives in"),
        ("generalization", "The home of Anna Berg is"),
        ("specificity", "Clara Dahl lives in"),
    ]
    assert (probes[-1].expected, probes[-1].foil) == (anna.target_true, anna.target_new)


def test_a_suite_asks_what_misleads_and_never_what_the_stream_corrects(
    editable: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = ("Boris Cole lives in", "Clara Dahl lives in")
    anna, boris = replace(fact(0), neighborhood_prompts=near), fact(1)
    known = tuple(KnownFact(PEOPLE[i], anna.relation or "", CITIES[i]) for i in (1, 2, 3))
    parts = {"neighbours": 0, "canaries": (), "gates": (), "files": (), "digest": "", "texts": ()}
    suite = Suite(
        known, {anna.relation or "": ("{} lives in",)}, **parts, misleading=("distracted", "chat"), per_kind=9
    )
    monkeypatch.setattr(editable.tokenizer, "chat_template", "{{ messages[0]['content'] }}?")
    questions = questions_about(dataset_of(anna, boris), suite, most=1, tokenizer=editable.tokenizer)
    stated = f"{anna.prompt} {anna.target_new}. "
    assert [(p.prompt, p.expected) for p in questions.cases["case 0"] if p.kind == "distracted"] == [
        (f"{stated}Clara Dahl lives in", anna.target_true),
        (f"{stated}{PEOPLE[3]} lives in", CITIES[3]),
    ]
    asked = [p for p in questions.cases["case 0"] if p.kind != "distracted"]
    assert [p.kind for p in asked] == ["efficacy", "specificity", "chat"]
    assert asked[-1].prompt.endswith(f"{anna.prompt}?")


def test_a_neighbour_with_an_answer_of_its_own_is_asked_for_that() -> None:
    request = replace(fact(0), relation=None, neighborhood_prompts=("who wrote it?",), neighborhood_answers=("Rome",))
    (probe,) = (p for p in questions_about(dataset_of(request), None).cases["case 0"] if p.kind == "specificity")
    assert (probe.prompt, probe.expected, probe.foil) == ("who wrote it?", "Rome", request.target_new)
    same = replace(request, neighborhood_answers=(request.target_new,))
    (probe,) = (p for p in questions_about(dataset_of(same), None).cases["case 0"] if p.kind == "specificity")
    assert (probe.expected, probe.foil) == (request.target_new, request.target_true)


def test_cases_that_are_not_edited_are_asked_as_untouched_facts_unless_the_stream_is_about_them() -> None:
    same = fact(0, case_id="same fact")
    questions = questions_about(dataset_of(fact(0), others=(same, fact(2), replace(fact(3), target_true=None))), None)
    assert [(p.kind, p.case_id, p.expected) for p in questions.untouched] == [("untouched", "case 2", CITIES[2])]
    assert questions.digest != questions_about(dataset_of(fact(0)), None).digest


def test_a_known_fact_is_held_in_a_wording_that_is_never_asked() -> None:
    row = EditRequest(
        subject="Ada Berg",
        prompt_template="{} speaks",
        target_new="Norwegian",
        case_id="1",
        paraphrase_prompts=("The native language of Ada Berg is",),
        generation_prompts=("Ada Berg speaks", "The native language of Ada Berg is", "Ada Berg is fluent in"),
    )
    assert another_wording(row) == "{} is fluent in"
    assert another_wording(replace(row, generation_prompts=row.generation_prompts[:2])) == "{} speaks"


def test_at_most_so_many_questions_of_a_kind_are_asked_and_the_same_ones_again() -> None:
    near = tuple(f"{name} lives in" for name in ("Bo", "Cy", "Di", "Ed"))
    row = replace(fact(0), paraphrase_prompts=("One?", "Two?", "Three?"), neighborhood_prompts=near)
    few, all_ = (questions_about(dataset_of(row), None, most=most).cases[row.case_id] for most in (2, 0))
    kinds = [probe.kind for probe in few]
    assert {kind: kinds.count(kind) for kind in kinds} == {"efficacy": 1, "generalization": 2, "specificity": 2}
    assert len(all_) == 8
    assert [probe for probe in all_ if probe in few] == list(few)
    assert few == questions_about(dataset_of(row), None, most=2).cases[row.case_id]
