"""Writing and reading records, and moving the head."""

import math
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.errors import HeadMoved, LedgerError
from ledger.records import ActiveDelta, CaseResult, Decision, Metric
from ledger.unit_of_work import open_ledger

MODEL = "demo"


def test_a_block_that_fails_writes_nothing(scenario) -> None:
    def fail() -> None:
        with scenario.ledger.begin() as work:
            work.add_correction(scenario.correction())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with scenario.ledger.read() as work:
        assert work.corrections(MODEL) == []


def test_a_write_in_a_block_that_reads_is_refused_with_one_line(scenario) -> None:
    with pytest.raises(LedgerError, match="readonly") as caught, scenario.ledger.read() as work:
        work.add_correction(scenario.correction())
    assert "\n" not in str(caught.value)


def test_the_same_row_filed_twice_is_one_correction(scenario) -> None:
    first = scenario.file()
    with scenario.ledger.begin() as work:
        again = work.add_correction(scenario.correction(file_name="again.csv"))
        assert (again.record, again.new) == (first, False)
        assert work.corrections(MODEL) == [first]
        assert work.correction(first.id[:6].upper()) == first


def test_rows_filed_together_are_each_filed_once_and_wait_in_their_order(scenario) -> None:
    known = scenario.file("Chad", "franc")
    rows = [scenario.correction(subject, "euro") for subject in ("Croatia", "Bulgaria", "Croatia")]
    with scenario.ledger.begin() as work:
        filed = work.file([*rows, scenario.correction("Chad", "franc")])
    assert [f.new for f in filed] == [True, True, False, False]
    assert filed[2].record == filed[0].record
    assert filed[3].record == known
    with scenario.ledger.read() as work:
        assert work.waiting(MODEL) == [known.id, filed[0].record.id, filed[1].record.id]
        assert [c.subject for c in work.corrections(MODEL, subjects=["BULGARIA ", "chad"])] == ["Chad", "Bulgaria"]


def test_what_was_applied_or_rejected_waits_no_more_and_neither_does_what_it_supersedes(scenario) -> None:
    first = scenario.file()
    second, third = scenario.file(target="lev", supersedes=first.id), scenario.file("Chad", "franc")
    scenario.write(second)
    scenario.reject(scenario.propose(third))
    last = scenario.file("Mali", "franc")
    with scenario.ledger.read() as work:
        assert work.waiting(MODEL) == [last.id]


def test_two_filings_of_one_text_in_two_ledgers_have_ids_that_nobody_can_guess(scenario) -> None:
    correction = scenario.correction()
    assert correction.id == ""
    one, two = correction.salted("00" * 16), correction.salted("11" * 16)
    assert one.id != two.id
    assert one.text_digest() == two.text_digest()
    assert one.digest() == one.id


def test_the_same_bad_row_is_quarantined_once(scenario) -> None:
    row = scenario.quarantine()
    with scenario.ledger.begin() as work:
        again = replace(row, id="", salt="", text_hash="", quarantined_at=scenario.now())
        assert not work.add_quarantined(again).new
        assert work.quarantined() == [row]


def test_a_changeset_comes_back_as_it_was_written(scenario) -> None:
    written = scenario.propose(scenario.file(), scenario.file("Bulgaria", "lev"))
    with scenario.ledger.read() as work:
        assert work.changeset(written.id) == written
        assert written.digest() == written.id


def test_numbers_that_are_not_finite_come_back_and_keep_the_id(scenario) -> None:
    correction = scenario.file()
    written = scenario.propose(
        correction,
        results=(CaseResult(correction.id, "skipped", math.nan, math.inf),),
        metrics=(Metric("perplexity", "candidate", math.nan), Metric("loss", "candidate", math.inf)),
    )
    with scenario.ledger.read() as work:
        read = work.changeset(written.id)
    assert math.isnan(read.results[0].residual_before)
    assert [read.results[0].residual_after, read.metrics[1].value] == [math.inf, math.inf]
    assert read.digest() == written.id


def test_adding_a_changeset_again_returns_it_with_the_number_it_has(scenario) -> None:
    correction = scenario.file()
    with scenario.ledger.begin() as work:
        one = work.add_changeset(scenario.changeset(correction))
        assert one.number == 1
        assert work.add_changeset(scenario.changeset(correction)).number == 2
        assert work.add_changeset(one).number == 1


def test_a_changeset_is_found_by_number_and_by_prefix(scenario) -> None:
    written = scenario.propose(scenario.file())
    with scenario.ledger.read() as work:
        for ref in ("#1", "1", written.id[:6], written.id.upper()):
            assert work.changeset(ref) == written


@pytest.mark.parametrize("ref", ["#2", "2", "abc", "", "#", "zzzzzz", "0" * 64, "#" + "9" * 30, "²", "%%%%%%"])
def test_a_name_of_no_changeset_is_refused_with_one_line(scenario, ref: str) -> None:
    scenario.propose(scenario.file())
    with scenario.ledger.read() as work, pytest.raises(LedgerError) as caught:
        work.changeset(ref)
    assert "\n" not in str(caught.value)


def test_a_record_with_the_id_of_another_is_refused(scenario) -> None:
    decision = Decision(changeset_id="c1", verdict="approve", reviewer="bruno", reason="ok", decided_at=scenario.now())
    with scenario.ledger.begin() as work, pytest.raises(LedgerError, match="id of its content"):
        work.add_decision(replace(decision, reviewer="ana"))


def test_a_time_that_is_not_utc_in_seconds_is_refused(scenario) -> None:
    for time in ("2026-11-21", "2026-11-21T02:45:34+01:00", "2026-11-21T02:45:34.5Z", ""):
        with pytest.raises(LedgerError, match="not a UTC time"):
            scenario.file(filed_at=time)


