"""Calibration of a small model that has been taught a few facts."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nse.architecture import EditableModel, load_model
from nse.batch import pad
from nse.calibration import CalibrationFiles, calibrate
from nse.calibration.errors import CalibrationError
from nse.calibration.facts import Case, held_facts, known_cases, read_facts, split
from nse.calibration.finals import Finals
from nse.calibration.judge import BaseAnswers, Scores, right
from nse.calibration.probe import in_place
from nse.calibration.run import Extent
from nse.calibration.search import Budget, Search, layers_where_said, opening, probed_layers
from nse.calibration.space import (
    COORDINATES,
    LADDERS,
    Candidate,
    Scale,
    neighbour,
    neighbours,
    settings_of,
    start_of,
)
from nse.calibration.trial import Bench, Trial, rounds_of
from nse.contexts import BARE
from nse.editors import EditContext, EditResult
from nse.editors.nse import NSE
from nse.evaluation.probes import Probe
from nse.hyperparameters import FACT_TOKENS, hyperparameters_of, read_hyperparameters
from nse.keys import measure
from nse.request import EditRequest
from nse.statistics import collect_second_moments
from nse.values import ValueStore
from tests.nse.conftest import CITIES, CONTEXTS, PEOPLE, TEMPLATES, digests

SCALE = Scale(
    64,
    {(where, layer): norm for where in FACT_TOKENS for layer, norm in enumerate((8.0, 16.0, 16.0, 20.0))},
    {(where, layer): weight for where in FACT_TOKENS for layer, weight in enumerate((100.0, 200.0, 200.0, 300.0))},
)
EXTENT = Extent(minutes=60, trials=3, facts=6, validated=4)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Three facts about each of twenty people, with neighbours and another wording."""
    people = [
        f"{first} {last}" for first in ("Ada", "Bo", "Cy", "Di", "Ed") for last in ("Berg", "Cole", "Dahl", "Eng")
    ]
    found: list[dict[str, Any]] = []
    for i, person in enumerate(people):
        for j, template in enumerate(TEMPLATES[:3]):
            others = [
                template.replace("{}", people[(i + n) % len(people)]) for n in range(len(people)) if (5 * n) % 6 == 0
            ][1:]
            found.append(
                {"case_id": f"{person}/{j}", "subject": person, "prompt": template, "relation": str(j)}
                | {"target_new": CITIES[(5 * i + j + 1) % 6], "target_true": CITIES[(5 * i + j) % 6]}
                | {"paraphrase_prompts": [f"Today {template.replace('{}', person)}"], "neighborhood_prompts": others}
            )
    return found


