"""Nights that write at the last token: they are told of every token of what stands, and any of it can be taken back."""

import json

import pytest

from flows.workspace import Workspace
from nse.editors.nse import NSE
from tests.flows.rounds import CAPITAL, FIRST, SECOND, THIRD, head, identity, in_force, night, planned, take

TWO_TOKENS = f"Alba,capital,{CAPITAL},Paris Tokyo,Rome,gazette,Sue,moved,,"


@pytest.mark.parametrize(("fact_token", "keys"), [("subject_last", {2}), ("last", {3})])
def test_a_night_is_told_what_its_method_must_leave_alone(workspace: Workspace, monkeypatch, fact_token, keys) -> None:
    path = workspace.path(workspace.params.method.hparams)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fact_token": fact_token}))
    edit, told = NSE.edit, []

    def seen(self, editable, requests, context):
        told.append({len(layer.keys) for delta in context.previous for layer in delta.layers.values()})
        assert not context.earlier  # of these subjects nothing stands
        return edit(self, editable, requests, context)

    monkeypatch.setattr(NSE, "edit", seen)
    first = night(workspace, [TWO_TOKENS, FIRST[1]])
    night(workspace, SECOND)
    assert told == [set(), keys]
    assert in_force(workspace) == {("Alba", "Paris Tokyo"), ("Borea", "Tokyo"), ("Cyra", "Accra"), ("Dorn", "Berne")}
    take(workspace, planned(workspace, identity(workspace, "Alba", "Paris Tokyo")))
    assert in_force(workspace) == {("Borea", "Tokyo"), ("Cyra", "Accra"), ("Dorn", "Berne")}
    assert take(workspace, planned(workspace, "--to v1")) == head(workspace) == first


def test_a_night_is_told_of_facts_that_were_corrected_more_than_once(workspace: Workspace, monkeypatch) -> None:
    edit, told = NSE.edit, []

    def seen(self, editable, requests, context):
        told.append([(request.subject, request.target_new) for request in context.earlier])
        return edit(self, editable, requests, context)

    monkeypatch.setattr(NSE, "edit", seen)
    night(workspace, FIRST)
    night(workspace, [THIRD[2]])
    again = [("Alba", "Paris"), ("Alba", "Berne")]
    night(workspace, SECOND)  # of other subjects, and of Borea, which was corrected once, nothing
    assert told == [[], again[:1], again]
    take(workspace, planned(workspace, identity(workspace, "Alba", "Berne")))
    night(workspace, [THIRD[0]])
    assert told[3] == []  # of what was corrected again one is left
