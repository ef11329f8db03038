"""A tiny suite on a small model, its metrics computed by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nse.chat import in_chat, needed_chat_context
from nse.editors.nse import NSE
from nse.errors import SuiteError
from nse.evaluation.answers import answer, same_answer, satisfies
from nse.evaluation.generate import generate
from nse.evaluation.metrics import by_case
from nse.evaluation.outcomes import OutcomeStore
from nse.evaluation.probes import IN_CHAT, KnownFact, Probe
from nse.evaluation.run import evaluate, probes_of
from nse.evaluation.score import perplexity
from nse.evaluation.suites import Canary, Gate, KeptFact, Suite
from nse.patch import compose, patched
from nse.request import EditRequest
from tests.nse import oracle
from tests.nse.conftest import CHATML, fact

TEMPLATES = {"home": ("{} lives in", "The home of {} is")}
KNOWN = (("Clara Dahl", "Oslo"), ("Dmitri Eng", "Rome"), ("Boris Cole", "Lima"))


def suite(**change) -> Suite:
    facts = tuple(KnownFact(s, "home", o) for s, o in KNOWN)
    parts = {"texts": ("Anna Berg lives in Oslo.",), "canaries": (Canary("The home of", "Rome"),), "gates": ()} | change
    return Suite(facts, TEMPLATES, neighbours=2, files=(), digest="", **parts)


def most_probable(editable, prompt: str, target: str) -> bool:
    """Whether the model would say each token of the target, the tokens before it given."""
    before, ids = oracle.ids_of(editable, prompt), oracle.ids_of(editable, f"{prompt} {target}")
    best = oracle.log_probabilities(editable.model, ids).argmax(dim=-1).tolist()
    return best[len(before) - 1 : len(ids) - 1] == ids[len(before) :]


@torch.no_grad()
def test_every_outcome_and_metric_is_what_asking_one_by_one_gives(editable) -> None:
    requests, retained = [fact(0)], [[fact(1)]]
    asked = probes_of(suite(), requests, retained)
    result = evaluate(editable, suite(), requests=requests, retained=retained)
    assert {p.kind for p in asked} == {
        "efficacy",
        "generalization",
        "specificity",
        "retention",
        "untouched",
        "canary",
    }
    for probe, case in zip(asked, result.cases, strict=True):
        score, tokens = oracle.target_score(editable, probe.prompt, probe.expected)
        assert case.probability == pytest.approx(math.exp(float(score)), rel=1e-3)
        if probe.foil is None:
            assert case.preferred == (math.exp(float(score) / tokens) > 0.5)
        else:
            foil, length = oracle.target_score(editable, probe.prompt, probe.foil)
            assert case.preferred == (float(score) / tokens > float(foil) / length)
            assert case.foil_nats == pytest.approx(-float(foil) / length, rel=1e-3)
        assert case.nats == pytest.approx(-float(score) / tokens, rel=1e-3)
        assert case.argmax == most_probable(editable, probe.prompt, probe.expected)
        text = generate(editable, [probe.prompt])[0]
        assert (case.generated, case.passed) == (answer(text), same_answer(text, probe.expected))
        assert (case.kind, case.case_id, case.prompt) == (probe.kind, probe.case_id, probe.prompt)
    for kind in {p.kind for p in asked}:
        own = [c for c in result.cases if c.kind == kind]
        assert result.metrics[kind] == sum(c.preferred for c in own) / len(
            own
        )  # one case of each kind, or one probe of each
        assert result.metrics[f"{kind}_generation"] == sum(c.passed for c in own) / len(own)
        assert result.metrics[f"{kind}_accuracy"] == sum(c.argmax for c in own) / len(own)
    assert result.metrics["perplexity"] == perplexity(editable, suite().texts)
    assert result.metrics["perplexity_ratio"] == 1.0
    assert result.to_dict()["cases"][0]["prompt"] == asked[0].prompt


def test_retained_and_new_subjects_are_neither_neighbours_nor_untouched() -> None:
    requests = [fact(0)]  # Anna Berg
    retained = [[fact(1)]]  # Boris Cole
    found = probes_of(suite(), requests, retained)
    for kind in ("specificity", "untouched"):
        prompts = [p.prompt for p in found if p.kind == kind]
        assert prompts
        assert not any("Anna" in p or "Boris" in p for p in prompts)
    assert [p.case_id for p in found if p.kind == "retention"] == ["case 1"]


def test_of_past_corrections_a_sample_is_asked_and_none_is_untouched(editable) -> None:
    own, rounds = suite(texts=(), retention=2), [[fact(0), fact(1)], [fact(2), fact(3)]]
    found = evaluate(editable, own, retained=rounds)
    names = [case.case_id for case in found.cases if case.kind == "retention"]
    assert [name in ("case 0", "case 1") for name in names] == [True, False]
    assert (found.metrics["retention_asked"], found.metrics["retention_all"]) == (2, 4)
    assert found.metrics["retention_low"] <= found.metrics["retention"] <= found.metrics["retention_high"]
    subjects = [request.subject for corrections in rounds for request in corrections]
    assert not any(subject in case.prompt for case in found.cases if case.kind == "untouched" for subject in subjects)
    assert "retention_low" not in evaluate(editable, suite(texts=()), retained=rounds).metrics


def test_only_kinds_that_were_asked_have_metrics(editable) -> None:
    metrics = evaluate(editable, suite(texts=(), canaries=())).metrics
    assert set(metrics) == {"untouched", "untouched_accuracy", "untouched_generation"}


def test_a_correct_canary_passes(editable) -> None:
    said = answer(generate(editable, ["The home of"])[0])
    assert said
    right, wrong = (
        evaluate(editable, suite(canaries=(Canary("The home of", text),))).metrics["canary_generation"]
        for text in (said, said + "x")
    )
    assert (right, wrong) == (1.0, 0.0)


@pytest.mark.parametrize("rule", ["contains", "lacks"])
def test_a_canary_can_ask_for_a_part_of_the_answer_or_for_its_absence(editable, rule) -> None:
    said = answer(generate(editable, ["The home of"])[0])
    word = re.findall(r"\w+", said)[0]  # the model is random: its words may have signs at their ends
    for text in (word, word + "x"):
        (case,) = evaluate(editable, suite(texts=(), canaries=(Canary("The home of", text, rule),), untouched=0)).cases
        assert case.passed == ((text == word) == (rule == "contains"))
        assert case.expected == f"{rule} {text}"
        likely = most_probable(editable, "The home of", text)
        assert (case.preferred, case.argmax) == (
            (case.nats < math.log(2)) == (rule == "contains"),
            likely == (rule == "contains"),
        )


def test_what_is_to_be_kept_is_asked_whatever_is_corrected(editable) -> None:
    kept = (KeptFact("k", "Anna Berg lives in", "Oslo", "Rome"),)
    probes = [p for p in probes_of(suite(kept=kept), [fact(0)], []) if p.kind == "kept"]
    assert probes == [Probe("kept", "k", "Anna Berg lives in", "Oslo", "Rome")]


def test_what_misleads_is_asked_if_the_suite_wants_it_less_what_was_corrected() -> None:
    own = suite(misleading=("distracted", "running_text"), per_kind=1)
    found = [p for p in probes_of(own, [fact(0)], [[fact(1)]]) if p.kind in own.misleading]
    assert sorted(p.kind for p in found) == ["distracted", "running_text"]
    assert not any("Boris" in p.prompt for p in found)
    assert not [p for p in probes_of(suite(), [fact(0)], []) if p.kind in own.misleading]


def test_corrections_and_facts_are_asked_in_the_chat_format_as_well_where_there_is_one(chatting) -> None:
    kept = (KeptFact("Anna Berg / home", "Anna Berg lives in", "Oslo", "Rome"),)
    asked = (suite(kept=kept), [fact(0)], [[fact(1)]])
    prose, both = probes_of(*asked), probes_of(*asked, tokenizer=chatting.tokenizer)
    context = needed_chat_context(chatting.tokenizer)
    twins = both[len(prose) :]
    assert both[: len(prose)] == prose
    assert [p.kind for p in twins] == [f"chat_{p.kind}" for p in prose if p.kind != "canary"]
    assert [p.prompt for p in twins] == [in_chat(context, p.prompt) for p in prose if p.kind != "canary"]
    assert {p.rule for p in twins} == {"states"}
    assert probes_of(suite(kept=kept, chat=False), *asked[1:], tokenizer=chatting.tokenizer) == prose
    found = evaluate(chatting, suite(kept=kept), requests=[fact(0)], retained=[[fact(1)]])
    for kind in IN_CHAT.values():
        own = [case for case in found.cases if case.kind == kind]
        assert found.metrics[f"{kind}_generation"] == pytest.approx(by_case(own, lambda c: float(c.passed)))
    for probe, case in zip(twins, found.cases[len(prose) :], strict=True):
        assert case.expected == f"states {probe.expected}"
        about = {"question": probe.prompt, "foil": probe.foil}
        assert case.passed == satisfies(case.generated, probe.expected, rule="states", **about)


def test_what_is_asked_in_prose_is_answered_alike_with_and_without_a_chat_format(editable, monkeypatch) -> None:
    before = evaluate(editable, suite(), requests=[fact(0)])
    monkeypatch.setattr(editable.tokenizer, "chat_template", CHATML)
    after = evaluate(editable, suite(), requests=[fact(0)])
    assert after.cases[: len(before.cases)] == before.cases
    assert {name: after.metrics[name] for name in before.metrics} == before.metrics


@pytest.mark.parametrize("change", [{"chat": True}, {"gates": (Gate("chat_efficacy_generation", ">=", 0.5),)}])
def test_a_chat_format_that_is_demanded_and_is_not_there_is_refused(editable, change) -> None:
    own = replace(suite(**change), files=(Path("s.yaml"),))
    with pytest.raises(SuiteError, match=r"s\.yaml: .*the tokenizer has no chat template: use an instruct model"):
        evaluate(editable, own)


def test_answers_are_kept_under_what_else_ends_them(chatting, tmp_path, monkeypatch) -> None:
    store = OutcomeStore(tmp_path)
    first = evaluate(chatting, suite(), store=store, version="v")
    monkeypatch.setattr("nse.evaluation.run.ask", None)  # nothing is asked again
    assert evaluate(chatting, suite(), store=store, version="v") == first
    monkeypatch.setattr(chatting.model.generation_config, "eos_token_id", 7)
    with pytest.raises(TypeError):
        evaluate(chatting, suite(), store=store, version="v")


def test_the_signs_of_collapse_are_among_the_metrics(editable) -> None:
    assert {"perplexity", "delta_norm", "hidden_drift", "hidden_cosine", "text_entropy"} <= set(
        evaluate(editable, suite()).metrics
    )


def test_the_norm_of_an_update_is_measured_without_a_text_if_a_gate_is_on_it(editable, tmp_path, monkeypatch) -> None:
    gates = tuple(Gate(name, "<=", 1.0) for name in ("delta_norm", "delta_norm.0", "delta_norm.2"))
    bare, store = suite(texts=(), canaries=(), gates=gates), OutcomeStore(tmp_path)
    name = editable.parameter_name(2)
    with patched(editable, {name: 3 * editable.base_tensors[name]}):
        found = evaluate(editable, bare, store=store, version="v").metrics
        assert found == evaluate(editable, bare).metrics
        monkeypatch.setattr("nse.evaluation.run.norm_signs", lambda _: pytest.fail("measured again"))
        assert evaluate(editable, bare, store=store, version="v").metrics == found
    assert {n: found[n] for n in found if n.startswith("delta")} == pytest.approx(
        {"delta_norm": 2.0, "delta_norm.0": 0.0, "delta_norm.2": 2.0}
    )
    assert "hidden_drift" not in found


def test_a_gate_on_the_norm_of_a_layer_that_there_is_not_is_refused(editable) -> None:
    with pytest.raises(SuiteError, match=r"gate delta_norm\.99 is on no layer of the model: its layers are 0 to"):
        evaluate(editable, suite(gates=(Gate("delta_norm.99", "<=", 1.0),)))


def test_answers_kept_under_another_rule_are_not_read(tmp_path) -> None:
    (tmp_path / "version.json").write_text(json.dumps({"key": {"kind": "canary"}}))  # as schema 1 named its files
    (tmp_path / "version.2.json").write_text(json.dumps({"key": {"kind": "canary"}}))  # expected texts were cut
    assert OutcomeStore(tmp_path).read("version") == {}


def test_an_edit_raises_efficacy_and_the_ratio_compares_with_the_base(editable, context) -> None:
    requests = [EditRequest(str(i), s, "This is the home of {}", o, "Quito") for i, (s, o) in enumerate(KNOWN)]
    delta = NSE().edit(editable, requests, context).delta
    before = evaluate(editable, suite(), requests=requests)
    with patched(editable, compose(editable, [delta])):
        after = evaluate(editable, suite(), requests=requests)
        edited = perplexity(editable, suite().texts)
    assert sum(c.probability for c in after.cases if c.kind == "efficacy") > 2 * sum(
        c.probability for c in before.cases if c.kind == "efficacy"
    )
    assert after.metrics["perplexity"] == edited != before.metrics["perplexity"]
    assert after.metrics["perplexity_ratio"] == pytest.approx(edited / before.metrics["perplexity"])


def test_kept_answers_are_the_same_and_are_not_asked_again(editable, tmp_path, monkeypatch) -> None:
    store, version = OutcomeStore(tmp_path), editable.base_digest
    first = evaluate(editable, suite(), requests=[fact(0)], store=store, version=version)
    assert first == evaluate(editable, suite(), requests=[fact(0)])

    def refuse(*_args, **_kwargs) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("nse.evaluation.run.ask", refuse)
    assert evaluate(editable, suite(), requests=[fact(0)], store=store, version=version) == first
    with pytest.raises(AssertionError, match="asked again"):
        evaluate(editable, suite(), requests=[fact(0)], store=store, version="another")


def test_a_version_is_measured_once_for_its_vital_signs(editable, tmp_path, monkeypatch) -> None:
    store = OutcomeStore(tmp_path)
    first = evaluate(editable, suite(), store=store, version="v").metrics
    assert first == evaluate(editable, suite()).metrics
    monkeypatch.setattr("nse.evaluation.run.vital_signs", lambda *_, **__: pytest.fail("measured again"))
    assert evaluate(editable, suite(), store=store, version="v").metrics == first
