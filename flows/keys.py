"""Keys: which private key a person signs with here, and who may register and revoke keys. `ledger.keys` holds the files."""

import os
from dataclasses import dataclass

from flows.errors import FlowError, Refused
from flows.workspace import Workspace
from ledger.adoption import policy_at, read_policies, rules_of
from ledger.checkpoints import log_key_name
from ledger.keys import KeyRing, default_folder, key_id
from ledger.notes import VerifierKey, key_name
from ledger.persons import RegisteredKey, Registry, Signer, read_registry, register, revoke
from ledger.policy import POLICY, Policy, same_person
from ledger.records import KeyEvent, Shown
from ledger.unit_of_work import UnitOfWork

PASSPHRASE = "NSE_KEY_PASSPHRASE"


@dataclass(frozen=True, slots=True)
class KeyLine(Shown):
    """A key of the ledger, as `nse keys list` shows it.

    Attributes:
        key_id: What names it in the ledger.
        person: Whose it is.
        registered_at: When.
        registered_by: On whose word.
        revoked_at: When it was revoked, if it was.
        reason: Why.
        here: Whether its private key is on this machine.
    """

    key_id: str
    person: str
    registered_at: str
    registered_by: str
    revoked_at: str | None
    reason: str
    here: bool


def ring() -> KeyRing:
    """The keys of whoever runs this: in the folder NSE_KEYS, or else among the person's settings."""
    return KeyRing(default_folder(os.environ))


def signer(workspace: Workspace, work: UnitOfWork, person: str, policy: Policy) -> tuple[Signer, str | None]:
    """The key that a person signs with here, and a note if it was made and registered just now.

    Raises:
        Refused: If the person has none on this machine, or the policy wants keys to be registered before.
        LedgerError: If the key's file cannot be used, e.g. for want of its passphrase.
    """
    registry, here = read_registry(work), ring()
    known = registry.of(person)
    for usable in registry.active(person):
        if here.has(usable.id):
            return _opened(here, usable.key), None
    folder = default_folder(os.environ)
    if registry.active(person):
        problem = f"the key of {person} ({known[-1].id[:12]}) is not on this machine, in {folder}"
        raise Refused(problem, "decide where it is, name its folder in NSE_KEYS, or see `nse keys create --help`")
    if known:
        raise Refused(f"the key of {person} was revoked", f"somebody else runs `nse keys create {person!r} --by NAME`")
    if policy.keys == "enrolled":
        raise Refused(
            f"{person} has no key, and the policy wants one before", f"see `nse keys create {person!r} --by NAME`"
        )
    key, made = _fresh(here, registry, person)
    register(work, key, person=person, by=person, reason="first use", at=workspace.now())
    note = f"{'made' if made else 'registered'} the key {key_id(key)[:12]} of {person}, in {folder}: keep a copy of it"
    return _opened(here, key), note


def log_signer(workspace: Workspace, work: UnitOfWork, *, by: str | None = None) -> Signer | None:
    """The ledger's own key, which signs its checkpoints and what the policy approves; None if it is not on this machine.

    With `by`, who adopts a policy, it is made and registered if the ledger has none.
    """
    here, registry = ring(), read_registry(work)
    for usable in registry.active(POLICY):
        if here.has(usable.id):
            return _opened(here, usable.key)
    if by is None:
        return None
    name = log_key_name(workspace.model)
    key = here.public(name) if here.has(name) else here.create(name, passphrase=_passphrase())
    register(work, key, person=POLICY, by=by, reason="approvals by policy", at=workspace.now())
    return _opened(here, key)


