"""The comparison of all methods: its settings, what methods learn from, and how long it says that it will last."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from benchmarks.methods import WORLDS, estimated, lessons, misleading_suite
from benchmarks.table import HERE
from benchmarks.tasks import analogies, cloze
from nse.architecture import EditableModel
from nse.bench import BASE, BenchFiles, BenchOptions, bench
from nse.bench.streams import Dataset, read_dataset
from nse.bench.summary import failures
from nse.editors import EDITORS, get_editor, read_settings
from nse.editors.base import own_settings
from nse.evaluation.misleading import MISLEADING
from nse.evaluation.probes import KnownFact
from nse.evaluation.suites import read_suite
from tests.conformance.methods import METHODS, SETTINGS
from tests.nse.conftest import CITIES, CONTEXTS, PEOPLE, fact


@pytest.fixture
def family() -> str:
    return "gpt2"


def test_a_bench_runs_every_method_to_its_end(
    folder: Path, editable: EditableModel, corpus: Path, tmp_path: Path
) -> None:
    cases = [{**asdict(fact(i)), "prompt": fact(i).prompt_template} for i in range(4)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    (tmp_path / "contexts.json").write_text(json.dumps(CONTEXTS), encoding="utf-8")
    sections, trained = {}, {}
    for name, method in METHODS.items():
        plain = method.settings.to_dict()
        sections[name] = {"layers": list(method.settings.layers), **plain.pop("own")}
        if method.train is not None:
            trained[name] = tmp_path / f"{name}.safetensors"
            method.train(editable, trained[name])
    common = {name: value for name, value in SETTINGS.to_dict().items() if name != "own" and value != float("inf")}
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump({**common, "layers": [1, 2], **sections}), encoding="utf-8")
    names = ("cases.jsonl", "hparams.yaml", "record.json")
    files = BenchFiles(
        *(folder, *(tmp_path / name for name in names)),
        corpus=corpus,
        contexts=tmp_path / "contexts.json",
        trained=trained,
    )
    options = BenchOptions(tuple(EDITORS), edits=4, batch_size=2, orders=1, checkpoints=1, prose=0, isolated=False)
    record = bench(files, options)
    assert failures(record) == []
    assert list(record["methods"]) == [BASE, *EDITORS]
    for told in record["methods"].values():
        assert len(told["parts"][0]["cases"]) == 4


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("method", list(EDITORS))
def test_the_settings_of_every_method_are_known_to_it(world: str, method: str) -> None:
    path = HERE / f"benchmarks/bench_{world}.yaml"
    read = read_settings(path, method)
    own_settings(get_editor(method).settings, read.settings.own, method=method)
    assert not read.unused
    assert method == "nse" or f"\n{method}: {{" in path.read_text(encoding="utf-8"), "it runs with NSE's settings alone"


def test_methods_learn_from_facts_that_are_not_edited_and_from_neighbours_that_are_not(
    tmp_path: Path, editable: EditableModel
) -> None:
    lines = [f"{p},home,{CITIES[i]}\n" for i, p in enumerate(PEOPLE)]
    (tmp_path / "facts.csv").write_text("subject,relation,object\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "templates.yaml").write_text('home: ["{} lives in", "The home of {} is"]\n')
    (tmp_path / "suite.yaml").write_text("facts: facts.csv\ntemplates: templates.yaml\nneighbours: 9\n")
    dataset = read_dataset(tmp_path / "suite.yaml", editable.tokenizer, edits=2, seed=0)
    edited, found = {r.subject for r in dataset.requests}, lessons(dataset)
    assert {r.subject for r in found} == set(PEOPLE) - edited
    for request in found:
        assert request.paraphrase_prompts == (f"The home of {request.subject} is",)
        near = {prompt.removesuffix(" lives in") for prompt in request.neighborhood_prompts}
        assert near == set(PEOPLE) - edited - {request.subject}
        assert [CITIES[PEOPLE.index(p.removesuffix(" lives in"))] for p, _ in request.neighbours] == [
            answer for _, answer in request.neighbours
        ]


def test_what_misleads_is_asked_of_the_cases_of_a_file_that_are_not_edited(tmp_path: Path) -> None:
    anna = replace(fact(0), paraphrase_prompts=(f"The home of {PEOPLE[0]} is", "Where do they live?"))
    others = (fact(1), replace(fact(2), target_true=None))
    suite = read_suite(misleading_suite(Dataset((anna,), others, (), "digest"), tmp_path / "new"))
    assert suite.facts == (KnownFact(PEOPLE[1], "home", fact(1).target_true or ""),)
    told = (anna.prompt_template, "The home of {} is", *(r.prompt_template for r in others))
    assert suite.templates == {"home": tuple(dict.fromkeys(told))}
    assert (suite.misleading, suite.neighbours) == (MISLEADING, 0)


def test_an_analogy_is_asked_against_other_answers_of_its_category_and_never_about_a_fact() -> None:
    comparatives = [("big", "bigger"), ("small", "smaller"), ("cold", "colder"), ("deep", "deeper"), ("old", "older")]
    rows = [f"{a} {b} {c} {d}" for a, b in comparatives for c, d in comparatives if a != c]
    text = "\n".join([": capital-world", "Oslo Norway Rome Italy", ": gram3-comparative", *rows])
    found = list(analogies(text))
    assert [row["prompt"] for row in found] == ["{} is to {} as {} is to".format(*row.split()[:3]) for row in rows]
    for row, told in zip(found, rows, strict=True):
        assert row["right"] == told.split()[3]
        assert len(row["wrong"]) == len(set(row["wrong"])) == 3
        assert set(row["wrong"]) <= {b for _, b in comparatives} - set(told.split())


def test_a_cloze_asks_for_a_sentences_last_word_against_words_that_follow_in_its_paragraph() -> None:
    first = "The study of the field began when a few people in the town wrote down what they had heard about its"
    lines = [
        f"{first} history. Nothing was ever printed, as everybody knows.",
        "A short one. And more.",
        f"{first} Rome. Then",
    ]
    (found,) = cloze("\n".join(lines))
    assert (found["prompt"], found["right"]) == (first, "history")
    assert len(found["wrong"]) == 3
    assert set(found["wrong"]) <= {"ever", "printed", "everybody", "knows"}


def test_rounds_and_questions_are_counted_as_many_times_as_they_come() -> None:
    requests = tuple(replace(fact(i), paraphrase_prompts=("a", "b")) for i in range(5))
    dataset = Dataset(requests, (fact(5),), (), "digest")
    options = argparse.Namespace(edits=200, stream="batches", orders=2, checkpoints=2)
    seconds = {"all": 10.0, "edits": 4.0, "probes": 5.0}
    part: dict[str, object] = {"failed": None, "seconds": seconds, "rounds": [{}, {}], "probes": 100}
    record = {"methods": {"a": {"parts": [part]}, "b": {"parts": [{"failed": {"edits": None, "reason": "x"}}]}}}
    # once 1 s, four rounds of 2 s, and at 100 and at 200 edits three probes of each and one that is untouched
    assert estimated(record, dataset, None, options) == {"a": pytest.approx(2 * (1 + 8 + 5 * (3 * 300 + 2) / 100))}
