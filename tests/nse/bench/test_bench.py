"""A benchmark of small models, from files to files."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import nse.bench.part
import nse.bench.program
import nse.bench.run
import nse.bench.score
from nse.architecture import EditableModel, load_model
from nse.bench import BASE, BenchFiles, BenchOptions, bench
from nse.bench.job import Job, torch_dtype
from nse.bench.part import GATE, finite
from nse.bench.plot import curve, draw
from nse.bench.program import program_digest
from nse.bench.retention import first_edits, retention_first
from nse.bench.run import in_words, remaining
from nse.bench.score import Prose, score
from nse.bench.streams import questions_about, read_dataset
from nse.bench.summary import failures, markdown, summary, tables
from nse.bench.worker import run_apart
from nse.delta import Delta
from nse.editors import EDITORS, EditContext, EditResult
from nse.editors.base import CaseReport, NoSettings
from nse.errors import (
    ArchitectureError,
    HyperparameterError,
    NseError,
    RequestError,
    StatisticsError,
    TokenError,
    TrainingError,
)
from nse.evaluation.capability import TaskSet
from nse.evaluation.metrics import WAYS
from nse.evaluation.retention import wilson
from nse.patch import Weights, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments
from tests.nse.conftest import CHATML, CITIES, CONTEXTS, PEOPLE, TEMPLATES

OPTIONS = BenchOptions(("nse",), edits=6, batch_size=2, orders=2, checkpoints=3, isolated=False)


class Idle:
    """A method that writes nothing and says so."""

    name = "idle"
    settings: type[Any] = NoSettings
    needs: frozenset[Any] = frozenset()
    seen: list[tuple[tuple[str, ...], EditContext]] = []  # noqa: RUF012 - emptied before each test

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        self.seen.append((tuple(r.case_id for r in requests), context))
        names = tuple(r.case_id for r in requests)
        cases = tuple(CaseReport(name, "unconverged", 1.0, 1.0) for name in names)
        delta = Delta({}, names, editable.base_digest, {"method": "idle"})
        return EditResult(delta, torch.zeros(len(names), 1), cases)


class Breaks(Idle):
    """A method that ends in the middle of the stream."""

    name = "breaks"

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        if context.previous:
            raise torch.linalg.LinAlgError("the matrix is\nsingular")
        return super().edit(editable, requests, context)


class Trains(Idle):
    name = "trains"
    needs: frozenset[Any] = frozenset(("trained",))


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for editor in (Idle, Breaks, Trains):
        monkeypatch.setitem(EDITORS, editor.name, editor)
    monkeypatch.setattr(nse.bench.run, "program_digest", lambda _method: "this program")
    Idle.seen.clear()


@pytest.fixture
def family() -> str:
    return "gpt2"


@pytest.fixture
def files(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> BenchFiles:
    rows = [
        {
            "case_id": str(i),
            "subject": person,
            "prompt": TEMPLATES[0],
            "relation": "home",
            "target_new": CITIES[(i + 2) % 6],
            "target_true": CITIES[i],
            "paraphrase_prompts": [TEMPLATES[1].replace("{}", person)],
            "neighborhood_prompts": [TEMPLATES[0].replace("{}", "Gerd Holm")],
            "generation_prompts": [TEMPLATES[0].replace("{}", person)] if i < 2 else [],
        }
        for i, person in enumerate(PEOPLE)
    ]
    (tmp_path / "cases.json").write_text(json.dumps(rows), encoding="utf-8")
    others = [f"{template.replace('{}', 'Gerd Holm')} {city}.\n" for template in TEMPLATES for city in CITIES]
    (tmp_path / "corpus.txt").write_text(corpus.read_text(encoding="utf-8") + "".join(others), encoding="utf-8")
    (tmp_path / "contexts.json").write_text(json.dumps(CONTEXTS), encoding="utf-8")
    (tmp_path / "hparams.yaml").write_text(
        "{layers: [1, 2], v_num_grad_steps: 8, v_lr: 0.2, v_weight_decay: 0.02, clamp_norm_factor: 1.0, "
        "mom2_update_weight: 2.0, alpha: 0.5, nse: {max_passes: 1}}"
    )
    return BenchFiles(
        model_folders["gpt2"],
        tmp_path / "cases.json",
        tmp_path / "hparams.yaml",
        tmp_path / "record.json",
        corpus=tmp_path / "corpus.txt",
        contexts=tmp_path / "contexts.json",
    )


def metrics_of(record: dict[str, Any], method: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = record["methods"][method]["summary"]["metrics"]
    return found


def test_a_bench_asks_everything_after_the_stream_and_at_checkpoints(files: BenchFiles) -> None:
    record = bench(replace(files, plot=files.output.with_suffix(".svg")), replace(OPTIONS, methods=("nse", "idle")))
    assert json.loads(files.output.read_text(encoding="utf-8")) == record
    for told in record["methods"].values():
        for part in told["parts"]:
            assert [(c["edits"], c["facts"]) for c in part["checkpoints"]] == [(2, 2), (4, 4), (6, 6)]
            assert len(part["cases"]) == 6
            assert [c["retention_first_facts"] for c in part["checkpoints"]] == [2, 2, 2]
            assert part["metrics"]["retention_first"] == part["checkpoints"][-1]["retention_first"]
            assert part["ages"][0]["from"] == 1
            assert part["ages"][-1]["to"] == 6
            assert part["checkpoints"][-1]["fluency"] == part["metrics"]["fluency"]
    new, base = metrics_of(record, "nse"), metrics_of(record, BASE)
    assert new["efficacy"]["mean"] > base["efficacy"]["mean"]
    for name in ("perplexity", "fluency", "consistency"):
        assert new[name]["mean"] != base[name]["mean"]
    assert new["seconds_per_edit"]["mean"] > 0
    assert new["peak_memory_mib"]["mean"] > 10
    part = record["methods"]["nse"]["parts"][0]
    let_through = part["metrics"]["edits_within_gate"]
    taken = [r["perplexity"] for r in part["rounds"]]
    assert taken[-1] == part["metrics"]["perplexity"]
    bound = GATE * record["methods"][BASE]["parts"][0]["metrics"]["perplexity"]
    assert let_through == 2 * next((i for i, found in enumerate(taken) if found > bound), len(taken))
    assert "seconds_per_edit" not in base
    streams = [[p["stream"] for p in told["parts"]] for told in record["methods"].values()]
    assert streams[0] == streams[1] == streams[2]
    assert streams[0][0] != streams[0][1]
    assert record["methods"]["nse"]["settings"]["max_passes"] == 1
    svg = files.output.with_suffix(".svg").read_text(encoding="utf-8")
    for title in (
        "perplexity",
        "first edits: argmax",
        "harmonic mean: against the other object",
        "fluency",
        "consistency",
    ):
        assert f"<!-- {title}" in svg
    draw(record, files.output.with_name("again.svg"))
    assert files.output.with_name("again.svg").read_text(encoding="utf-8") == svg


def test_everything_is_asked_in_the_chat_format_as_well_if_that_is_wanted(files: BenchFiles, tmp_path: Path) -> None:
    folder = tmp_path / "instruct"
    shutil.copytree(files.model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    options = replace(OPTIONS, methods=("idle",), orders=1, checkpoints=1, prose=0, isolated=False)
    prose = bench(replace(files, model=folder), options)
    both = bench(replace(files, model=folder, output=tmp_path / "both.json"), replace(options, chat=True))
    assert (prose["stream"].get("chat"), both["stream"].pop("chat")) == (None, True)
    assert prose["stream"] == both["stream"]
    own, all_ = metrics_of(prose, BASE), metrics_of(both, BASE)
    names = [
        name for name in own if name.partition("_")[0] in ("efficacy", "generalization", "specificity", "harmonic")
    ]
    assert {f"chat_{name}" for name in names} <= set(all_)
    assert not any(name.startswith("chat") for name in own)
    assert [title for title in tables(both) if "chat" in title] == ["in the chat format, by free generation, %"]
    assert not any("chat" in title for title in tables(prose))
    with pytest.raises(TokenError, match="no chat template"):
        bench(files, replace(options, chat=True))


def test_perplexity_is_read_at_some_rounds_of_a_long_stream(files: BenchFiles, monkeypatch) -> None:
    monkeypatch.setattr(nse.bench.part, "READINGS", 2)
    given = iter([3.0, 3.0 * GATE])  # before the stream, then after its third round; after the sixth all is scored
    monkeypatch.setattr(nse.bench.part, "perplexity_of", lambda editable, texts: next(given))
    monkeypatch.setattr(nse.bench.score, "perplexity_of", lambda editable, texts: 3.0 * GATE + 0.1)
    options = replace(OPTIONS, methods=("idle",), batch_size=1, orders=1, checkpoints=1)
    part = bench(files, options)["methods"]["idle"]["parts"][0]
    assert [number for number, r in enumerate(part["rounds"], start=1) if "perplexity" in r] == [3, 6]
    assert part["metrics"]["edits_within_gate"] == 3


def test_texts_are_written_at_some_checkpoints_and_at_the_end(files: BenchFiles, monkeypatch) -> None:
    monkeypatch.setattr(nse.bench.part, "WRITINGS", 2)
    rows = json.loads(files.dataset.read_text(encoding="utf-8"))
    rows = [row | {"generation_prompts": [row["subject"]]} for row in rows]
    files.dataset.write_text(json.dumps(rows), encoding="utf-8")
    options = replace(OPTIONS, methods=("idle",), batch_size=1, orders=1, checkpoints=6)
    part = bench(files, options)["methods"]["idle"]["parts"][0]
    assert [c["edits"] for c in part["checkpoints"]] == [1, 2, 3, 4, 5, 6]
    assert [c["edits"] for c in part["checkpoints"] if "fluency" in c] == [3, 6]


def test_task_sets_are_asked_at_the_checkpoints_and_compared_with_the_base(files: BenchFiles, monkeypatch) -> None:
    asked: list[str] = []
    ask = nse.bench.part.capability

    def counted(editable: EditableModel, sets: Sequence[TaskSet]) -> dict[str, float]:
        asked.append("asked")
        return ask(editable, sets)

    monkeypatch.setattr(nse.bench.part, "capability", counted)
    tasks = []
    for name, shift in (("homes", 2), ("others", 1)):
        rows = [
            {
                "prompt": t.replace("{}", p),
                "right": CITIES[(i + shift) % 6],
                "wrong": [CITIES[(i + shift + 1) % 6], CITIES[(i + shift + 3) % 6]],
            }
            for i, p in enumerate(PEOPLE)
            for t in TEMPLATES
        ]
        tasks.append(files.output.with_name(f"{name}.json"))
        tasks[-1].write_text(json.dumps(rows), encoding="utf-8")
    record = bench(
        replace(files, tasks=tuple(tasks)), replace(OPTIONS, orders=1, methods=("nse", "idle"), task_questions=20)
    )
    assert asked == ["asked"] * (1 + 3 + 3)  # the base's does not change
    base, new, idle = (record["methods"][name]["parts"][0] for name in (BASE, "nse", "idle"))
    assert [c["capability"] for c in base["checkpoints"]] == [base["metrics"]["capability"]] * 3
    found = new["metrics"]
    assert found["capability"] == pytest.approx((found["capability.homes"] + found["capability.others"]) / 2)
    for metrics in (found, *new["checkpoints"]):
        assert metrics["capability_ratio"] == pytest.approx(metrics["capability"] / base["metrics"]["capability"])
    assert found["capability.homes"] > base["metrics"]["capability.homes"]  # that is what was written
    assert idle["metrics"]["capability_ratio"] == 1
    assert "capability_ratio" not in base["metrics"]
    header, rows = tables(record)["capability, %"]
    assert header == ["method", "mean", "of the base's", "homes", "others"]
    assert [row[0].text for row in rows] == [BASE, "nse", "idle"]
    assert rows[2][2].text == "100.0"
    assert "20 of homes (by chance 33), 20 of others (by chance 33)" in markdown(record)
    monkeypatch.setattr(nse.bench.run, "run_part", _no_part)
    again = bench(
        replace(files, tasks=tuple(tasks)), replace(OPTIONS, orders=1, methods=("nse", "idle"), task_questions=20)
    )
    assert again == record
    with pytest.raises(AssertionError, match="made anew"):
        bench(replace(files, tasks=tuple(tasks[:1])), replace(OPTIONS, orders=1, methods=("nse",), task_questions=20))


def _no_part(*_given: Any, **_named: Any) -> dict[str, Any]:
    raise AssertionError("made anew")


def test_a_counterfact_file_is_asked_in_every_way(files: BenchFiles) -> None:
    rows = [
        {
            "case_id": i,
            "requested_rewrite": {
                "subject": person,
                "prompt": TEMPLATES[0],
                "relation_id": "P551",
                "target_new": {"str": CITIES[(i + 2) % 6]},
                "target_true": {"str": CITIES[i]},
            },
            "paraphrase_prompts": [TEMPLATES[1].replace("{}", person)],
            "neighborhood_prompts": [TEMPLATES[0].replace("{}", "Gerd Holm")],
        }
        for i, person in enumerate(PEOPLE[:4])
    ]
    files.dataset.write_text(json.dumps(rows), encoding="utf-8")
    record = bench(files, replace(OPTIONS, methods=("idle",), edits=4, orders=1, checkpoints=1))
    found = metrics_of(record, "idle")
    for kind in ("efficacy", "generalization", "specificity", "harmonic_mean"):
        assert {f"{kind}{way}" for way in WAYS} <= found.keys()
    assert "no other object" not in markdown(record)


def test_cases_of_a_zsre_file_without_another_object_are_not_asked_by_probability(files: BenchFiles) -> None:
    rows = [
        {
            "subject": person,
            "src": TEMPLATES[0].replace("{}", person),
            "answers": [CITIES[i]],
            "rephrase": TEMPLATES[1].replace("{}", person),
            "loc": f"nq question: where is number {i}",
            "loc_ans": CITIES[5],
        }
        for i, person in enumerate(PEOPLE[:4])
    ]
    options = replace(OPTIONS, methods=("idle",), edits=4, orders=1, checkpoints=1)
    files.dataset.write_text(json.dumps(rows), encoding="utf-8")
    record = bench(files, options)
    found = metrics_of(record, "idle")
    assert {"efficacy_generation", "efficacy_accuracy", "generalization_generation", "specificity"} <= found.keys()
    assert not {"efficacy", "generalization", "retention_first", "harmonic_mean"} & found.keys()
    assert "4 of 4 cases name no other object: by probability they are left out." in markdown(record)
    files.dataset.write_text(json.dumps([rows[0] | {"alt": CITIES[4]}, *rows[1:]]), encoding="utf-8")
    record = bench(files, options)
    asked = [ways for ways in record["methods"]["idle"]["parts"][0]["cases"].values() if ways[0] is not None]
    assert len(asked) == 1
    assert metrics_of(record, "idle")["efficacy"]["mean"] == asked[0][0]
    assert "3 of 4 cases name no other object" in markdown(record)


def test_a_method_that_writes_nothing_scores_as_the_base_does(files: BenchFiles) -> None:
    record = bench(files, replace(OPTIONS, methods=("idle",), orders=1))
    base, idle = metrics_of(record, BASE), metrics_of(record, "idle")
    assert {name: idle[name] for name in base} == base
    assert idle["unconverged"]["mean"] == 6


def test_every_round_stands_on_those_before_it(files: BenchFiles) -> None:
    bench(files, replace(OPTIONS, methods=("idle",), orders=1))
    rounds = [names for names, _ in Idle.seen]
    assert [len(context.previous) for _, context in Idle.seen] == [0, 1, 2]
    for number, (_, context) in enumerate(Idle.seen):
        assert [r.case_id for r in context.earlier] == [name for names in rounds[:number] for name in names]
        assert context.contexts == CONTEXTS


def test_consolidated_all_edits_so_far_are_one_round_on_the_base_at_each_checkpoint(files: BenchFiles) -> None:
    record = bench(files, replace(OPTIONS, methods=("idle+consolidate",), checkpoints=2))
    assert [len(names) for names, _ in Idle.seen] == [4, 6] * 2
    assert all(context.previous == context.earlier == () for _, context in Idle.seen)
    assert Idle.seen[1][0] == Idle.seen[3][0]  # the orders of the stream differ, what is written at their end does not
    for part in record["methods"]["idle+consolidate"]["parts"]:
        assert [r["edits"] for r in part["rounds"]] == [4, 2]
        assert [r["unconverged"] for r in part["rounds"]] == [4, 6]
        assert part["metrics"]["unconverged"] == 6  # of the last solve: the one before is not there any more


def test_consolidated_three_orders_come_to_the_same_weights_and_streams_do_not(
    files: BenchFiles, moments_of: Callable[[EditableModel], SecondMoments]
) -> None:
    moments = files.output.with_name("moments.safetensors")
    moments_of(load_model(files.model)).save(moments)
    options = replace(OPTIONS, methods=("nse", "nse+consolidate"), orders=3, checkpoints=1)
    record = bench(replace(files, second_moment=moments), options)
    versions = {
        name: {part["checkpoints"][-1]["version"] for part in told["parts"]} for name, told in record["methods"].items()
    }
    assert len(versions["nse"]) == 3
    assert len(versions["nse+consolidate"]) == 1


def test_of_a_fact_that_is_corrected_twice_the_later_form_alone_is_asked(files: BenchFiles) -> None:
    rows = json.loads(files.dataset.read_text(encoding="utf-8"))
    files.dataset.write_text(json.dumps([*rows[:3], {**rows[0], "case_id": "again", "target_new": CITIES[4]}]))
    record = bench(files, replace(OPTIONS, methods=("idle",), edits=4, batch_size=4, orders=1, checkpoints=1))
    (part,) = record["methods"]["idle"]["parts"]
    assert len(part["cases"]) == 3
    assert part["rounds"][0]["superseded"] == 1
    ((names, _),) = Idle.seen
    assert set(names) == set(part["cases"])


def test_finished_parts_are_kept_and_only_what_they_depend_on_makes_them_anew(files: BenchFiles) -> None:
    options = replace(OPTIONS, methods=("idle",), checkpoints=1)
    first = bench(files, options)
    assert len(Idle.seen) == 6
    assert bench(files, options) == first
    assert bench(replace(files, output=files.output), replace(options, orders=1))["methods"]["idle"]["parts"] == [
        first["methods"]["idle"]["parts"][0]
    ]
    assert len(Idle.seen) == 6
    bench(files, replace(options, orders=3))
    assert len(Idle.seen) == 9
    text = files.hparams.read_text()
    files.hparams.write_text(text.replace("v_lr: 0.2", "v_lr: 0.3"))
    bench(files, replace(options, orders=3))
    assert len(Idle.seen) == 18
    bench(files, replace(options, orders=1, seed=1))
    assert len(Idle.seen) == 21


def test_second_moments_count_for_the_methods_alone_that_need_them(
    files: BenchFiles, moments_of: Callable[[EditableModel], SecondMoments]
) -> None:
    options = replace(OPTIONS, methods=("idle",), orders=1, checkpoints=1)
    alone = bench(files, options)
    moments = files.output.with_name("moments.safetensors")
    moments_of(load_model(files.model)).save(moments)
    beside = bench(replace(files, second_moment=moments), replace(options, methods=("idle", "nse")))
    assert beside["digests"]["second_moment"] is not None
    assert beside["methods"]["idle"] == alone["methods"]["idle"]
    assert len(Idle.seen) == 3, "kept, although a method beside it reads second moments"


def test_values_are_kept_for_the_next_order_and_do_not_flatter_its_seconds(files: BenchFiles) -> None:
    record = bench(files, replace(OPTIONS, checkpoints=1))
    parts = record["methods"]["nse"]["parts"]
    assert [p["warm"] for p in parts] == [False, True]
    cold = parts[0]["metrics"]["seconds_per_edit"]
    assert metrics_of(record, "nse")["seconds_per_edit"] == spread(cold)
    assert list((files.parts / "values" / "nse").iterdir())


def test_a_method_that_fails_leaves_what_it_reached_and_does_not_stop_the_others(files: BenchFiles) -> None:
    options = replace(OPTIONS, methods=("breaks", "idle"), orders=1)
    record = bench(files, options)
    (part,) = record["methods"]["breaks"]["parts"]
    assert part["failed"] == {"edits": 2, "reason": "the matrix is singular"}
    assert [c["edits"] for c in part["checkpoints"]] == [2]
    assert metrics_of(record, "idle")["efficacy"]
    assert failures(record) == ["breaks, order 1: the matrix is singular (after 2 edits)"]
    assert "the matrix is singular" in markdown(record)
    seen = len(Idle.seen)
    bench(files, options)
    assert len(Idle.seen) == seen + 1, "a part that failed is run again"


def test_a_part_in_a_process_of_its_own_gives_the_same_record(files: BenchFiles) -> None:
    told: list[str] = []
    options = replace(OPTIONS, orders=1, checkpoints=1)
    apart = bench(files, replace(options, isolated=True), progress=lambda stage, _done, _total: told.append(stage))
    here = bench(replace(files, output=files.output.with_name("here.json")), options)
    for method in (BASE, "nse"):
        (a,), (b,) = (record["methods"][method]["parts"] for record in (apart, here))
        assert (a["checkpoints"], a["cases"]) == (b["checkpoints"], b["cases"])
    assert "nse, order 1: edits" in told


def test_a_process_that_cannot_do_its_job_says_why(files: BenchFiles, tmp_path: Path) -> None:
    job = Job(BASE, 0, tmp_path / "no model", files.dataset, files.hparams, tmp_path / "contexts.json")
    record = run_apart(job, progress=lambda *_told: None)
    assert "is not a model directory" in record["failed"]["reason"]


def test_a_job_is_the_same_after_its_file(tmp_path: Path) -> None:
    job = Job("nse", 1, tmp_path, tmp_path, tmp_path, tmp_path, moments=tmp_path / "m", hold=True, memory=7)
    assert Job.from_json(job.to_json()) == job
    job = replace(job, tasks=(tmp_path / "a.json", tmp_path / "b.json"))
    assert Job.from_json(job.to_json()) == job
    assert torch_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ArchitectureError, match="is no type of weights"):
        torch_dtype("nn")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": ("nothing",)}, HyperparameterError, "method 'nothing' is unknown"),
        ({"methods": ("nse", "nse")}, HyperparameterError, "name each once"),
        ({"orders": 0}, RequestError, "orders is 0: give 1 or more"),
        ({"edits": 7}, RequestError, "has 6 usable cases, 7 edits are asked for"),
        ({"methods": ("trains",)}, TrainingError, "make a file with `nse train --method trains`"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    files: BenchFiles, change: dict[str, Any], error: type[NseError], message: str
) -> None:
    with pytest.raises(error, match=message):
        bench(files, replace(OPTIONS, **change))
    assert not files.output.exists()
    assert not Idle.seen


def test_second_moments_are_needed_where_a_method_needs_them(files: BenchFiles) -> None:
    with pytest.raises(StatisticsError, match="give --corpus or --second-moment"):
        bench(replace(files, corpus=None), OPTIONS)
    record = bench(replace(files, corpus=None), replace(OPTIONS, methods=("idle",), orders=1))
    assert "perplexity" not in metrics_of(record, "idle")


def part(order: int, *, warm: bool = False, failed: Any = None, **metrics: float | None) -> dict[str, Any]:
    return {"order": order, "warm": warm, "failed": failed, "metrics": metrics, "checkpoints": []}


def spread(*figures: float, without: int = 0) -> dict[str, Any]:
    mean = None if without else pytest.approx(sum(figures) / len(figures))
    low, high = min(figures, default=None), max(figures, default=None)
    return {"mean": mean, "low": low, "high": high, "without": without, "orders": len(figures) + without}


def record_of(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "stream": {"edits": 3, "dataset": "d.json", "batch_size": 1, "orders": 1, "seed": 0},
        "methods": {name: {"summary": summary(own), "parts": own} for name, own in parts.items()},
    }


def test_the_spread_is_over_all_orders() -> None:
    parts = [
        part(0, efficacy=0.5, seconds_per_edit=4.0),
        part(1, efficacy=0.7, seconds_per_edit=1.0, warm=True),
    ]
    found = summary(parts)
    assert found == {
        "orders": 2,
        "metrics": {"efficacy": spread(0.5, 0.7), "seconds_per_edit": spread(4.0)},
        "failed": [],
    }


def test_there_is_no_mean_where_an_order_failed_or_gave_no_number() -> None:
    one, other = part(0, efficacy=0.5, perplexity=3.3, fluency=5.0), part(1, efficacy=0.7, perplexity=None)
    broken = part(2, failed={"edits": 3, "reason": "x"})
    assert summary([one, other])["metrics"] == {
        "efficacy": spread(0.5, 0.7),
        "perplexity": spread(3.3, without=1),
        "fluency": spread(5.0, without=1),
    }
    found = summary([one, other, broken])
    assert found["orders"] == 2
    assert found["metrics"]["efficacy"] == spread(0.5, 0.7, without=1)
    assert found["failed"] == [{"order": 2, "edits": 3, "reason": "x"}]


def test_a_cell_says_of_how_many_orders_it_has_no_figure_and_is_never_the_best() -> None:
    parts = {
        "a": [part(0, perplexity=3.3), part(1, perplexity=None)],
        "b": [part(0, perplexity=9.0), part(1, perplexity=8.0)],
        "c": [part(0, perplexity=12.0), part(1, perplexity=12.0)],
        "d": [part(0, perplexity=None), part(1, perplexity=None)],
        "e": [part(0, failed={"edits": 3, "reason": "x"}), part(1, failed={"edits": 3, "reason": "x"})],
    }
    record = record_of(parts)
    _, rows = tables(record)["text and cost"]
    assert [(row[1].text, row[1].best) for row in rows] == [
        ("3.30, 1 of 2 without", False),
        ("8.50 (8.00-9.00)", True),
        ("12.0", False),
        ("no number", False),
        ("failed", False),
    ]
    assert '"Without": orders that failed, or whose figure is infinite' in markdown(record)
    assert "Without" not in markdown(record_of({"b": parts["b"]}))


def test_the_best_of_the_methods_is_marked_never_the_base() -> None:
    parts = {
        BASE: [part(0, specificity=0.8, perplexity=9.0)],
        "a": [part(0, specificity=0.5, perplexity=30.0, fluency=5.0, consistency=0.1)],
        "b": [part(0, specificity=0.8, perplexity=40.0, fluency=6.0, consistency=0.2)],
    }
    for (own,) in parts.values():
        own["metrics"]["reversed_generation"] = 0.0
    record = record_of(parts)
    shown = tables(record)
    header, rows = shown["by probability against the other object, %"]
    assert header == ["method", "specificity"]
    assert [[(c.text, c.best) for c in row] for row in rows] == [
        [("base", False), ("80.0", False)],
        [("a", False), ("50.0", False)],
        [("b", False), ("80.0", True)],
    ]
    _, rows = shown["text and cost"]
    assert [[c.best for c in row] for row in rows] == [[False] * 4, [False, True, False, False], [False] * 4]
    assert "| b | **80.0** |" in markdown(record)
    header, rows = shown["what misleads, by free generation, %"]
    assert header == ["method", "reversed"]
    assert not any(row[1].best for row in rows)  # all fail alike


def test_a_curve_has_a_gap_where_an_order_has_no_number() -> None:
    one = [{"edits": 2, "perplexity": 3.0}, {"edits": 4, "perplexity": None}, {"edits": 6, "perplexity": 8.0}]
    other = [{"edits": 2, "perplexity": 5.0}, {"edits": 4, "perplexity": 5.0}]
    parts = [{"checkpoints": one}, {"checkpoints": other}]
    edits, spreads = curve(parts, "perplexity")
    assert edits == [2, 4, 6]
    assert spreads[0] == (3.0, 4.0, 5.0)
    assert all(math.isnan(value) for spread in spreads[1:] for value in spread)
    edits, spreads = curve(parts[:1], "perplexity")
    assert edits == [2, 4, 6]
    assert [math.isnan(mean) for _, mean, _ in spreads] == [False, True, False]
    assert curve(parts[:1], "fluency") == ([], [])


def test_what_was_not_measured_has_no_panel_and_a_record_of_failures_is_drawn(tmp_path: Path) -> None:
    record = record_of({"a": [part(0) | {"checkpoints": [{"edits": 2, "efficacy_generation": 0.5}]}]})
    draw(record, tmp_path / "plot.svg")
    svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert svg.count("free generation, %") == 1
    assert "argmax" not in svg
    draw(record_of({"a": [part(0, failed={"edits": None, "reason": "x"})]}), tmp_path / "nothing.svg")
    with pytest.raises(NseError, match=r"cannot be drawn .* name it .svg or .png"):
        draw(record, tmp_path / "plot.unknown")


def test_numbers_that_are_not_finite_are_none_in_a_record() -> None:
    assert finite({"a": [float("inf"), 1.0, float("nan")], "b": (2, "x")}) == {"a": [None, 1.0, None], "b": [2, "x"]}


def test_the_first_edits_are_a_quarter_but_no_more_than_a_hundred() -> None:
    assert [first_edits(n) for n in (1, 8, 100, 400, 2000)] == [1, 2, 25, 100, 100]


def test_the_first_edits_are_taken_from_those_that_stand() -> None:
    stream = [f"old {i}" for i in range(8)] + [f"new {i}" for i in range(8)]
    cases = {"old 6": (1, 1, 1), "old 7": (1, 1, 0), **{f"new {i}": (0, 0, 1) for i in range(6)}}
    found = retention_first(cases, stream)
    assert found["retention_first_facts"] == 4, "a quarter of the stream, although two of its first eight edits stand"
    assert found["retention_first"] == 0.5
    assert found["retention_first_generation"] == 0.75
    assert found["retention_first_generation_low"] == wilson(3, 4)[0]
    assert retention_first({"new 7": (1, 1, 1)}, stream)["retention_first_facts"] == 1
    assert retention_first({}, stream) == {}


def test_what_was_not_asked_in_a_way_does_not_count_there() -> None:
    found = retention_first({"a": (None, 1, 1), "b": (1, 0, 0)}, [*"abcdefgh"])
    assert (found["retention_first"], found["retention_first_accuracy"]) == (1.0, 0.5)
    assert "retention_first" not in retention_first({"a": (None, 1, 1)}, ["a"])


def test_a_part_is_made_anew_when_the_program_is_another(files: BenchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, methods=("idle",), orders=1, checkpoints=1)
    bench(files, options)
    monkeypatch.setattr(nse.bench.run, "program_digest", lambda _method: "another")
    bench(files, options)
    assert len(Idle.seen) == 6


def test_the_program_is_the_code_that_a_method_may_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nse.bench.program, "PACKAGE", tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "editors").mkdir()
    found = []
    for name, text in (
        ("keys.py", "a = 1"),
        ("keys.py", '"""What it is."""\na  =  1  # one'),
        ("bench/plot.py", "a = 1"),
        ("editors/rome.py", "a = 1"),
        ("keys.py", "a = 2"),
        ("editors/nse.py", "a = 1"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        found.append(program_digest("nse"))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found)) == 3


def test_what_is_left_takes_as_long_as_what_was_before() -> None:
    found = {BASE: [{"seconds": {"all": 10.0}}], "a": [{"seconds": {"all": 30.0}}, {"seconds": {"all": 50.0}}], "b": []}
    assert remaining(["a", BASE], found) == "50 s"
    assert remaining(["b", "a"], found) == "80 s", "one that has not run is taken for the mean of those that have"
    assert remaining([], found) == ""
    assert [in_words(s) for s in (4.4, 240.0, 7300.0)] == ["4 s", "4 min", "2 h 2 min"]


def test_an_interrupted_bench_goes_on_where_it_was(files: BenchFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, methods=("idle", "breaks"), orders=2, checkpoints=1)

    def killed(*_arguments: object) -> EditResult:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(Breaks, "edit", killed)
        with pytest.raises(KeyboardInterrupt):
            bench(files, options)
    assert len(Idle.seen) == 3
    lines: list[str] = []
    after: list[int] = []
    bench(files, options, say=lines.append, after_order=lambda record: after.append(record["stream"]["orders"]))
    assert lines[1].startswith("idle, order 1: kept from an earlier run; 2 of 6 parts, about ")
    assert lines[2].startswith("breaks, order 1: failed: the matrix is singular; 3 of 6 parts, about ")
    assert lines[5].endswith("6 of 6 parts")
    assert after == [1, 2]


def test_weights_that_give_no_numbers_are_judged_and_nothing_is_written(
    editable: EditableModel, files: BenchFiles
) -> None:
    dataset = read_dataset(files.dataset, editable.tokenizer, edits=2, seed=0)
    names, questions = [r.case_id for r in dataset.requests], questions_about(dataset, None)
    name = editable.parameter_name(1)
    broken = Weights({name: torch.full_like(editable.model.get_parameter(name), torch.nan)})
    with patched(editable, broken):
        found = score(editable, names, questions, texts=("A text of some words.",), prose=Prose(dataset.requests, {}))
    assert math.isnan(found.metrics["perplexity"])
    assert found.metrics["efficacy"] == found.metrics["efficacy_generation"] == 0.0
    assert "fluency" not in found.metrics
    assert found.asked == 3 * 2 + 4, "of each case three, and the four that no edit is about"
