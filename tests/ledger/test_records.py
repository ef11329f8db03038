"""The identity of records."""

import math
from dataclasses import replace

import numpy
import pytest

from ledger.errors import LedgerError
from ledger.records import CaseResult, Changeset, Decision, DeltaChange, Metric, canonical_json, digest_of


def test_the_id_of_a_record_never_changes_between_releases() -> None:
    # A golden value: if this fails, every ledger in the world no longer verifies.
    decision = Decision(
        changeset_id="c1", verdict="approve", reviewer="Zoë", reason="ok", decided_at="2026-11-21T02:45:34Z"
    )
    assert canonical_json({"Decision": replace(decision, id="x")}) == (
        '{"Decision":{"changeset_id":"c1","decided_at":"2026-11-21T02:45:34Z","id":"x",'
        '"reason":"ok","reviewer":"Zoë","verdict":"approve"}}'
    )
    assert decision.id == "0b924b5f85a06356cd8a77d10599ac3cd475f8c15a179aaef98123b7b54c7473"


def test_canonical_json_sorts_keys_and_writes_floats_as_their_repr_and_leaves_none_out() -> None:
    value = {"b": 0.1, "a": (1, True, None), "c": None, "d": float("inf"), "ž": "€"}
    assert canonical_json(value) == '{"a":[1,true,null],"b":"0.1","d":"inf","ž":"€"}'


def test_a_number_has_one_digest_whatever_type_it_came_in() -> None:
    ways = [Metric("x", "head", 1), Metric("x", "head", 1.0), Metric("x", "head", numpy.float64(1.0))]
    assert len({digest_of(metric) for metric in ways}) == 1
    assert digest_of(Metric("x", "head", -0.0)) == digest_of(Metric("x", "head", 0))


def test_when_and_where_a_row_was_filed_is_not_in_the_id_of_a_correction(scenario) -> None:
    one = scenario.correction().salted(SALT)
    assert scenario.correction(file_name="other.csv", line=99).salted(SALT).id == one.id
    assert scenario.correction(reason="another").salted(SALT).id != one.id


SALT = "5a" * 16
IDENTITY = ["model", "subject", "relation", "prompt_template", "target_new", "target_true"]


@pytest.mark.parametrize("name", [*IDENTITY, "source", "submitter", "reason", "effective_date", "supersedes"])
def test_every_other_field_of_a_correction_is_in_its_id(scenario, name: str) -> None:
    one = scenario.correction()
    assert replace(one, **{name: "changed"}).salted(SALT).id != one.salted(SALT).id
    assert replace(one, **{name: "changed"}).text_digest() != one.text_digest()


def test_the_number_is_not_in_the_id_of_a_changeset_and_the_order_of_its_deltas_is(scenario) -> None:
    one: Changeset = scenario.changeset(scenario.file())
    assert replace(one, number=7).digest() == one.id
    other = DeltaChange("d2" * 32, "two")
    two = replace(one, id="", changes=(*one.changes, other))
    assert replace(two, id="", changes=(other, *one.changes)).id not in (two.id, one.id)


def test_what_is_not_a_number_is_shown_as_null() -> None:
    result = CaseResult("c1", "skipped", math.nan, math.inf)
    assert result.to_dict()["residual_before"] is None
    assert result.to_dict()["residual_after"] is None


def test_half_of_a_surrogate_pair_is_refused_with_one_line(scenario) -> None:
    with pytest.raises(LedgerError, match="surrogate"):
        scenario.file(subject="\ud800")
