"""Whose key is whose, by the place in the log."""

from dataclasses import replace

import pytest

from ledger import keys, persons
from ledger.errors import DecisionRefused
from ledger.persons import Registry, read_registry
from ledger.placed import read_placed
from ledger.records import KeyEvent
from tests.ledger.cast import Cast, cast, new_signer

__all__ = ["cast"]


def events(cast: Cast) -> list[KeyEvent]:
    with cast.ledger.read() as work:
        return work.key_events()


def registry(cast: Cast) -> Registry:
    with cast.ledger.read() as work:
        return read_registry(work)


def test_a_registered_key_is_a_persons_until_it_is_revoked(cast: Cast) -> None:
    signer = cast.enrol("Bruno  Rossi")
    found = registry(cast)
    assert [known.id for known in found.active("bruno rossi")] == [signer.id]
    assert found.keys[signer.id].key == signer.key
    cast.revoke("Bruno  Rossi")
    found = registry(cast)
    assert found.active("Bruno Rossi") == []
    assert [known.revoked.reason for known in found.of("Bruno Rossi") if known.revoked] == ["lost"]
    assert found.problems == []


def test_a_person_can_have_several_keys(cast: Cast) -> None:
    old = cast.enrol("bruno")
    new = cast.enrol("bruno")
    assert [known.id for known in registry(cast).active("bruno")] == [old.id, new.id]


def test_a_key_is_registered_once_for_whomever_and_never_again(cast: Cast) -> None:
    signer = cast.enrol("bruno")
    for person in ("bruno", "carla"):
        with pytest.raises(DecisionRefused, match="registered, as one of bruno"), cast.ledger.begin() as work:
            cast.register(work, signer, person)
    cast.revoke("bruno")
    with pytest.raises(DecisionRefused, match="revoked, as one of bruno"), cast.ledger.begin() as work:
        cast.register(work, signer, "bruno")
    assert len(events(cast)) == 2


@pytest.mark.parametrize("person", ["", "  "])
def test_a_key_of_nobody_is_refused(cast: Cast, person: str) -> None:
    with pytest.raises(DecisionRefused, match="belongs to a person"), cast.ledger.begin() as work:
        cast.register(work, new_signer("x"), person)


def test_a_key_that_is_not_in_use_cannot_be_revoked_and_a_reason_is_needed(cast: Cast) -> None:
    signer = cast.enrol("bruno")
    with pytest.raises(DecisionRefused, match="reason is empty"), cast.ledger.begin() as work:
        persons.revoke(work, signer.id, by="ann", reason=" ", at=cast.now())
    cast.revoke("bruno")
    with pytest.raises(DecisionRefused, match="was revoked before"):
        cast.revoke("bruno")
    with pytest.raises(DecisionRefused, match="is not registered"), cast.ledger.begin() as work:
        persons.revoke(work, "0" * 64, by="ann", reason="lost", at=cast.now())


def test_events_that_make_no_sense_have_no_effect_and_are_named(cast: Cast) -> None:
    signer = cast.enrol("bruno")
    with cast.ledger.read() as work:
        (good,) = read_placed(work.connection, KeyEvent)
    event = good.record
    other = new_signer("carla").key
    wrong = [
        (replace(event, person="carla"), "second time"),
        (replace(event, key_id="0" * 64), "another id"),
        (replace(event, key_id="1" * 64, public_key="nonsense"), "no Ed25519 verifier key"),
        (replace(event, key_id=keys.key_id(other), action="revoke"), "not in use"),
        (replace(event, key_id=keys.key_id(other), public_key=str(other), action="lend"), "its action is lend"),  # type: ignore[arg-type]
    ]
    found = Registry([good, *(replace(good, place=good.place + 1 + i, record=w) for i, (w, _) in enumerate(wrong))])
    assert found.keys.keys() == {signer.id}
    assert [known.person for known in found.active("bruno")] == ["bruno"]
    assert len(found.problems) == len(wrong)
    for (_, expected), (_, problem) in zip(wrong, found.problems, strict=True):
        assert expected in problem
