"""A ledger goes out as files and comes back the same, in any database; a changed export does not come in."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from ledger.audit import check_records
from ledger.database import connect
from ledger.errors import LedgerError
from ledger.statements import PREDICATE, StatementError, opened, sealed
from ledger.tables import metadata
from ledger.transfer import EVENTS, STATEMENTS, SUMMARY, TransferError, export_ledger, import_ledger
from ledger.unit_of_work import Ledger
from tests.ledger.history import LOG, full_history, open_history, signer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a full ledger, and beside it the ledger."""
    folder = tmp_path_factory.mktemp("exported")
    history = full_history(f"sqlite:///{folder / 'ledger.db'}")
    with history.ledger.read() as work:
        export_ledger(work, folder / "export", signer=LOG, keys=[LOG.key])
    return folder / "export"


@pytest.fixture
def export(exported: Path, tmp_path: Path) -> Path:
    """An export of one's own."""
    return Path(shutil.copytree(exported, tmp_path / "export"))


def empty(folder: Path) -> Ledger:
    return Ledger(connect(f"sqlite:///{folder / 'new.db'}", create=True))


def rows_of(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    with ledger.read() as work:
        return {
            table.name: sorted((tuple(row) for row in work.connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }


def test_an_import_has_every_row_of_what_was_exported_on_either_database_and_back(
    exported: Path, ledger_url: str, tmp_path: Path
) -> None:
    there = Ledger(connect(ledger_url, create=True))
    came = import_ledger(there, exported, keys=[LOG.key])
    with there.read() as work:
        again = export_ledger(work, tmp_path / "again", signer=LOG, keys=[LOG.key])
        assert check_records(work, keys=[LOG.key]) == []
    back = empty(tmp_path)
    assert import_ledger(back, tmp_path / "again", keys=[LOG.key]) == again == came
    original = Ledger(connect(f"sqlite:///{exported.parent / 'ledger.db'}", create=False))
    assert rows_of(there) == rows_of(original) == rows_of(back)
    for path in sorted(p.relative_to(exported) for p in exported.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path).read_bytes() == (exported / path).read_bytes(), path


def test_erased_text_is_in_no_file_of_an_export(exported: Path) -> None:
    everything = "".join(path.read_text() for path in exported.rglob("*") if path.is_file())
    assert "Secret Person" not in everything
    assert "Croatia" in everything


def test_an_import_goes_into_an_empty_ledger_only(export: Path, tmp_path: Path) -> None:
    history = open_history(f"sqlite:///{tmp_path / 'other.db'}")
    history.start()
    with pytest.raises(TransferError, match="not empty: "):
        import_ledger(history.ledger, export)


def test_an_export_goes_into_an_empty_folder_only(export: Path, tmp_path: Path) -> None:
    with empty(tmp_path).read() as work, pytest.raises(TransferError, match="is not empty"):
        export_ledger(work, export)


def test_an_empty_ledger_comes_and_goes(tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    with ledger.read() as work:
        out = export_ledger(work, tmp_path / "out")
    assert import_ledger(ledger, tmp_path / "out") == out
    assert out.events == 0


def test_any_changed_line_is_refused_and_named_and_nothing_is_left_of_the_import(export: Path, tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    lines = (export / EVENTS).read_bytes().splitlines(keepends=True)
    for number in (1, 3, 5, 6, 7, 8, 12, 15, 25):
        line = lines[number - 1]
        for place in range(1, len(line), 41):
            spoilt = bytearray(line)
            spoilt[place] ^= 1
            (export / EVENTS).write_bytes(b"".join([*lines[: number - 1], bytes(spoilt), *lines[number:]]))
            with pytest.raises(TransferError, match=rf"events.jsonl line {number}: "):
                import_ledger(ledger, export)
    assert not any(rows_of(ledger).values())


def changed(export: Path, number: int, change) -> None:
    """Change the JSON of one line."""
    lines = (export / EVENTS).read_text().splitlines(keepends=True)
    line = json.loads(lines[number - 1])
    change(line)
    lines[number - 1] = json.dumps(line, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n"
    (export / EVENTS).write_text("".join(lines))


def line_of(export: Path, kind: str) -> int:
    lines = (export / EVENTS).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if json.loads(line)["event"]["event"] == kind)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("correction", lambda line: line.update(text=None), "the text is gone, and no erasure says so"),
        ("correction", lambda line: line["text"].update(reason="another"), "not the one of its salted hash"),
        ("correction", lambda line: line["event"].update(line=3), "not the one of its leaf hash"),
        ("correction", lambda line: line.update(more=1), "it has other fields"),
        ("changeset", lambda line: line["parts"]["metrics"].pop(), "its id is not the digest of its content"),
        ("changeset", lambda line: line["parts"]["gates"][0].__setitem__(5, 1), "values of other types"),
        ("changeset", lambda line: line["case_texts"][0].update(generated="no"), "salted hash"),
        ("changeset", lambda line: line["case_texts"].clear(), "its cases have other texts"),
        ("head_move", lambda line: line["event"].update(position="0"), "not as an export writes it|whole number"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(export: Path, tmp_path: Path, kind: str, change, problem: str) -> None:
    number = line_of(export, kind)
    changed(export, number, change)
    with pytest.raises(TransferError, match=f"line {number}: .*({problem})"):
        import_ledger(empty(tmp_path), export)


def test_lines_that_were_cut_off_or_moved_are_missed(export: Path, tmp_path: Path) -> None:
    lines = (export / EVENTS).read_text().splitlines(keepends=True)
    (export / EVENTS).write_text("".join(lines[:-1]))
    with pytest.raises(TransferError, match="with root"):
        import_ledger(empty(tmp_path), export)
    (export / EVENTS).write_text("".join([*lines[:-2], lines[-1], lines[-2]]))
    with pytest.raises(TransferError, match=f"line {len(lines) - 1}: it is event {len(lines)} of the log"):
        import_ledger(empty(tmp_path), export)


def test_an_export_whose_lines_and_root_were_all_made_anew_is_refused_by_its_checkpoints(
    export: Path, tmp_path: Path
) -> None:
    lines = (export / EVENTS).read_text().splitlines(keepends=True)
    (export / EVENTS).write_text("".join(lines[:-4]))
    summary = json.loads((export / SUMMARY).read_text())
    with pytest.raises(TransferError) as refused:
        import_ledger(empty(tmp_path), export)
    root = refused.value.problem.split("root ")[1][:64]
    (export / SUMMARY).write_text(json.dumps({**summary, "events": len(lines) - 4, "root": root}))
    with pytest.raises(TransferError, match="cut off its end"):
        import_ledger(empty(tmp_path), export)


def test_what_is_no_export_is_refused_in_one_line(export: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="cannot read"):
        import_ledger(empty(tmp_path), tmp_path / "nowhere")
    (export / SUMMARY).write_text("[]")
    with pytest.raises(TransferError, match="is not what an export says"):
        import_ledger(empty(tmp_path), export)


def test_a_ledger_that_was_changed_is_not_exported(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    history = open_history(f"sqlite:///{tmp_path / 'ledger.db'}")
    history.start()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.execute("DROP TRIGGER head_move_refuse_update")
        database.execute("UPDATE head_move SET moved_by = 'nobody'")
        database.commit()
    with history.ledger.read() as work, pytest.raises(LedgerError, match="record at 1 of the log is not what was"):
        export_ledger(work, tmp_path / "out")


def test_each_applied_changeset_has_a_statement_that_is_signed_by_the_log(exported: Path) -> None:
    lines = (exported / STATEMENTS).read_text().splitlines()
    statements = [opened(line, [LOG.key]) for line in lines]
    assert [s["subject"][0]["name"] for s in statements] == [f"world@v{n}" for n in range(1, len(lines) + 1)]
    assert {(s["_type"], s["predicateType"]) for s in statements} == {("https://in-toto.io/Statement/v1", PREDICATE)}
    for earlier, later in pairwise(statements):
        assert later["predicate"]["parent"]["sha256"] == earlier["subject"][0]["digest"]["sha256"]
    assert [d["reviewer"] for d in statements[0]["predicate"]["decisions"]] == ["Rex"]
    assert statements[0]["predicate"]["gates"][0]["passed"] is True


def test_a_statement_that_was_changed_or_is_signed_by_nobody_we_know_is_refused(exported: Path) -> None:
    envelope = (exported / STATEMENTS).read_text().splitlines()[0]
    for place in range(0, len(envelope), 13):
        spoilt = envelope[:place] + ("A" if envelope[place] != "A" else "B") + envelope[place + 1 :]
        with pytest.raises(StatementError):
            opened(spoilt, [LOG.key])
    with pytest.raises(StatementError, match="not signed by a known key"):
        opened(envelope, [signer("Mallory").key])
    with pytest.raises(StatementError, match="not signed by a known key"):
        opened(sealed(opened(envelope, [LOG.key]), None), [LOG.key])


def test_the_bytes_that_are_signed_are_those_of_the_dsse_specification() -> None:
    from ledger.statements import PAYLOAD, _authenticated

    assert _authenticated(b"hello") == b"DSSEv1 28 " + PAYLOAD.encode() + b" 5 hello"
