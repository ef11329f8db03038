"""Commands about signing keys: nse keys create, list, revoke."""

from typing import Annotated

import typer

from flows.commands.output import ERR, ByOption, JsonOption, WorkspaceOption, emit, say, table


def create(
    person: Annotated[str | None, typer.Argument(help="Whose key; default: git's user.name and user.email.")] = None,
    by: ByOption = None,
    public: Annotated[str | None, typer.Option(help="Register this verifier key, which was made elsewhere.")] = None,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Only make the key, and print its verifier key.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a signing key for a person and register it in the ledger.

    Private keys are in NSE_KEYS, or else among your settings, encrypted with NSE_KEY_PASSPHRASE if that is set. A second key,
    and every key where the policy says `keys: enrolled`, needs --by somebody whose own key is on this machine.
    """
    import os

    from flows.errors import FlowError
    from flows.keys import create as register
    from flows.keys import make
    from flows.workspace import open_workspace
    from ledger.keys import default_folder, key_id

    opened = open_workspace(workspace)
    whose = person or opened.person(None)
    if unregistered:
        if public:
            raise FlowError("--public and --unregistered exclude each other", "give one of them")
        key = make(whose)
        emit({"person": whose, "key_id": key_id(key), "public_key": str(key)}) if as_json else say(str(key))
        return
    event = register(opened, whose, by=opened.person(by or whose), public=public)
    if as_json:
        emit(event.to_dict())
        return
    say(f"key {event.key_id[:12]} of {event.person} is registered: {event.public_key}")
    if not public:
        ERR.print(f"its private key is in {default_folder(os.environ)}: keep a copy of it", markup=False)


def list_keys(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """List the keys of the ledger: whose, since when, whether revoked, whether the private key is on this machine."""
    from flows.keys import listed
    from flows.workspace import open_workspace

    found = listed(open_workspace(workspace))
    if as_json:
        emit([line.to_dict() for line in found])
        return
    rows = [
        (
            k.key_id[:12],
            k.person,
            k.registered_at,
            k.registered_by,
            k.revoked_at or "",
            "yes" if k.here else "",
            k.reason,
        )
        for k in found
    ]
    table("keys", ("id", "person", "registered", "by", "revoked", "here", "reason"), rows)


def revoke(
    name: Annotated[str, typer.Argument(help="A key's id (at least 6 digits), or a person: all keys of that person.")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why.")] = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: what it signed stays valid, what it signs from now on is not."""
    from flows.keys import revoke_keys
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    events = revoke_keys(opened, name, by=opened.person(by), reason=reason)
    if as_json:
        emit([event.to_dict() for event in events])
        return
    for event in events:
        say(f"key {event.key_id[:12]} of {event.person} is revoked")
