"""Whose key is whose: the registry of signing keys, and who may sign with which at which place of the log.

A key signs for its person from where the log registers it to where the log revokes it. Private keys are in `keys`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import keys
from ledger.errors import DecisionRefused
from ledger.notes import NoteError, VerifierKey
from ledger.placed import Placed, read_placed
from ledger.policy import same_person
from ledger.records import Decision, KeyEvent, PolicyAdopted, statement
from ledger.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key that is open."""

    key: VerifierKey
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def id(self) -> str:
        """What names the key in the ledger."""
        return keys.key_id(self.key)

    def sign(self, record: Decision | PolicyAdopted) -> str:
        """Return the signature over what a record states."""
        return keys.sign(statement(record), self.private)


@dataclass(slots=True)
class RegisteredKey:
    """A key of a person and the places of the log where it was registered and, if it was, revoked."""

    id: str
    person: str
    key: VerifierKey
    registered: KeyEvent
    place: int
    revoked: KeyEvent | None = None
    end: int | None = None


class Registry:
    """The keys of all persons."""

    def __init__(self, events: Iterable[Placed[KeyEvent]]) -> None:
        """Take the events of the log in order. What makes no sense among them has no effect and is in `problems`."""
        self.keys: dict[str, RegisteredKey] = {}
        self.problems: list[tuple[str, str]] = []
        """Id of the event, and what is wrong with it."""
        for event in events:
            problem = self._take(event.place, event.record)
            if problem:
                self.problems.append((event.record.id, problem))

    def of(self, person: str) -> list[RegisteredKey]:
        """Return every key that a person has had, oldest first."""
        return [known for known in self.keys.values() if same_person(known.person) == same_person(person)]

    def active(self, person: str) -> list[RegisteredKey]:
        """Return the keys that a person can sign with now."""
        return [known for known in self.of(person) if known.end is None]

    def objection(self, record: Decision | PolicyAdopted, person: str, place: int | None = None) -> str | None:
        """Return what is wrong with the signature of a record by `person` at a place of the log (None: its end)."""
        if record.key_id is None or record.signature is None:
            return "it is not signed"
        known = self.keys.get(record.key_id)
        if known is None or (place is not None and known.place > place):
            return f"key {record.key_id[:12]} was not registered before it"
        if same_person(known.person) != same_person(person):
            return f"it is signed with the key of {known.person}"
        if known.end is not None and (place is None or known.end < place):
            return f"key {known.id[:12]} of {known.person} was revoked before it"
        if not keys.check(statement(record), record.signature, known.key):
            return "its signature does not fit what it says"
        return None

    def _take(self, place: int, event: KeyEvent) -> str | None:
        known = self.keys.get(event.key_id)
        if event.action == "revoke":
            if known is None or known.end is not None:
                return "it revokes a key that was not in use"
            known.revoked, known.end = event, place
            return None
        if event.action != "register":
            return f"its action is {event.action}"
        if known is not None:
            return "it registers a key a second time"
        try:
            key = VerifierKey.parse(event.public_key)
        except NoteError as error:
            return error.problem
        if keys.key_id(key) != event.key_id:
            return "its key has another id"
        self.keys[event.key_id] = RegisteredKey(event.key_id, event.person, key, event, place)
        return None


def read_registry(work: UnitOfWork) -> Registry:
    """Return the registry as the ledger has it."""
    return Registry(read_placed(work.connection, KeyEvent))


def register(work: UnitOfWork, key: VerifierKey, *, person: str, by: str, reason: str, at: str) -> KeyEvent:
    """Record that a key is a person's from now on.

    Raises:
        DecisionRefused: It was registered before, for whomever; or the name is empty.
    """
    if not person.strip():
        raise DecisionRefused("a key belongs to a person", "name one")
    known = read_registry(work).keys.get(keys.key_id(key))
    if known is not None:
        state = "registered" if known.end is None else "revoked"
        raise DecisionRefused(f"this key is {state}, as one of {known.person}", "make another one")
    event = KeyEvent(
        action="register", key_id=keys.key_id(key), person=person, public_key=str(key), reason=reason, at=at, by=by
    )
    work.add_key_event(event)
    return event


def revoke(work: UnitOfWork, key_id: str, *, by: str, reason: str, at: str) -> KeyEvent:
    """Record that a key signs nothing from now on; what it signed before stays valid.

    Raises:
        DecisionRefused: There is no such key, it was revoked before, or no reason is given.
    """
    known = read_registry(work).keys.get(key_id)
    if known is None or known.end is not None:
        was = "was revoked before" if known else "is not registered"
        raise DecisionRefused(f"key {key_id[:12]} {was}", 'see "nse keys list"')
    if not reason.strip():
        raise DecisionRefused("the reason is empty", "say why the key is revoked")
    event = KeyEvent(
        action="revoke", key_id=key_id, person=known.person, public_key=str(known.key), reason=reason, at=at, by=by
    )
    work.add_key_event(event)
    return event
