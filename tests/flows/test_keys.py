"""Keys in a workspace: who may register and revoke them, and the commands."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flows import decide, keys
from flows.commands import keys as commands
from flows.commands import policy as policy_commands
from flows.config import ApprovalParams
from flows.errors import FlowError, Refused
from flows.workspace import Workspace
from ledger.errors import DecisionRefused, LedgerError
from ledger.keys import KeyRing, key_id
from ledger.notes import NoteError
from ledger.persons import read_registry


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of keys for the test alone, without a passphrase."""
    monkeypatch.setenv("NSE_ANY_CLOCK", "1")
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("NSE_KEY_PASSPHRASE", raising=False)
    return tmp_path / "keys"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes to another machine, without any key."""
    return lambda: monkeypatch.setenv("NSE_KEYS", str(tmp_path / "another machine"))


def enrolled(workspace: Workspace) -> Workspace:
    """The workspace under a policy that wants keys to be registered before, adopted by Ann."""
    params = workspace.params.model_copy(update={"approval": ApprovalParams(keys="enrolled")})
    found = replace(workspace, params=params, clock=lambda: datetime(2026, 11, 21, 12, tzinfo=UTC))
    decide.adopt(found, by="Ann")
    return found


def people(workspace: Workspace) -> list[str]:
    """Who has a key, but for who made the workspace and adopted its policy."""
    return [k.person for k in keys.listed(workspace) if k.revoked_at is None and not k.person.startswith("Ann Author")]


def test_a_first_key_needs_nobodys_word(workspace: Workspace, folder: Path) -> None:
    event = keys.create(workspace, "Rex Roe", by="Rex Roe")
    assert (event.person, event.by, event.action) == ("Rex Roe", "Rex Roe", "register")
    (line,) = [line for line in keys.listed(workspace) if line.person == "Rex Roe"]
    assert (line.key_id, line.here, line.revoked_at) == (key_id(KeyRing(folder).public("Rex-Roe")), True, None)
    keys.create(workspace, "Bea", by="Bea")
    assert people(workspace) == ["Rex Roe", "Bea"]


def test_a_second_key_needs_the_first_or_somebody_elses_key_at_hand(
    workspace: Workspace, elsewhere: Callable[[], None]
) -> None:
    keys.create(workspace, "Rex", by="Rex")
    keys.create(workspace, "Rex", by="Rex")  # rotation: the first is here
    elsewhere()
    for by in ("Rex", "Bea"):
        with pytest.raises(Refused, match="a key of Rex needs the word of somebody whose key is on this machine"):
            keys.create(workspace, "Rex", by=by)
    keys.create(workspace, "Bea", by="Bea")
    keys.create(workspace, "Rex", by="bea")
    assert people(workspace) == ["Rex", "Rex", "Bea", "Rex"]


def test_where_keys_are_enrolled_every_one_needs_somebody_who_has_one(
    workspace: Workspace, elsewhere: Callable[[], None]
) -> None:
    place = enrolled(workspace)
    for by in ("Rex", "Nobody"):
        with pytest.raises(Refused, match="needs the word"):
            keys.create(place, "Rex", by=by)
    keys.create(place, "Rex", by="Ann")
    elsewhere()
    with pytest.raises(Refused, match="needs the word"):
        keys.create(place, "Bea", by="Ann")


def test_a_key_made_elsewhere_is_registered_by_its_verifier_key(
    workspace: Workspace, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    place = enrolled(workspace)
    elsewhere()
    public = keys.make("Rex")
    monkeypatch.setenv("NSE_KEYS", str(folder))
    event = keys.create(place, "Rex", by="Ann", public=str(public))
    assert event.public_key == str(public)
    assert [line.here for line in keys.listed(place) if line.person in ("Ann", "Rex")] == [True, False]
    with pytest.raises(DecisionRefused, match="registered, as one of Rex"):
        keys.create(place, "Bea", by="Ann", public=str(public))
    with pytest.raises(NoteError, match="no Ed25519 verifier key"):
        keys.create(place, "Bea", by="Ann", public="nonsense")


@pytest.mark.parametrize("name", ["policy", " Policy "])
def test_nobody_can_be_called_policy(workspace: Workspace, name: str) -> None:
    with pytest.raises(FlowError, match="no person can be called"):
        keys.create(workspace, name, by=name)


def test_a_key_that_others_may_read_vouches_for_nobody(workspace: Workspace, folder: Path) -> None:
    keys.create(workspace, "Rex", by="Rex")
    for path in folder.glob("*.pem"):
        path.chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        keys.create(workspace, "Rex", by="Rex")


def test_who_lost_a_key_revokes_it_and_others_need_a_key_of_their_own(
    workspace: Workspace, elsewhere: Callable[[], None]
) -> None:
    first = keys.create(workspace, "Rex", by="Rex")
    keys.create(workspace, "Bea", by="Bea")
    elsewhere()
    with pytest.raises(Refused, match="only Rex, or somebody whose own key is on this machine"):
        keys.revoke_keys(workspace, "Rex", by="Bea", reason="lost")
    with pytest.raises(DecisionRefused, match="reason is empty"):
        keys.revoke_keys(workspace, "Rex", by="Rex", reason=" ")
    (event,) = keys.revoke_keys(workspace, first.key_id[:8], by="rex", reason="laptop stolen")
    assert (event.key_id, event.person, event.reason) == (first.key_id, "Rex", "laptop stolen")
    assert people(workspace) == ["Bea"]
    for name in ("Rex", "abc", first.key_id[:8], "0" * 8):
        with pytest.raises(Refused, match="names no key in use"):
            keys.revoke_keys(workspace, name, by="Rex", reason="again")


def test_somebody_else_with_a_key_revokes_all_keys_of_a_person_who_then_needs_a_word(workspace: Workspace) -> None:
    keys.create(workspace, "Rex", by="Rex")
    keys.create(workspace, "Rex", by="Rex")
    keys.create(workspace, "Bea", by="Bea")
    assert len(keys.revoke_keys(workspace, "rex", by="Bea", reason="left")) == 2
    with pytest.raises(Refused, match="needs the word"):
        keys.create(workspace, "Rex", by="Rex")
    with (
        workspace.ledger().begin() as work,
        pytest.raises(
            Refused, match="the key of Rex was revoked: somebody else runs `nse keys create 'Rex' --by NAME`"
        ),
    ):
        keys.signer(workspace, work, "Rex", workspace.params.approval.policy())
    keys.create(workspace, "Rex", by="Bea")
    with workspace.ledger().read() as work:
        assert read_registry(work).problems == []


def test_a_ledger_whose_keys_are_all_revoked_can_get_a_new_one(workspace: Workspace) -> None:
    keys.create(workspace, "Rex", by="Rex")
    for person in {line.person for line in keys.listed(workspace)}:
        keys.revoke_keys(workspace, person, by=person, reason="lost")
    keys.create(workspace, "Rex", by="Rex")
    assert people(workspace) == ["Rex"]


# --- commands


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs `nse keys ...` or `nse policy ...`."""
    app, of_keys, of_policy = typer.Typer(), typer.Typer(), typer.Typer()
    for name, command in (("create", commands.create), ("list", commands.list_keys), ("revoke", commands.revoke)):
        of_keys.command(name)(command)
    for name, command in (("adopt", policy_commands.adopt), ("show", policy_commands.show)):
        of_policy.command(name)(command)
    app.add_typer(of_keys, name="keys")
    app.add_typer(of_policy, name="policy")
    return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_commands_create_list_and_revoke(workspace: Workspace, run: Callable[..., Result], folder: Path) -> None:
    made = run("keys", "create", "Rex", "--json")
    assert json.loads(made.stdout)["person"] == "Rex"
    assert "keep a copy" in run("keys", "create", "Dan").stderr
    unregistered = json.loads(run("keys", "create", "Bea", "--unregistered", "--json").stdout)
    assert unregistered["key_id"] == key_id(KeyRing(folder).public("Bea"))
    assert "is registered" in run("keys", "create", "Bea", "--public", unregistered["public_key"]).stdout
    assert people(workspace) == ["Rex", "Dan", "Bea"]
    assert "Rex" in run("keys", "list").stdout
    assert "is revoked" in run("keys", "revoke", "Rex", "--by", "Rex", "--reason", "lost").stdout
    listed = json.loads(run("keys", "list", "--json").stdout)
    assert [line["reason"] for line in listed if line["person"] == "Rex"] == ["lost"]
    with pytest.raises(FlowError, match="exclude each other"):
        run("keys", "create", "Eva", "--unregistered", "--public", unregistered["public_key"])


def test_the_commands_show_and_adopt_a_policy(workspace: Workspace, run: Callable[..., Result]) -> None:
    path = workspace.root / "params.yaml"
    shown = json.loads(run("policy", "show", "--json").stdout)
    assert shown["policy"]["approvals"] == 1
    path.write_text(path.read_text().replace("approvals: 1", "approvals: 2"))
    before = run("policy", "show")
    assert "nse policy adopt" in before.stderr
    assert "is in force now" in run("policy", "adopt", "--by", "Ann").stdout
    assert "was in force already" in run("policy", "adopt", "--by", "Ann").stdout
    after = run("policy", "show")
    assert ("adopted by Ann" in after.stdout, "note" in after.stderr) == (True, False)
    assert json.loads(run("policy", "show", "--json").stdout)["policy"]["approvals"] == 2
