"""Ingest: a bad row is quarantined with its line, field and reason; the good ones go on; twice changes nothing."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.rows import parse
from flows.workspace import Workspace

Nse = Callable[..., Any]

GOOD = "Alba,capital,The capital of {} is,Paris,Rome,gazette,Sue,moved,2024-02-29,"
BAD = [
    ("Cyra,capital,The capital of {} is,,Lima,g,Sue,r,,", "target_new", "is empty"),
    (",capital,The capital of {} is,Paris,Lima,g,Sue,r,,", "subject", "is empty"),
    ("Cyra,capital,The capital is,Paris,Lima,g,Sue,r,,", "prompt_template", "does not contain the subject 'Cyra'"),
    ("Cyra,capital,{} and {},Paris,Lima,g,Sue,r,,", "prompt_template", "has 2 {} instead of one"),
    ("Cyra,capital,The capital of {} is,Lima,Lima,g,Sue,r,,", "target_new", "equals the old object"),
    ("Cyra,capital,The capital of {} is,Atlantis,Lima,g,Sue,r,,", "target_new", "the model cannot produce it"),
    ("Cyra,capital,The capital of {} is,Paris,Lima,g,Sue,r,29 Feb,", "effective_date", "'29 Feb' is no date"),
    ("Cyra,capital,The capital of {} is,Paris,Lima,g,Sue,r,,abcdef", "supersedes", "names no correction"),
    ("Cyra,capital,The capital of {} is,Paris", "row", "has 4 cells, the header has 10"),
    ('Cyra,"capital,The capital of {} is,Paris,Lima,g,Sue,r,,', "row", "opens a quote"),
    ("Cyra,capital,The capital of {} is,Paris\0,Lima,g,Sue,r,,", "target_new", "NUL"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD, ids=[f"{field}: {reason}" for _, field, reason in BAD])
def test_a_bad_row_is_quarantined_and_its_neighbours_are_filed(
    row: str, field: str, reason: str, workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    later = GOOD.replace("Alba", "Borea")
    found = nse("ingest", corrections(GOOD, row, later), "--json")
    assert found.code == 0, found.err
    assert [c["subject"] for c in found.json["filed"]] == ["Alba", "Borea"]
    [bad] = found.json["quarantined"]
    assert (bad["line"], bad["field"]) == (3, field)
    assert reason in bad["reason"]
    assert nse("verify").code == 0


def test_bytes_that_are_not_utf8_spoil_their_row_only(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    path = corrections(GOOD, "Borea,capital,The capital of {} is,Tokyo,Oslo,caf?,Sue,r,,")
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\xe9"))
    found = nse("ingest", path, "--json").json
    assert len(found["filed"]) == 1
    [bad] = found["quarantined"]
    assert (bad["line"], bad["field"]) == (3, "source")
    assert "0xe9, which is not UTF-8" in bad["reason"]
    assert "caf\\xe9" in bad["row_text"]


def test_the_same_file_twice_changes_nothing(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    path = corrections(GOOD, *(row for row, _, _ in BAD), GOOD.replace("Paris", "Berne") + "yes")
    first = nse("ingest", path, "--json").json
    before = nse("log", "--json").json
    again = nse("ingest", path, "--json").json
    assert (len(first["filed"]), first["already_known"]) == (2, 0)
    assert (len(again["filed"]), again["already_known"]) == (0, 2)
    assert nse("log", "--json").json == before


def test_two_targets_for_one_fact_wait_unless_one_supersedes(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    rival = GOOD.replace("Paris", "Tokyo")
    found = nse("ingest", corrections(GOOD, rival, GOOD.replace("Sue", "Tom")), "--json").json
    assert (len(found["filed"]), len(found["conflicts"]), len(found["duplicates"])) == (3, 2, 1)
    assert nse("status", "--json").json["corrections"] == {"conflict": 2, "duplicate": 1}
    assert nse("plan", "--by", "Pia", "--json").json == {"changeset": None}
    identity = found["filed"][0]["id"]
    settled = nse("ingest", corrections(GOOD.replace("Paris", "Berne") + identity[:8]), "--json").json
    assert settled["filed"][0]["supersedes"] == identity


def test_a_row_in_a_quoted_cell_may_span_lines() -> None:
    text = 'subject,relation,prompt_template,target_new\nAlba,capital,"The capital\nof {} is",Paris\n'
    [row] = parse("x.csv", text.encode()).rows
    assert (row.line, row.cells["prompt_template"]) == (2, "The capital\nof {} is")


def test_an_unclosed_quote_does_not_swallow_the_rows_behind_it() -> None:
    lines = [
        "subject,relation,prompt_template,target_new",
        'A,"b,{} is,x',
        "B,b,{} is,x",
        'C,b,"{} is",x',
        "D,b,{} is,x",
    ]
    rows = parse("x.csv", "\n".join(lines).encode()).rows
    assert [(row.line, row.cells.get("subject"), row.problem is None) for row in rows] == [
        (2, None, False),
        (3, "B", True),
        (4, "C", True),
        (5, "D", True),
    ]


def test_counterfact_and_zsre_records_keep_their_lines(workspace: Workspace, tmp_path: Path, nse: Nse) -> None:
    rewrite = {"prompt": "The capital of Alba is", "relation_id": "P36", "subject": "Alba"}
    rewrite |= {"target_new": {"str": "Paris"}, "target_true": {"str": "Rome"}}  # type: ignore[dict-item]
    zsre = {"subject": "Borea", "src": "Borea is governed from", "answers": ["Oslo"], "alt": "Tokyo"}
    lost = zsre | {"subject": "Cyra"}
    path = tmp_path / "mixed.json"
    records = [{"case_id": 1, "requested_rewrite": rewrite}, zsre, lost]
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]")
    found = nse("ingest", path, "--submitter", "Sue", "--json").json
    filed = [
        (c["line"], c["prompt_template"], c["target_new"], c["target_true"], c["submitter"]) for c in found["filed"]
    ]
    assert filed == [
        (2, "The capital of {} is", "Paris", "Rome", "Sue"),
        (3, "{} is governed from", "Tokyo", "Oslo", "Sue"),
    ]
    [bad] = found["quarantined"]
    assert (bad["line"], bad["field"]) == (4, "prompt_template")


def test_jsonl_comes_from_standard_input(workspace: Workspace, nse: Nse, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"subject": "Alba", "relation": "capital", "prompt_template": "The capital of {} is", "target_new": "Paris"}
    text = json.dumps(row) + "\nnot json\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = nse("ingest", "-", "--json").json
    assert found["filed"][0]["submitter"] == "Ann Author <ann@example.org>"
    assert [(q["file_name"], q["line"]) for q in found["quarantined"]] == [("stdin", 2)]


def test_a_folder_is_read_file_by_file(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    corrections(GOOD, name="b.csv")
    folder = corrections(GOOD.replace("Alba", "Borea"), name="a.csv").parent
    assert [c["file_name"] for c in nse("ingest", folder, "--json").json["filed"]] == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"subject,relation,prompt_template\nA,b,{}\n", "column 'target_new' is missing"),
        ("x.csv", b"", "is empty"),
        ("x.csv", "subject\n".encode("utf-16"), "is UTF-16"),
        ("x.json", b"[1,", "line 1 is not JSON"),
        ("x.json", b"{}", "holds a JSON dict"),
        ("missing.csv", None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_makes_no_sense_files_nothing(
    name: str, content: bytes | None, says: str, workspace: Workspace, tmp_path: Path, nse: Nse
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = nse("ingest", tmp_path / name)
    assert (found.code, found.out) == (2, "")
    assert says in found.error
    assert nse("status", "--json").json["corrections"] == {}


def test_a_subject_that_the_model_does_not_see_is_told_of(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corrections(("Alba", "Paris", "Rome"))
    monkeypatch.setattr("flows.ingest.unheard", lambda _tokenizer, _template, subject: subject == "Alba")
    found = nse("ingest", path)
    assert found.code == 0
    assert "1 prompts begin with a subject of one token" in " ".join(found.err.split())
    assert "'The capital of Alba is'" in found.err