def test_superseding_a_correction_that_is_not_there_is_refused(scenario) -> None:
    with pytest.raises(LedgerError, match="line 2: supersedes"):
        scenario.file(supersedes="0" * 64)
    other = scenario.file(model="another")
    with pytest.raises(LedgerError, match="no correction of demo"):
        scenario.file(supersedes=other.id)


def test_a_changeset_with_a_correction_that_was_not_filed_is_refused(scenario) -> None:
    with pytest.raises(LedgerError, match="file it first"):
        scenario.propose(scenario.correction().salted("00" * 16))
    with pytest.raises(LedgerError, match="file it first"):
        scenario.propose(active=(ActiveDelta("d1" * 32, "p", ("0" * 64,)),))


def test_a_replay_with_several_new_deltas_must_say_which_holds_which_correction(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    deltas = (ActiveDelta("d1" * 32, "one"), ActiveDelta("d2" * 32, "two"))
    with pytest.raises(LedgerError, match="which of its deltas"):
        scenario.propose(active=deltas, results=(CaseResult(one.id, "edited", 9, 1, "d3" * 32),))
    results = (CaseResult(one.id, "edited", 9, 1, "d1" * 32), CaseResult(two.id, "edited", 9, 1, "d2" * 32))
    assert scenario.propose(active=deltas, results=results).number == 1


def test_starting_a_model_twice_from_the_same_base_is_no_change_and_from_another_is_refused(scenario) -> None:
    with scenario.ledger.begin() as work:
        head = work.head(MODEL)
        assert work.start(MODEL, head.version, scenario.now(), "somebody") == head
        with pytest.raises(LedgerError, match="started from ba5eba5eba5e"):
            work.start(MODEL, "0" * 64, scenario.now(), "somebody")
        assert work.heads(MODEL) == [head]


def test_a_model_that_was_not_started_has_no_head(scenario) -> None:
    with scenario.ledger.read() as work, pytest.raises(LedgerError, match="no model 'other': run \"nse init\""):
        work.head("other")


def test_the_head_moves_to_what_an_approved_changeset_leads_to(scenario) -> None:
    changeset = scenario.write(scenario.file())
    with scenario.ledger.read() as work:
        head = work.head(MODEL)
    assert (head.position, head.version, head.changeset_id) == (1, changeset.candidate_version, changeset.id)


def test_the_head_does_not_move_to_another_version_than_the_changeset_leads_to(scenario) -> None:
    changeset = scenario.propose(scenario.file())
    with pytest.raises(LedgerError, match="does not lead"):
        scenario.apply(replace(changeset, candidate_version="0" * 64))
    assert scenario.apply(changeset).position == 1


def test_a_head_that_moved_meanwhile_is_not_moved_again(scenario) -> None:
    one, two = scenario.propose(scenario.file()), scenario.propose(scenario.file("Bulgaria", "lev"))
    for changeset in (one, two):
        scenario.approve(changeset)
    with scenario.ledger.read() as work:
        expected = work.head(MODEL)
    scenario.apply(one)
    message = r"v1 .* no longer v0: plan the changeset again"
    with scenario.ledger.begin() as work, pytest.raises(HeadMoved, match=message):
        work.move_head(
            MODEL,
            expected=expected,
            version=two.candidate_version,
            changeset_id=two.id,
            at=scenario.now(),
            by="x",
        )


def test_of_many_threads_that_move_the_same_head_exactly_one_wins(scenario) -> None:
    changesets = [scenario.propose(scenario.file(f"Country {n}")) for n in range(6)]
    for changeset in changesets:
        scenario.approve(changeset)
    with scenario.ledger.read() as work:
        expected = work.head(MODEL)
    barrier = threading.Barrier(len(changesets))
    outcomes: list[str] = []

    def move(number: int) -> None:
        barrier.wait()
        try:
            with scenario.ledger.begin() as work:
                work.move_head(
                    MODEL,
                    expected=expected,
                    version=changesets[number].candidate_version,
                    changeset_id=changesets[number].id,
                    at=expected.moved_at,
                    by=f"thread {number}",
                )
            outcomes.append("won")
        except HeadMoved:
            outcomes.append("lost")

    threads = [threading.Thread(target=move, args=(number,)) for number in range(len(changesets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    with scenario.ledger.read() as work:
        assert [move.position for move in work.heads(MODEL)] == [0, 1]


RACER = """if True:
    import sys, time
    from pathlib import Path
    from ledger.errors import HeadMoved
    from ledger.unit_of_work import open_ledger
    ledger, go, ref = open_ledger("sqlite:///" + sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with ledger.read() as work:
        expected, changeset = work.head("demo"), work.changeset(ref)
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    try:
        with ledger.begin() as work:
            work.move_head("demo", expected=expected, version=changeset.candidate_version,
                           changeset_id=changeset.id, at="2026-11-21T09:00:00Z", by="racer")
        print("won")
    except HeadMoved:
        print("lost")
"""


def test_of_two_processes_that_move_the_same_head_exactly_one_wins(
    scenario, tmp_path: Path, run_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    for subject in ("Croatia", "Bulgaria"):
        scenario.approve(scenario.propose(scenario.file(subject)))
    go = tmp_path / "go"
    racers = [run_script(RACER, str(scenario.path), str(go), ref) for ref in ("#1", "#2")]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    go.touch()
    assert sorted(racer.communicate(timeout=60)[0] for racer in racers) == ["lost\n", "won\n"]
    with open_ledger(f"sqlite:///{scenario.path}").read() as work:
        assert [move.position for move in work.heads(MODEL)] == [0, 1]