@pytest.fixture(scope="session")
def taught(model_folders: dict[str, Path], rows: list[dict[str, Any]]) -> EditableModel:
    """The small GPT-2, trained until it knows most of the facts."""
    editable = load_model(model_folders["gpt2"])
    texts = [f"{row['prompt'].replace('{}', row['subject'])} {row['target_true']}." for row in rows]
    batch = pad(editable, [editable.tokenizer(text)["input_ids"] for text in texts])
    labels = batch.ids.masked_fill(batch.mask == 0, -100)
    editable.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(editable.model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        editable.model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss.backward()
        optimizer.step()
    editable.model.requires_grad_(False)
    return EditableModel(editable.model, editable.tokenizer, editable.architecture)


@pytest.fixture
def editable(taught: EditableModel) -> Iterator[EditableModel]:
    """The taught model; a test leaves its weights the same bits."""
    yield taught
    assert digests(taught) == taught.tensor_digests


@pytest.fixture
def said(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    """The facts as a file."""
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def known(editable: EditableModel, said: Path) -> tuple[Case, ...]:
    facts = read_facts(said, seed=0)
    return known_cases(BaseAnswers(editable), facts, split(facts, seed=0), part="search", count=6, seed=0)


@pytest.fixture
def files(said: Path, corpus: Path, tmp_path: Path) -> CalibrationFiles:
    contexts = tmp_path / "contexts.json"
    contexts.write_text(json.dumps(BARE))
    return CalibrationFiles(said, tmp_path / "out" / "found.yaml", corpus, contexts=contexts)


def ticks() -> Callable[[], float]:
    """A clock that moves by a second each time it is read."""
    seconds: Iterator[int] = iter(range(10**6))
    return lambda: float(next(seconds))


def test_no_part_shares_a_subject_and_the_seed_alone_decides(said: Path) -> None:
    facts = read_facts(said, seed=0)
    parts = split(facts, seed=0)
    every = [*parts.search, *parts.validation, *parts.held_out]
    assert len(every) == len(set(every)) == len({r.subject for r in facts.requests})
    assert all((parts.search, parts.validation, parts.held_out))
    backwards = replace(facts, requests=facts.requests[::-1])
    assert split(backwards, seed=0) == parts != split(facts, seed=1)


def test_cases_are_known_one_per_subject_and_ask_about_nothing_held_out(
    editable: EditableModel, said: Path, known: tuple[Case, ...]
) -> None:
    facts = read_facts(said, seed=0)
    parts = split(facts, seed=0)
    subjects = [c.request.subject.casefold() for c in known]
    assert len(set(subjects)) == len(known) == 6
    assert set(subjects) <= set(parts.search)
    assert all(right(editable, [(c.request.prompt, c.request.target_true or "") for c in known]))
    staying = [p for c in known for p in c.probes if p.kind in ("specificity", "untouched")]
    assert all(right(editable, [(p.prompt, p.expected) for p in staying]))
    assert {p.kind for c in known for p in c.probes} == {"efficacy", "generalization", "specificity", "untouched"}
    asked = " ".join(p.prompt.casefold() for c in known for p in c.probes)
    assert not [name for name in parts.held_out if name in asked]
    for case in known:
        corrected = {c.request.prompt for c in known if c is not case}
        assert not corrected & {p.prompt for p in case.probes if p.kind == "specificity"}


def test_held_facts_are_never_asked_about_unless_corrected(editable: EditableModel, said: Path) -> None:
    facts = read_facts(said, seed=0)
    parts = split(facts, seed=0)
    cases = known_cases(BaseAnswers(editable), facts, parts, part="search", count=6, seed=0)
    held = held_facts(facts, parts)
    assert {f.subject.casefold() for f in held} <= {*parts.search, *parts.validation}
    assert len({f.subject for f in held}) == round(len((*parts.search, *parts.validation)) / 3)
    for case in cases:
        others = {f.subject for f in held if f.subject != case.request.subject}
        assert not [p.prompt for p in case.probes if any(name in p.prompt for name in others)]


def test_the_base_model_is_asked_a_question_once(editable: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def listening(model: EditableModel, questions: Sequence[tuple[str, str]]) -> list[bool]:
        asked.extend(questions)
        return right(model, questions)

    monkeypatch.setattr("nse.calibration.judge.right", listening)
    base, questions = BaseAnswers(editable), [(f"{name} lives in", "Rome") for name in ("Ada", "Bo", "Ada")]
    assert base.right(questions) == right(editable, questions) == base.right(questions)
    assert asked == questions[:2]


def test_a_second_batch_gives_other_facts_and_other_subjects_first(editable: EditableModel, said: Path) -> None:
    facts = read_facts(said, seed=0)
    parts = split(facts, seed=0)
    first = known_cases(BaseAnswers(editable), facts, parts, part="search", count=6, seed=0)
    second = known_cases(BaseAnswers(editable), facts, parts, part="search", count=6, seed=0, but=first)
    assert second
    assert not {c.request.case_id for c in first} & {c.request.case_id for c in second}
    left = len({c.request.subject for c in second} - {c.request.subject for c in first})
    assert left == len(parts.search) - 6


def test_facts_that_the_model_does_not_know_are_refused_with_the_number_needed(
    editable: EditableModel, files: CalibrationFiles, tmp_path: Path
) -> None:
    rows = [{"subject": p, "prompt": "{} eats", "target_new": "a", "target_true": "zzz zzz"} for p in PEOPLE]
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CalibrationError, match=r"only 0 of 2 subjects kept for search .* 6 are needed"):
        calibrate(editable, replace(files, facts=unknown), extent=EXTENT)


def test_a_suite_gives_one_correction_per_fact_in_the_first_wording(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text("subject,relation,object\nAda,home,Oslo\nBo,home,Rome\nCy,pet,cat\n")
    (tmp_path / "templates.yaml").write_text(json.dumps({"home": list(TEMPLATES[:2]), "pet": ["{} keeps a"]}))
    (tmp_path / "suite.yaml").write_text("facts: facts.csv\ntemplates: templates.yaml\n")
    found = read_facts(tmp_path / "suite.yaml", seed=0).requests
    # the only pet there is has no other object to be corrected to
    assert [(r.subject, r.prompt_template, r.target_true, r.target_new) for r in found] == [
        ("Ada", TEMPLATES[0], "Oslo", "Rome"),
        ("Bo", TEMPLATES[0], "Rome", "Oslo"),
    ]


def test_the_mean_leaves_out_what_was_not_measured() -> None:
    assert Scores(0.5, 1.0, 1.0).harmonic_mean == pytest.approx(0.75)
    assert Scores(0.5, None, 1.0).harmonic_mean == pytest.approx(2 / 3)
    assert Scores(0.0, 1.0, 1.0).harmonic_mean == 0.0
    assert Scores(1.0, untouched=0.4, retention=0.8).guard == pytest.approx(0.6)


def test_settings_are_relative_to_the_model() -> None:
    candidate = Candidate(last=2, count=2, step=0.1, protection=0.3, tolerance=0.05, decay=0.1)
    small = settings_of(candidate, SCALE, distance=20.0)
    assert small.layers == (1, 2)
    assert (small.v_lr, small.mom2_update_weight, small.alpha) == pytest.approx((0.2, 60.0, 1.0))
    # decay says what |delta| = |h| adds to the loss: weight * |delta| / |h|^2
    assert small.v_weight_decay * 16.0 / 16.0**2 == pytest.approx(0.1)
    grown = settings_of(candidate, replace(SCALE, hidden={("subject_last", 2): 160.0}), distance=20.0)
    assert grown.v_lr == pytest.approx(10 * small.v_lr)


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_a_step_up_and_down_again_comes_back_and_ladders_end(coordinate: str) -> None:
    start, lasts = Candidate(last=3, count=2), {"subject_last": (2, 3, 4)}
    up = neighbour(start, coordinate, 1, lasts=lasts)
    down = neighbour(start, coordinate, -1, lasts=lasts)
    assert up or down
    assert up is None or neighbour(up, coordinate, -1, lasts=lasts) == start
    walked: Candidate | None = start
    for _ in range(20):
        walked = walked and neighbour(walked, coordinate, 1, lasts=lasts)
    assert walked is None


def test_every_default_is_on_its_ladder() -> None:
    assert all(getattr(Candidate(0), name) in ladder for name, ladder in LADDERS.items())
    assert neighbour(Candidate(0), "count", 1, lasts={"subject_last": (0,)}) is None, "layer -1"


def test_neighbours_that_share_their_z_come_first() -> None:
    start = Candidate(6, 3, ending=".")
    found = neighbours(start, lasts={"subject_last": (5, 6, 7)})
    same = [c.values == start.values for c in found]
    assert same == sorted(same, reverse=True)
    assert sum(same) >= 8
    assert len(set(found)) == len(found)


def test_proposed_settings_are_where_a_search_begins_in_the_models_own_units() -> None:
    settings = read_hyperparameters(Path("smollm2-135m")).settings
    start = start_of(settings)
    # |h| and k^T C0^-1 k of SmolLM2-135M at layer 8
    found = settings_of(start, Scale(576, {start.place: 148.3}, {start.place: 2047.0}), distance=85.0)
    assert found == replace(settings, v_lr=found.v_lr, mom2_update_weight=found.mom2_update_weight, alpha=1.7)
    assert found.v_lr == pytest.approx(settings.v_lr, rel=0.05)
    assert found.mom2_update_weight == pytest.approx(settings.mom2_update_weight, rel=0.05)


def test_where_an_object_is_said_no_subject_shares_a_key_and_the_layers_are_others() -> None:
    start, lasts = Candidate(last=6, count=2, fact_token="last"), {"subject_last": (1, 2), "last": (5, 6, 7)}
    assert neighbour(start, "share", 1, lasts=lasts) is None
    up = neighbour(start, "last", 1, lasts=lasts)
    assert up is not None
    assert (up.layers, up.fact_token) == ((6, 7), "last")
    assert layers_where_said(range(8), 8) == (7, 6, 5)
    assert layers_where_said(range(48), 48) == (47, 40, 33)
    assert layers_where_said([2], 8) == (2,)


def test_layers_are_probed_from_the_likeliest_on_and_few() -> None:
    assert probed_layers(range(8), 8) == (2, 1, 3, 0, 4)
    many = probed_layers(range(80), 80)
    assert len(many) == 8
    assert many[0] == min(many, key=lambda layer: abs(layer - 20))
    assert max(many) < 52
    assert probed_layers([7], 8) == (7,)


def test_the_probe_of_h_itself_says_what_the_model_says(editable: EditableModel, known: tuple[Case, ...]) -> None:
    hidden = measure(editable, [c.request for c in known], CONTEXTS, key_layers=(), hidden_layer=1).hidden.T
    old = [replace(c, request=replace(c.request, target_new=c.request.target_true or "")) for c in known]
    found = in_place(editable, old, hidden, hidden, Candidate(1), 0.0)
    # h in the subject's place changes nothing, in prompts of the same beginning: the other facts stay right
    same = [p for c in known for p in c.probes if p.kind == "untouched" and p.prompt.startswith(c.request.subject)]
    assert same
    assert found.distance == 0.0
    assert found.probability > 1 / editable.vocabulary
    shifted = in_place(editable, old, hidden + 100 * torch.randn_like(hidden), hidden, Candidate(1), 0.0)
    assert shifted.probability < found.probability
    assert shifted.distance > 0


def test_rounds_deal_all_cases_and_none_is_empty(known: tuple[Case, ...]) -> None:
    dealt = rounds_of(known, 4)
    assert sorted(len(own) for own in dealt) == [1, 1, 2, 2]
    assert {c.request.case_id for own in dealt for c in own} == {c.request.case_id for c in known}
    assert len(rounds_of(known[:2], 3)) == 2


def quickly(editable: EditableModel, files: CalibrationFiles) -> dict[str, Any]:
    """A calibration whose time is up at once."""
    return calibrate(editable, files, extent=replace(EXTENT, minutes=0.01), clock=ticks())


def test_a_calibration_writes_settings_with_evidence_and_a_plot_and_finds_the_same_again(
    editable: EditableModel, files: CalibrationFiles, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    lines: list[str] = []
    stages: set[str] = set()
    files = replace(files, plot=files.output.with_suffix(".svg"), values=tmp_path / "values")
    found = calibrate(
        editable, files, extent=EXTENT, say=lines.append, progress=lambda stage, _done, _total: stages.add(stage)
    )
    written = yaml.safe_load(files.output.read_text())
    evidence = written.pop("calibration")
    settings = hyperparameters_of(written, where="found")
    assert settings.unused == ()
    plain = settings.settings.to_dict()
    assert {name: plain[name] for name in found["settings"]} == found["settings"]
    assert evidence == found["calibration"]
    assert evidence["model"] == editable.base_digest
    assert evidence["trials"] == {"search": 2, "second look": 1, "validation": 1}
    record = json.loads(files.trials.read_text())
    assert [t["number"] for t in record["trials"]] == list(range(1, len(record["trials"]) + 1))
    chosen = record["trials"][record["chosen"] - 1]
    assert chosen["settings"]["mom2_update_weight"] == written["mom2_update_weight"]
    assert chosen["scores"] == {k: v for k, v in evidence["search"].items() if k != "facts"}
    used = {name.split("/")[0].casefold() for name in evidence["used"]}
    assert used
    assert not used & set(split(read_facts(files.facts, seed=EXTENT.seed), seed=EXTENT.seed).held_out)
    assert {"z-probe", "trials", "validation"} <= stages
    assert any(line.startswith("validation") and "retention" in line for line in lines)
    assert files.plot is not None
    assert "<svg" in files.plot.read_text()
    assert {p.name for p in files.output.parent.iterdir()} == {"found.svg", "found.trials.json", "found.yaml"}

    again = calibrate(editable, replace(files, plot=None), extent=EXTENT)
    for result in (found, again):
        result["calibration"].pop("seconds")
    assert (again["settings"], again["calibration"]) == (found["settings"], found["calibration"])


def test_a_budget_that_is_spent_still_gives_a_file(editable: EditableModel, files: CalibrationFiles) -> None:
    found = quickly(editable, files)
    assert found["calibration"]["trials"] == {"search": 1, "second look": 0, "validation": 0}
    assert found["calibration"]["probes"] == 1
    assert files.output.is_file()


def test_questions_that_do_not_exist_are_left_out_of_the_mean_and_named(
    editable: EditableModel, files: CalibrationFiles, rows: list[dict[str, Any]]
) -> None:
    files.facts.write_text("\n".join(json.dumps(row | {"paraphrase_prompts": []}) for row in rows))
    found = quickly(editable, files)["calibration"]
    assert found["left_out"] == ["generalization"]
    search = found["search"]
    assert "generalization" not in search
    expected = Scores(search["efficacy"], None, search["specificity"]).harmonic_mean
    assert search["harmonic_mean"] == pytest.approx(expected, abs=1e-3)


def test_an_ending_that_is_no_image_is_refused(editable: EditableModel, files: CalibrationFiles) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(CalibrationError, match=r"name it \.svg or \.png"):
        quickly(editable, replace(files, plot=files.output.with_suffix(".xyz")))


def test_an_interruption_leaves_the_old_file_alone(
    editable: EditableModel, files: CalibrationFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.output.parent.mkdir()
    files.output.write_text("layers: [1]\n")

    def stopped(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Finals, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        quickly(editable, files)
    assert files.output.read_text() == "layers: [1]\n"
    assert [p.name for p in files.output.parent.iterdir()] == ["found.yaml"]


def test_second_moments_bound_the_layers_and_must_be_of_this_model(
    editable: EditableModel, files: CalibrationFiles, corpus: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given.safetensors"
    without = replace(files, corpus=None)
    with pytest.raises(CalibrationError, match="give --corpus or --second-moment"):
        quickly(editable, without)
    moments = collect_second_moments(editable, corpus, layers=(2,))
    replace(moments, metadata={"model_digest": "0" * 64}).save(given)
    with pytest.raises(CalibrationError, match="made for another model"):
        quickly(editable, replace(without, second_moment=given))
    moments.save(given)
    found = quickly(editable, replace(without, second_moment=given))
    assert found["settings"]["layers"] == (2,)


class FakeBench(Bench):
    """A bench whose trials are computed: the best is layers 1-2 with a protection of 0.3 and a share of 0.6."""

    def run(self, candidate: Candidate, rounds, *, part: str, number: int) -> Trial:  # type: ignore[no-untyped-def]
        away = abs(candidate.count - 2) + abs(candidate.last - 2) + 3 * abs(candidate.protection - 0.3)
        share = 1.0 - 0.1 * (away + abs(candidate.share - 0.6) + abs(candidate.neurons - 1.0))
        self._per_fact.append(1.0)
        return Trial(number, part, candidate, settings_of(candidate, SCALE), Scores(share, share, share), 1, 1.0)


def test_steps_find_the_best_and_end(editable: EditableModel) -> None:
    bench = FakeBench(editable, CONTEXTS, ValueStore(Path()), hidden=dict(SCALE.hidden), weight=dict(SCALE.weight))
    search = Search(bench, (Case(EditRequest("0", "a", "{}", "b"), ()),), (), Budget(1e9), range(4))
    search.run((Candidate(1), Candidate(3), Candidate(2), Candidate(3, fact_token="last")))
    best = search.ranked()[0].candidate
    assert (best.layers, best.protection, best.share, best.neurons) == ((1, 2), 0.3, 0.6, 1.0)
    assert len({t.candidate for t in search.trials}) == len(search.trials), "none was tried twice"
    assert [t.candidate for t in search.trials[:2]] == opening((Candidate(1),))[:2]
    assert any(t.candidate.fact_token == "last" for t in search.trials), "both places were tried"


@pytest.mark.parametrize(("ahead", "kept"), [(0.02, False), (0.005, True)])
def test_proposed_settings_stand_until_others_are_clearly_better(
    editable: EditableModel, ahead: float, kept: bool
) -> None:
    class Flat(FakeBench):
        def run(self, candidate: Candidate, rounds, *, part: str, number: int) -> Trial:  # type: ignore[no-untyped-def]
            share = 0.9 + ahead * (candidate.share == 0.3)
            self._per_fact.append(1.0)
            return Trial(number, part, candidate, settings_of(candidate, SCALE), Scores(share, share, share), 1, 1.0)

    bench = Flat(editable, BARE, ValueStore(Path()), weight=dict(SCALE.weight))
    case = Case(EditRequest("0", "Ada Berg", TEMPLATES[0], "b"), (Probe("efficacy", "0", "a", "b"),))
    proposed = hyperparameters_of({"layers": [1, 2], "known_keys_weight": 3}, where="here").settings
    search = Search(bench, (case,), (case,), Budget(1e9), range(4), proposed)
    start = search.begin()
    assert [c.last for c in start] == [2, 1, 3]
    assert not search.probes
    search.run(start)
    assert search.trials[0].candidate == start[0]
    assert start[0].known == 0.0, "nothing is held here"
    found = Finals(search, (case,)).run()
    assert (found.chosen is search.incumbent) == kept
    looked = sum(t.part == "second look" for t in search.trials)
    assert 1 < looked < sum(t.part == "search" for t in search.trials) / 2


def test_a_trial_where_objects_are_said_writes_there_and_tells_the_second_round_what_stands(
    editable: EditableModel, known: tuple[Case, ...], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[EditContext] = []
    edit = NSE.edit

    def listening(self: NSE, model: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        told.append(context)
        return edit(self, model, requests, context)

    monkeypatch.setattr(NSE, "edit", listening)
    bench = Bench(editable, BARE, ValueStore(tmp_path))
    candidate = Candidate(3, 2, fact_token="last", protection=0.01, tolerance=0.02)
    bench.measure_hidden(known, [candidate.place])
    bench.use(collect_second_moments(editable, corpus, layers=(2, 3)), known, (2, 3))
    assert set(bench.weight) == {(where, layer) for where in FACT_TOKENS for layer in (2, 3)}
    assert bench.weight["last", 3] != bench.weight["subject_last", 3]
    trial = bench.run(candidate, rounds_of(known, 2), part="validation", number=1)
    assert trial.settings.fact_token == "last"
    assert trial.scores.efficacy >= 0.8
    assert [len(context.earlier) for context in told] == [0, 3]
    assert told[1].earlier == tuple(c.request for c in rounds_of(known, 2)[0])
    assert "last, layers 2-3" in str(trial)


def test_no_trial_begins_that_would_not_end_in_time(editable: EditableModel) -> None:
    bench = FakeBench(editable, CONTEXTS, ValueStore(Path()), hidden=dict(SCALE.hidden), weight=dict(SCALE.weight))
    now = [0.0]
    bench.run_, calls = bench.run, []  # type: ignore[attr-defined]

    def slow(candidate: Candidate, rounds, *, part: str, number: int) -> Trial:  # type: ignore[no-untyped-def]
        now[0] += 1.0
        calls.append(candidate)
        return bench.run_(candidate, rounds, part=part, number=number)  # type: ignore[attr-defined,no-any-return]

    bench.run = slow  # type: ignore[method-assign]
    case = Case(EditRequest("0", "a", "{}", "b"), (Probe("efficacy", "0", "a", "b"),))
    search = Search(bench, (case,), (case,), Budget(10.0, clock=lambda: now[0]), range(4))
    search.run((Candidate(2),))
    assert 5 <= len(calls) <= 10
    assert now[0] <= 10.0


def test_a_json_file_is_read_as_settings(editable: EditableModel, files: CalibrationFiles) -> None:
    path = files.output.with_suffix(".json")
    quickly(editable, replace(files, output=path))
    found = read_hyperparameters(path)
    assert found.settings.layers == tuple(json.loads(path.read_text())["layers"])
    assert set(found.unused) <= {"calibration"}
