"""What the demo of a pretrained model is made of: its corrections, what the model knows, and the program that found that."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from demo.smollm2.corpus import own_texts
from demo.smollm2.find import HERE, drawn, known, read_candidates, read_corrections, said, write
from flows.progress import silent
from flows.stories import STORIES
from nse.architecture import load_model
from nse.contexts import read_contexts
from nse.evaluation.answers import same_answer
from nse.evaluation.generate import generate
from nse.evaluation.probes import KnownFact, asking_order
from nse.evaluation.suites import read_suite
from nse.hyperparameters import read_hyperparameters
from nse.request import read_requests

ROOT = Path(__file__).parents[1]
CORRECTIONS = read_corrections(HERE / "corrections.csv")
SUITE = read_suite(HERE / "suite.yaml")


def test_there_are_corrections_enough_and_each_names_its_source_and_reason() -> None:
    assert 20 <= len(CORRECTIONS) <= 40
    assert all(row["source"].strip() and row["reason"].strip() and row["submitter"].strip() for row in CORRECTIONS)
    assert len({row["submitter"] for row in CORRECTIONS}) > 2
    assert len({(row["subject"], row["relation"]) for row in CORRECTIONS}) == len(CORRECTIONS)
    assert not [problem for request in read_requests(HERE / "corrections.csv") for problem in request.problems()]


def test_each_correction_is_asked_in_two_wordings_beside_its_own_and_none_begins_with_the_subject() -> None:
    for row in CORRECTIONS:
        wordings = SUITE.templates[row["relation"]]
        assert wordings[0] == row["prompt_template"]
        assert len(set(wordings)) == 3
        assert not any(wording.startswith("{}") for wording in wordings)  # there a name of one token is a sink


def test_the_suite_holds_facts_enough_and_none_of_them_is_corrected() -> None:
    assert len(SUITE.facts) >= 300
    assert not {fact.key for fact in SUITE.facts} & {(r["subject"].casefold(), r["relation"]) for r in CORRECTIONS}
    assert len({fact.key for fact in SUITE.facts}) == len(SUITE.facts)


def test_each_correction_has_neighbours_among_the_known_facts() -> None:
    of_relation = Counter(fact.relation for fact in SUITE.facts)
    assert all(of_relation[row["relation"]] for row in CORRECTIONS)


def test_what_is_known_says_of_which_model_it_is_and_where_it_comes_from() -> None:
    about = json.loads((HERE / "known.json").read_text(encoding="utf-8"))
    assert about["facts"] == len(SUITE.facts)
    assert about["sha256"] == hashlib.sha256((HERE / "known.csv").read_bytes()).hexdigest()
    assert len(about["model_digest"]) == len(about["tokenizer_digest"]) == 64
    assert "MIT" in about["sources"]["pararel.json"]


def test_the_model_had_everything_wrong_that_is_corrected() -> None:
    before = json.loads((HERE / "known.json").read_text(encoding="utf-8"))["said_before_correction"]
    for row in CORRECTIONS:
        assert not same_answer(before[f"{row['subject']} / {row['relation']}"], row["target_new"])


def test_all_that_the_stories_name_is_there() -> None:
    for story in STORIES.values():
        read_suite(story.files / "suite.yaml")
        read_hyperparameters(story.files / "hparams.yaml")
        read_contexts(story.files / "contexts.json")
        text = (story.files / "corrections.csv").read_text(
            encoding="utf-8", errors="replace"
        )  # the demo's has a bad row
        rows = {row["subject"]: row for row in csv.DictReader(text.splitlines()) if row["target_new"]}
        for question in (story.asked, story.undone):
            row = rows[question.subject]
            assert row["prompt_template"].replace("{}", row["subject"]) == question.prompt
        assert not story.second_night or (story.files / story.second_night).is_file()


def test_candidates_of_a_dataset_are_those_of_its_known_relations(tmp_path: Path) -> None:
    records = [
        {"requested_rewrite": {"subject": s, "relation_id": r, "target_true": {"str": o}}}
        for s, r, o in (("Peru", "P36", "Lima"), ("Lake Vostok", "P30", "Antarctica"))
    ]
    (tmp_path / "pararel.json").write_text(json.dumps(records))
    assert read_candidates(tmp_path / "pararel.json") == [KnownFact("Peru", "capital", "Lima")]
    assert KnownFact("France", "capital", "Paris") in read_candidates(HERE / "candidates.csv")


def test_what_is_drawn_depends_on_the_seed_alone_and_keeps_small_relations_whole() -> None:
    facts = [KnownFact(str(i), "many", "x") for i in range(50)] + [KnownFact("a", "few", "y")]
    found = drawn(facts, most=10, seed=1)
    assert drawn(facts[::-1], most=10, seed=1) == found
    assert Counter(fact.relation for fact in found) == {"many": 10, "few": 1}
    assert drawn(facts, most=10, seed=2) != found


def test_the_demos_own_model_is_asked_as_smollm2_is(tmp_path: Path) -> None:
    editable = load_model(ROOT / "demo" / "model")
    templates = {r: t[:2] for r, t in yaml.safe_load((ROOT / "demo" / "templates.yaml").read_text()).items()}
    right, wrong = KnownFact("Croatia", "capital", "Zagreb"), KnownFact("Croatia", "language", "Korean")
    found = known(editable, [right, wrong, right], templates, silent)
    assert found == [right]
    prompts = [template.format("Croatia") for template in templates["capital"]]
    assert all(same_answer(text, "Zagreb") for text in generate(editable, prompts))
    before = said(
        editable,
        [
            {
                "subject": "Croatia",
                "relation": "capital",
                "prompt_template": "The capital of {} is",
                "target_new": "Split",
            }
        ],
    )
    assert before == {"Croatia / capital": "Zagreb"}
    write(tmp_path / "known.csv", found, {"said_before_correction": before})
    assert (tmp_path / "known.csv").read_text() == "subject,relation,object\nCroatia,capital,Zagreb\n"
    assert json.loads((tmp_path / "known.json").read_text())["facts"] == 1


def test_a_models_own_text_is_that_of_its_seed() -> None:
    editable = load_model(ROOT / "demo" / "model")
    texts = own_texts(editable, tokens=400, seed=3, rows=8, progress=silent)
    assert len(texts) == 8
    assert texts == own_texts(editable, tokens=400, seed=3, rows=8, progress=silent)
    assert texts != own_texts(editable, tokens=400, seed=4, rows=8, progress=silent)


@pytest.mark.slow
def test_the_pretrained_model_still_knows_a_sample_of_what_the_suite_holds(smollm2: Path) -> None:
    editable = load_model(smollm2)
    assert editable.base_digest == json.loads((HERE / "known.json").read_text(encoding="utf-8"))["model_digest"]
    sample = SUITE.facts[:: len(SUITE.facts) // 30]
    prompts = [asking_order(SUITE.templates[f.relation], f.subject)[0].replace("{}", f.subject) for f in sample]
    texts = generate(editable, prompts, expected=[fact.object for fact in sample])
    assert all(same_answer(text, fact.object) for text, fact in zip(texts, sample, strict=True))
    asked = said(editable, CORRECTIONS[::6])
    assert not any(same_answer(asked[f"{r['subject']} / {r['relation']}"], r["target_new"]) for r in CORRECTIONS[::6])