def create(workspace: Workspace, person: str, *, by: str, public: str | None = None) -> KeyEvent:
    """Registers a key of a person: one made here, or the one whose verifier key is `public`, made elsewhere.

    A person's first key needs nobody's word, unless the policy says that keys are enrolled. Whoever has a key gets another
    one with that key at hand; anybody else's word (`by`) counts with a key of theirs at hand.

    Raises:
        Refused: If that is not so.
        LedgerError: If a key cannot be made, opened or read, or was registered before.
    """
    here = ring()
    if same_person(person) == POLICY:
        raise FlowError(f"no person can be called {person}", "name a person")
    with workspace.ledger().begin() as work:
        registry = read_registry(work)
        policy = rules_of(policy_at(read_policies(work, workspace.model)))
        anybody = [known for known in registry.keys.values() if known.end is None and known.person != POLICY]
        free = not anybody or (not registry.of(person) and policy.keys == "first-use")
        vouching = [*registry.active(person), *registry.active(by)]
        if not free and not _at_hand(here, vouching):
            problem = f"a key of {person} needs the word of somebody whose key is on this machine"
            raise Refused(problem, "give --by NAME, a person who has a key here: see `nse keys list`")
        key = VerifierKey.parse(public) if public else _fresh(here, registry, person)[0]
        return register(work, key, person=person, by=by, reason="nse keys create", at=workspace.now())


def make(person: str) -> VerifierKey:
    """Makes a key here and registers it nowhere: its verifier key goes to who does."""
    return _fresh(ring(), Registry([]), person, reuse=False)[0]


def revoke_keys(workspace: Workspace, name: str, *, by: str, reason: str) -> list[KeyEvent]:
    """Revokes a key (digits of its id), or all keys of a person: by that person, or whose own key is on this machine.

    Raises:
        Refused: If it is neither, or there is no such key in use.
        DecisionRefused: If no reason is given.
    """
    with workspace.ledger().begin() as work:
        registry = read_registry(work)
        in_use = [known for known in registry.keys.values() if known.end is None]
        named = [k for k in in_use if same_person(k.person) == same_person(name)]
        named = named or [k for k in in_use if len(name) >= 6 and k.id.startswith(name.lower())]
        if not named:
            raise Refused(f"{name!r} names no key in use, and nobody who has one", "see `nse keys list`")
        others = [known for known in named if same_person(known.person) != same_person(by)]
        if others and not _at_hand(ring(), registry.active(by)):
            problem = f"only {others[0].person}, or somebody whose own key is on this machine, can revoke this key"
            raise Refused(problem, "give --by NAME")
        return [revoke(work, known.id, by=by, reason=reason, at=workspace.now()) for known in named]


def listed(workspace: Workspace) -> list[KeyLine]:
    """Every key of the ledger, oldest first."""
    here = ring()
    with workspace.ledger().read() as work:
        known = read_registry(work).keys.values()
    return [
        KeyLine(
            key_id=k.id,
            person=k.person,
            registered_at=k.registered.at,
            registered_by=k.registered.by,
            revoked_at=k.revoked.at if k.revoked else None,
            reason=k.revoked.reason if k.revoked else k.registered.reason,
            here=here.has(k.id),
        )
        for k in known
    ]


def _at_hand(here: KeyRing, known: list[RegisteredKey]) -> bool:
    """Whether one of these keys is here and can be opened."""
    usable = [k for k in known if here.has(k.id)]
    if usable:
        _opened(here, usable[0].key)
    return bool(usable)


def _fresh(here: KeyRing, registry: Registry, person: str, *, reuse: bool = True) -> tuple[VerifierKey, bool]:
    """A key for a person that this ledger has not seen, and whether it was made just now.

    One of the same name that is here already was made for another ledger, or a moment ago for a decision that was refused.
    """
    number, base = 1, key_name(person)
    while True:
        name = base if number == 1 else f"{base}-{number}"
        if not here.has(name):
            return here.create(name, passphrase=_passphrase()), True
        if reuse and key_id(here.public(name)) not in registry.keys:
            return here.public(name), False
        number += 1


def _opened(here: KeyRing, key: VerifierKey) -> Signer:
    return Signer(key, here.private(key, _passphrase()))


def _passphrase() -> str | None:
    return os.environ.get(PASSPHRASE) or None
