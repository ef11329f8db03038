"""Consolidation: one delta in place of all, the same one whatever way the corrections came."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.apply import apply
from flows.audit import audit
from flows.consolidate import plan_consolidation
from flows.decide import decide
from flows.errors import Refused
from flows.session import Session
from flows.workspace import Workspace
from ledger.erasing import revealing
from ledger.errors import DecisionRefused
from ledger.records import Changeset, Erasure
from nse.architecture import load_model
from tests.flows.rounds import (
    CAPITAL,
    FIRST,
    SECOND,
    THIRD,
    Spaces,
    head,
    history,
    identity,
    in_force,
    night,
    opened,
    planned,
    spaces,
    take,
    version,
)

Nse = Callable[..., Any]
__all__ = ["history", "spaces"]
LATER = (f"Fara,capital,{CAPITAL},Paris,Delhi,gazette,Sue,moved,,",)


def consolidated(workspace: Workspace) -> Changeset:
    """Plans a consolidation."""
    made = plan_consolidation(Session(workspace), by="Pia").changeset
    assert made is not None
    return made


def active(workspace: Workspace) -> list[tuple[str, int]]:
    """The deltas in force: each with the number of corrections that are dropped from it."""
    with workspace.ledger().read() as work:
        found = work.active(workspace.model, work.head(workspace.model).position)
    return [(delta.sha256, len(delta.dropped)) for delta in found]


@pytest.fixture
def another(spaces: Spaces, tmp_path: Path) -> Callable[[Sequence[Sequence[str]]], Workspace]:
    """Makes a workspace with a history of its own, which knows the z's that the others know.

    A z that is computed in another batch rounds otherwise: the cache, which is all that they share, goes along.
    """
    made = iter(range(9))

    def make(nights: Sequence[Sequence[str]]) -> Workspace:
        root = spaces.bare.root.with_name(f"other-{next(made)}")
        shutil.copytree(spaces.bare.root, root, symlinks=True)
        space = opened(root, 4)
        shutil.copytree(spaces.all_three.state / "values", space.state / "values", dirs_exist_ok=True)
        for rows in nights:
            night(space, rows)
        return space

    return make


def others(*, without: str = "") -> list[list[str]]:
    """What is in force after the three rounds, less a subject, in other rounds and another order."""
    rows = [row.replace(",yes", ",") for row in (*reversed(THIRD), *reversed(SECOND), FIRST[1])]
    left = [row for row in rows if not (without and row.startswith(without))]
    return [left[:1], left[1:4], left[4:]]


def test_three_histories_of_the_same_corrections_come_to_the_same_weights(
    spaces: Spaces, another: Callable[..., Workspace]
) -> None:
    three, shuffled, whole = spaces.all_three, another(others()), another([[row for rows in others() for row in rows]])
    assert len({head(space) for space in (three, shuffled, whole)}) == 3  # the streams do not
    versions = {take(space, consolidated(space)) for space in (three, shuffled)}
    assert versions == {head(whole)}  # which is one round, and has nothing to consolidate
    assert in_force(three) == in_force(shuffled) == in_force(whole)


def test_one_delta_stands_for_all_and_the_ledger_says_so(spaces: Spaces, nse: Nse) -> None:
    space = spaces.all_three
    before, made = active(space), consolidated(space)
    assert (made.kind, made.mode, made.reverted) == ("consolidate", None, ())
    assert made.reason == "consolidation of 6 corrections"
    assert [change.removed for change in made.changes] == [True, True, True, False]
    new = made.changes[-1].sha256
    assert {result.delta for result in made.results} == {new}
    assert identity(space, "Alba", "Paris") not in made.correction_ids  # it is superseded
    assert {"efficacy", "retention", "untouched"} <= {case.kind for case in made.cases}
    assert {gate.name for gate in made.gates} == {"efficacy", "delta_norm", "retention"}
    decide(space, made.id, "approve", reviewer="Sue", reason="checked")  # who filed some: their force is what it was
    apply(Session(space), made.id, by="Sue")
    assert active(space) == [(new, 0)]
    assert audit(Session(space)) == []
    shown = nse("show", "4", "--json").json
    stands_for = [(one["sha256"], one["changeset"]) for one in shown["stands_for"]]
    assert stands_for == [(sha256, number) for number, (sha256, _) in enumerate(before, 1)]
    assert "stands for 3 deltas" in nse("show", "4").out
    assert "one delta that stands for 3" in nse("show", "4", "--markdown").out
    assert "consolidate of 6 corrections, gates passed" in nse("log").out
    blamed = nse("blame", "Borea", "--json").json
    assert [(story["status"], story["changeset"]) for story in blamed] == [("active", 1), ("active", 3)]
    assert nse("blame", "Alba", "--json").json[0]["status"] == "superseded"
    found = nse("diff", "v3", "v4", "--json").json
    assert (found["came_in_force"], found["went_out_of_force"]) == ([], [])
    assert (len(found["deltas_added"]), len(found["deltas_removed"])) == (1, 3)
    assert nse("touched", "--layer", "0", "--json").json["total"] == 6  # each has columns of its own


def test_nothing_is_left_to_consolidate_after_it_nor_where_nothing_is_in_force(spaces: Spaces, nse: Nse) -> None:
    take(spaces.all_three, consolidated(spaces.all_three))
    again = nse("consolidate", "--by", "Pia")
    assert (again.code, "is one delta already" in again.error) == (1, True)
    empty = nse("consolidate", "--by", "Pia", "--workspace", spaces.bare.root)
    assert (empty.code, "no correction is in force" in empty.error) == (1, True)


def test_other_settings_are_something_to_consolidate_and_what_fails_is_not_tried_twice(spaces: Spaces) -> None:
    space = spaces.all_three
    take(space, consolidated(space))
    hparams = space.path(space.params.method.hparams)
    hparams.write_text(hparams.read_text().replace('"mom2_update_weight": 1', '"mom2_update_weight": 9'))
    suite = space.path(space.params.suite)
    suite.write_text(suite.read_text().replace('"efficacy": ">= 0.0"', '"efficacy": ">= 1.1"'))
    failed = consolidated(space)
    assert (failed.candidate_version == head(space), failed.gate_passed) == (False, False)
    again = plan_consolidation(Session(space), by="Pia")
    assert (again.changeset and again.changeset.number, again.repeated) == (failed.number, True)


def test_what_it_costs_is_told_before(spaces: Spaces, nse: Nse) -> None:
    told = nse("consolidate", "--dry-run", "--json").json
    assert told["rounds"] == [{"changeset": None, "corrections": 6}]
    assert (told["goes_out"], told["comes_back"], told["cost"]["values"]) == ([], [], 0)
    assert "1 round to solve, of 6 corrections" in nse("consolidate", "--dry-run").out
    assert nse("status", "--json").json["waiting"] == []


def test_its_revert_brings_the_earlier_deltas_back_and_the_weights_to_the_bit(spaces: Spaces) -> None:
    space = spaces.all_three
    before, whole = active(space), take(space, consolidated(space))
    made = planned(space, "#4")
    assert made.results == ()
    assert take(space, made) == version(space, 3)
    assert active(space) == before
    assert take(space, consolidated(space)) == whole
    assert take(space, planned(space, "--to v3")) == version(space, 3)


def test_it_can_be_reverted_after_a_later_round(spaces: Spaces) -> None:
    space = spaces.all_three
    before, beliefs = active(space), in_force(space)
    take(space, consolidated(space))
    night(space, LATER)
    take(space, planned(space, "#4"))
    assert active(space)[:3] == before
    assert in_force(space) == {*beliefs, ("Fara", "Paris")}


def test_one_correction_is_dropped_from_it_alone(spaces: Spaces) -> None:
    space = spaces.all_three
    take(space, consolidated(space))
    made = planned(space, identity(space, "Cyra", "Accra"))
    assert made.results == ()
    take(space, made)
    assert [dropped for _, dropped in active(space)] == [1]
    assert ("Cyra", "Accra") not in in_force(space)
    assert len(in_force(space)) == 5


def test_a_revert_by_replay_or_by_consolidating_again_is_exact_deletion(
    spaces: Spaces, another: Callable[..., Workspace]
) -> None:
    space, never = spaces.all_three, another(others(without="Cyra"))
    without = take(never, consolidated(never))
    take(space, consolidated(space))
    target = identity(space, "Cyra", "Accra")
    assert take(space, planned(space, target, "replay")) == without
    take(space, planned(space, "--to v4"))
    dropped = take(space, planned(space, target, "drop"))
    assert dropped != without
    assert take(space, consolidated(space)) == without


@pytest.mark.parametrize("mode", ["drop", "replay"])
def test_what_was_superseded_when_it_was_made_comes_back(
    mode: Any, spaces: Spaces, another: Callable[..., Workspace]
) -> None:
    space = spaces.all_three
    take(space, consolidated(space))
    made = planned(space, identity(space, "Alba", "Berne"), mode)
    assert set(made.reverted) == {identity(space, "Alba", "Berne"), identity(space, "Alba", "Paris")}
    found = take(space, made)
    assert ("Alba", "Paris") in in_force(space)
    if mode == "replay":
        never = another([*others(without="Alba"), FIRST[:1]])
        assert found == take(never, consolidated(never))


def test_what_was_superseded_comes_back_in_a_round_of_its_own_where_nothing_else_is_left(
    spaces: Spaces, another: Callable[..., Workspace]
) -> None:
    space = another([FIRST[:1], THIRD[2:]])
    take(space, consolidated(space))
    night(space, LATER)
    never = another([FIRST[:1], LATER])
    assert take(space, planned(space, identity(space, "Alba", "Berne"), "replay")) == head(never)


def test_what_is_reverted_while_it_is_superseded_does_not_come_back_with_the_end_of_its_successor(
    spaces: Spaces, another: Callable[..., Workspace]
) -> None:
    space = another([FIRST[:1], THIRD[2:]])
    whole = take(space, consolidated(space))
    made = planned(space, "#1")
    assert (made.changes, made.reverted, made.candidate_version) == ((), (), whole)  # no weights know of it any more
    assert made.provenance["reverted while set aside"] == identity(space, "Alba", "Paris")
    take(space, made)
    with pytest.raises(Refused, match="#1 is not in force"):
        planned(space, "#1")
    assert take(space, planned(space, "#2")) == space.params.model.digest
    take(space, planned(space, "#4"))  # the revert of the first is a mistake: it comes back
    assert in_force(space) == {("Alba", "Paris")}
    take(space, planned(space, "#5"))
    assert in_force(space) == {("Alba", "Berne")}
    assert audit(Session(space)) == []


def test_what_was_erased_does_not_come_back_with_the_earlier_deltas(spaces: Spaces) -> None:
    space = spaces.all_three
    take(space, consolidated(space))
    old = identity(space, "Alba", "Paris")
    with space.ledger().begin() as work:
        assert not any(
            one.in_use for one in revealing(work, work.correction(old))
        )  # the consolidation holds no column of it
        work.erase(Erasure(ref=old, reason="asked for", erased_by="Ann", erased_at=space.now()))
    take(space, planned(space, "#4"))
    assert len(in_force(space)) == 6
    assert audit(Session(space)) == []


def test_a_correction_that_cannot_be_written_in_one_shot_is_told_and_goes_out_of_force(
    spaces: Spaces, nse: Nse
) -> None:
    space = spaces.all_three
    residuals = {r.correction_id: r.residual_before for r in consolidated(space).results}
    out, bound = max(residuals.items(), key=lambda item: item[1])
    hparams = space.path(space.params.method.hparams)
    hparams.write_text(hparams.read_text().replace("}", f', "upper_bound": {bound}}}'))
    made = consolidated(space)
    assert made.reverted == (out,)
    assert [result.correction_id for result in made.results if result.status == "skipped"] == [out]
    asked = {case.case_id for case in made.cases if case.kind == "efficacy"}
    assert out in asked
    with space.ledger().read() as work:
        lost = work.correction(out)
    with pytest.raises(DecisionRefused, match=f"{lost.submitter} filed one of its corrections"):
        decide(space, made.id, "approve", reviewer=lost.submitter, reason="fine")
    take(space, made)
    told = {s["correction"]["id"]: s["status"] for s in nse("blame", lost.subject, "--json").json}
    assert told[out] == "skipped"
    assert lost.target_new not in {target for subject, target in in_force(space) if subject == lost.subject}
    take(space, planned(space, f"#{made.number}"))
    assert len(in_force(space)) == 6


def test_a_consolidated_version_is_asked_and_exported(spaces: Spaces, nse: Nse, tmp_path: Path) -> None:
    space = spaces.all_three
    take(space, consolidated(space))
    for at, position in (("head", 4), ("v3", 3), ("base", 0)):
        told = nse("ask", "The capital of Alba is", "--at", at, "--json")
        assert (told.code, told.json["version"]["position"]) == (0, position)
    merged = nse("export", "merged", tmp_path / "merged", "--json")
    assert (merged.code, load_model(tmp_path / "merged").base_digest) == (0, head(space))
    adapter = nse("export", "lora", tmp_path / "adapter", "--json")
    assert adapter.json["largest_logit_difference"] < 1e-4
    assert [delta["sha256"] for delta in adapter.json["deltas"]] == [active(space)[0][0]]


def test_after_so_many_rounds_a_night_proposes_it_once_and_goes_on(
    edited: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    params = edited.root / "params.yaml"
    params.write_text(params.read_text().replace("consolidate_every: 0", "consolidate_every: 2"))

    def night(number: int, *rows: tuple[str, str, str], taken: bool = True) -> str:
        if rows:
            assert nse("ingest", corrections(*rows, name=f"{number}.csv")).code == 0
        ran = nse("plan", "--by", "Pia", "--json")
        assert ran.code == 0, ran.error
        kind: str = ran.json["changeset"]["kind"]
        if taken:
            nse("approve", number, "--by", "Rex", "--reason", "checked")
            assert nse("apply", number, "--by", "Rex").code == 0
        return kind

    assert night(2, ("Cyra", "Accra", "Lima")) == "edit"
    assert night(3, ("Dorn", "Berne", "Cairo"), taken=False) == "consolidate"
    assert night(4) == "edit"  # nobody has decided: the nights go on, and it is stale then
    assert night(5, taken=False) == "consolidate"
    assert nse("reject", "5", "--by", "Rex", "--reason", "not now").code == 0
    assert night(6, ("Elis", "Tokyo", "Quito")) == "edit"
    ran = nse("consolidate", "--by", "Pia", "--json")  # nobody has to wait for the night
    assert (ran.code, ran.json["changeset"]["kind"]) == (0, "consolidate")
    assert nse("consolidate", "--by", "Pia", "--json").json["changeset"]["number"] == 7  # it waits already
    nse("approve", "7", "--by", "Rex", "--reason", "checked")
    assert nse("apply", "7", "--by", "Rex").code == 0
    assert nse("plan", "--by", "Pia", "--json").json == {"changeset": None}
    assert nse("verify").code == 0
