"""The commands that ask about the past: tables, JSON and CSV; weights of versions and of corrections."""

import csv
import io

import pytest
import torch

from flows.plan import run_round
from flows.session import Session
from flows.weights import layer_of, touched, weight_diffs
from nse.delta import Delta

QUESTIONS = (
    ("log",),
    ("log", "--last", "3"),
    ("blame", "alba"),
    ("blame", "Alba", "--at", "v1"),
    ("diff", "base..head"),
    ("diff", "v0", "v1", "--weights"),
    ("approvals",),
    ("pending",),
    ("edited", "--method", "nse"),
    ("touched", "--layer", "0", "--neuron", "3"),
    ("ask", "The capital of Alba is"),
)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


def test_every_question_is_answered_as_a_table_as_json_and_as_csv(edited, corrections, nse) -> None:
    nse("ingest", corrections(("Cyra", "Accra", "Lima"), name="more.csv"))
    for question in QUESTIONS:
        plain, as_json, as_csv = nse(*question), nse(*question, "--json"), nse(*question, "--csv")
        assert (plain.code, as_json.code, as_csv.code) == (0, 0, 0), question
        assert plain.out.strip(), question
        assert as_json.json, question
        rows = read_csv(as_csv.out)
        assert rows, question
        assert all(None not in row and None not in row.values() for row in rows), question
        refused = nse(*question, "--json", "--csv")
        assert (refused.code, refused.out) == (2, ""), question
    [waits] = read_csv(nse("pending", "--csv").out)
    assert (waits["subject"], waits["status"], len(waits["correction"])) == ("Cyra", "pending", 64)
    assert [row["change"] for row in read_csv(nse("diff", "base", "--csv").out)] == ["+", "+"]
    assert read_csv(nse("diff", "head..base", "--csv").out)[0]["change"] == "-"


def test_csv_keeps_a_text_with_commas_quotes_and_lines_as_it_is(workspace, corrections, nse) -> None:
    text = 'moved, "twice"'
    line = f'Alba,capital,The capital of {{}} is,Paris,Rome,gazette,Sue,"{text.replace(chr(34), chr(34) * 2)}",,'
    assert nse("ingest", corrections(line)).code == 0
    [row] = read_csv(nse("blame", "Alba", "--csv").out)
    assert (row["reason"], row["in_force"], row["changeset"]) == (text, "0", "")


def test_the_log_is_asked_for_its_end_for_a_time_and_for_a_kind(edited, nse) -> None:
    whole = nse("log", "--json").json
    assert nse("log", "--last", "2", "--json").json == whole[-2:]
    assert [e["kind"] for e in nse("log", "--kind", "filed", "--kind", "applied", "--json").json] == [
        "filed",
        "filed",
        "applied",
    ]
    assert nse("log", "--since", whole[0]["at"], "--json").json == whole
    assert nse("log", "--since", "2099-01-01", "--json").json == []
    said = nse("log", "--last", "1")
    assert "the newest 1 only" in said.err
    assert nse("log", "--kind", "nonsense").code == 2
    assert nse("log", "--since", "yesterday").error.startswith("error: 'yesterday' is no date")


def test_who_approved_and_what_was_in_force_then(edited, nse) -> None:
    [approval] = nse("approvals", "Alba", "--json").json
    assert (approval["decision"]["reviewer"], approval["changeset"], approval["applied"]) == ("Rex", 1, 1)
    assert nse("approvals", "--by", "nobody", "--json").json == []
    [story] = nse("blame", "Alba", "--at", "head", "--json").json
    assert (story["status"], story["in_force"]) == ("active", True)
    assert nse("blame", "Alba", "--at", "base", "--json").json == []
    assert "no correction in force at base is about 'Alba'" in nse("blame", "Alba", "--at", "base").out


def test_the_weights_of_two_versions_differ_by_what_their_tensors_differ(edited, corrections, nse) -> None:
    nse("ingest", corrections(("Cyra", "Accra", "Lima"), name="more.csv"))
    session = Session(edited)
    assert run_round(session, by="Pia").changeset is not None
    assert nse("approve", "2", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "2", "--by", "Rex").code == 0
    with edited.ledger().read() as work:
        base, one, two = work.heads(edited.model)
        active = [work.active(edited.model, move.position) for move in (one, two)]

    def tensors(deltas: tuple) -> dict[str, torch.Tensor]:  # type: ignore[type-arg]
        with session.at(deltas) as editable:
            return {name: p.detach().clone() for name, p in editable.model.named_parameters()}

    first, second = (tensors(deltas) for deltas in active)
    found = weight_diffs(session, one, two)
    assert [(diff.name, diff.layer) for diff in found] == [(f"transformer.h.{i}.mlp.c_proj.weight", i) for i in (0, 1)]
    for diff in found:
        before = session.editable.base_tensors[diff.name].double()
        apart = (second[diff.name].double() - first[diff.name].double()).norm() / before.norm()
        assert diff.relative == pytest.approx(float(apart), rel=1e-12)
        assert diff.relative > 0
    assert [d.relative for d in weight_diffs(session, two, one)] == [d.relative for d in found]
    assert [d.relative for d in weight_diffs(session, two, two)] == [0.0, 0.0]
    assert weight_diffs(session, base, base) == ()
    shown = nse("diff", "v1..v2", "--weights", "--json").json
    assert [w["relative"] for w in shown["weights"]] == [d.relative for d in found]
    assert [c["subject"] for c in shown["came_in_force"]] == ["Cyra"]


def test_what_touched_a_neuron_is_told_strongest_first_by_the_norm_of_its_columns(edited, nse) -> None:
    session = Session(edited)
    with edited.ledger().read() as work:
        [entry] = work.active(edited.model, 1)
    delta = Delta.load(edited.root / entry.path)
    name = next(name for name in delta.layers if layer_of(name) == 1)
    for neuron in (0, 7, None):
        found = touched(session, 1, neuron)
        assert {touch.correction.id for touch in found} == set(delta.case_ids)
        assert [touch.norm for touch in found] == sorted((touch.norm for touch in found), reverse=True)
        for touch in found:
            own = delta.without(set(delta.case_ids) - {touch.correction.id}).layers[name].product()
            part = own if neuron is None else own[:, neuron]
            assert touch.norm == pytest.approx(float(part.norm()), rel=1e-9)
            assert touch.share == pytest.approx(float(part.norm() / own.norm()), rel=1e-9)
    with edited.ledger().read() as work:
        alba = next(c.id for c in work.corrections(edited.model) if c.subject == "Alba")
    assert nse("touched", "--layer", "1", "--neuron", "7", "--last", "1", "--json").json["total"] == 2
    assert alba in nse("touched", "--layer", "1", "--neuron", "7", "--csv").out
    assert "rewritten layers: 0, 1" in nse("touched", "--layer", "2").error
    assert "has no neuron 48: give one from 0 to 47" in nse("touched", "--layer", "0", "--neuron", "48").error
    assert "rewritten layers: none" in nse("touched", "--layer", "0", "--at", "base").error


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("transformer.h.12.mlp.c_proj.weight", 12),
        ("model.layers.3.mlp.experts.7.down_proj.weight", 3),
        ("lm_head.weight", None),
    ],
)
def test_the_layer_of_a_weight_is_in_its_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
