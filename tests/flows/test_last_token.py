"""Nights that write at the last token: they are told of all that stands, and any of it can be taken back."""

import json

import pytest

from flows.workspace import Workspace
from nse.editors.nse import NSE
from tests.flows.rounds import CAPITAL, FIRST, SECOND, head, identity, in_force, night, planned, take

TWO_TOKENS = f"Alba,capital,{CAPITAL},Paris Tokyo,Rome,gazette,Sue,moved,,"


@pytest.mark.parametrize(
    ("fact_token", "told"), [("subject_last", [set(), set()]), ("last", [set(), {"Alba", "Borea"}])]
)
def test_a_night_is_told_what_its_method_must_leave_alone(workspace: Workspace, monkeypatch, fact_token, told) -> None:
    path = workspace.path(workspace.params.method.hparams)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fact_token": fact_token}))
    edit, earlier = NSE.edit, []

    def seen(self, editable, requests, context):
        earlier.append({request.subject for request in context.earlier})
        return edit(self, editable, requests, context)

    monkeypatch.setattr(NSE, "edit", seen)
    first = night(workspace, [TWO_TOKENS, FIRST[1]])
    night(workspace, SECOND)
    assert earlier == told
    assert in_force(workspace) == {("Alba", "Paris Tokyo"), ("Borea", "Tokyo"), ("Cyra", "Accra"), ("Dorn", "Berne")}
    take(workspace, planned(workspace, identity(workspace, "Alba", "Paris Tokyo")))
    assert in_force(workspace) == {("Borea", "Tokyo"), ("Cyra", "Accra"), ("Dorn", "Berne")}
    assert take(workspace, planned(workspace, "--to v1")) == head(workspace) == first
