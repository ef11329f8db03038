"""`nse report`: a changeset as one HTML file that loads nothing, says what the ledger says, and runs no text of a correction."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.bisect import Search, narrowed_by
from flows.explain import WARNING
from flows.page import page
from flows.report import name_of, report
from flows.workspace import Workspace
from ledger.records import CaseResult, Erasure, Gate
from ledger.views import show
from tests.browser import visit
from tests.flows.nights import file_all, history, night, rows, started
from tests.ledger.cast import Cast

Nse = Callable[..., Any]
EVIL = '<script>alert("x")</script><img src=http://example.org/x onerror=alert(1)>'


@pytest.fixture
def cast(tmp_path: Path) -> Cast:
    return started(tmp_path / "ledger.db")


def written(cast: Cast, reference: str) -> str:
    with cast.ledger.read() as work:
        return page(work, reference, at=cast.now())


class Read(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def plain(text: str) -> str:
    """What a reader sees of a piece of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def section(text: str, name: str) -> str:
    """One section of a page as its reader sees it."""
    found = re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.DOTALL)
    assert found, name
    return plain(found[1])


def test_the_page_says_what_the_ledger_says(cast: Cast) -> None:
    old = history(cast, 2, 3)
    made = night(cast, [cast.file("Croatia", target_true="kuna")], old, wrong=2)
    cast.reject(made, "rex", "two of six are forgotten")
    text = written(cast, "#3")
    assert "Changeset #3" in text
    assert "tonight&#39;s corrections" in text
    who = section(text, "who")
    assert f"{made.planned_at} planned by nse plan on v2" in who
    assert "rejected by rex : two of six are forgotten" in who
    assert "not in force" in who
    assert "Croatia currency kuna euro kuna euro 0.02 → 0.97 ✓ edited" in section(text, "beliefs")
    assert "retention_generation 0.6667 ≥ 0.9 -0.2333 ✗ failed" in section(text, "gates")
    failing = section(text, "failing")
    assert "retention: 2 of 6 fail, 2 of them broke ✗ Gate failed: retention_generation is 0.6667" in failing
    assert failing.count("euro euro kuna 0.97 → 0.02 ✗ broke") == 2
    assert "0.4 0.6667 +0.267" in section(text, "metrics")
    assert "0 1 1 100.0%" in section(text, "retention")
    assert section(text, "norms").endswith("layer 2 0.02 layer 3 0.03 layer 4 0.04")
    assert "reject rex" in section(text, "signatures")
    assert made.base_digest in section(text, "provenance")


def test_retention_is_by_the_age_of_each_correction(cast: Cast) -> None:
    old = history(cast, 3, 2)
    night(cast, [cast.file("Croatia")], old, wrong=1)  # the oldest is forgotten
    ages = section(written(cast, "#4"), "retention")
    young = "0 1 1 100.0% 20.7-100.0% 1 2 2 100.0% 34.2-100.0% 2 2 2 100.0% 34.2-100.0%"
    assert f"{young} 3 2 1 50.0% 9.5-90.5%" in ages.replace("\N{EN DASH}", "-")


def test_texts_of_corrections_are_shown_and_never_run(cast: Cast) -> None:
    made = night(cast, [cast.file(EVIL, EVIL, relation=EVIL, target_true=EVIL)], [])
    cast.reject(made, EVIL, EVIL)
    text = written(cast, "#1")
    read = Read(text)
    assert not {"script", "img", "link", "iframe", "object", "form"} & {tag for tag, _ in read.elements}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert section(text, "beliefs").count(EVIL) >= 4
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_texts_of_corrections_are_text_in_markdown_too(cast: Cast) -> None:
    evil = EVIL + " ![](http://example.org/x) [a](b) [c][d] \\<b> \\| e"
    made = night(cast, [cast.file(evil, evil, relation=evil, target_true=evil)], [])
    cast.reject(made, evil, evil)
    with cast.ledger.read() as work:
        text = report(show(work, "#1"))
    live = re.compile(r"(?<!\\)(?:\\\\)*(?:<[A-Za-z/!?]|\](?=[(\[]))")
    assert not live.findall(text)
    row = next(line for line in text.splitlines() if "script" in line and line.startswith("| "))
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 9  # of eight cells
    assert evil in re.sub(r"\\([\\|<\]])", r"\1", text)


def test_the_page_refers_to_nothing_outside_itself(cast: Cast) -> None:
    history(cast, 2, 2)
    text = written(cast, "#2")
    references = [
        a[n] or "" for _, a in Read(text).elements for n in ("href", "src", "srcset", "action", "data") if n in a
    ]
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"url\(|@import|https?:|[\"'(=\s]//", text)  # a signature may have // within it


def test_the_page_can_be_read_without_seeing_it(cast: Cast) -> None:
    history(cast, 2, 2)
    text = written(cast, "#2")
    read = Read(text)
    assert read.all("html")[0]["lang"] == "en"
    assert len(read.all("caption")) == len(read.all("table")) > 5
    assert len(read.all("h1")) == 1
    names = {attributes["id"] for _, attributes in read.elements if "id" in attributes}
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(names)
    for svg in read.all("svg"):
        described = (svg.get("aria-labelledby") or "").split()
        assert svg.get("aria-hidden") == "true" or (described and set(described) <= names)
    assert all(header.get("scope") in ("row", "col") for header in read.all("th"))


def test_the_same_ledger_gives_the_same_bytes(cast: Cast) -> None:
    history(cast, 2, 2)
    assert written(cast, "#2") == written(cast, "2")


def test_a_forged_signature_is_seen(cast: Cast) -> None:
    made = night(cast, [cast.file("Croatia")], [])
    decision = cast.approve(made)
    assert "✓ good" in section(written(cast, "#1"), "signatures")
    other = night(cast, [cast.file("Bulgaria")], [])
    forged = type(decision)(
        changeset_id=other.id, verdict="approve", reviewer="bruno", reason="so", decided_at=cast.now(),
        key_id=decision.key_id, signature=decision.signature,
    )  # fmt: skip
    cast.insert(forged)
    signatures = section(written(cast, "#2"), "signatures")
    assert "✗ its signature does not fit what it says" in signatures
    assert "0 of 1 approvals count" in signatures


def test_a_revert_names_what_goes_out_of_force(cast: Cast) -> None:
    old = history(cast, 1, 2)
    cast.propose(
        kind="revert", mode="drop", results=(), cases=(), gates=(), reverted=(old[0].id,), active=(), reason="no"
    )
    text = written(cast, "#2")
    assert "Country 0.0 currency euro kuna" in section(text, "beliefs")
    assert "The suite has no gates." in section(text, "gates")
    assert 'aria-labelledby="retention"' not in text


def test_what_was_left_out_and_what_only_warns_is_told_and_is_not_counted(cast: Cast) -> None:
    old = history(cast, 1, 4)
    good, culprit = file_all(cast, ["Croatia", "Bulgaria"])
    fails = night(cast, [good, culprit], old, wrong=2)
    warned = {f"{WARNING}hidden_drift <= 0.1": "0.2"}
    passes = cast.changeset(
        good, cases=tuple(rows("retention", old)), gates=(Gate("retention_generation", ">=", 0.9, 1.0, True),)
    )
    skipped = (CaseResult(culprit.id, "skipped", 9.5, 9.5),)
    found = Search({culprit.id: "plan"}, [], 3)
    made = narrowed_by(replace(passes, provenance=warned), found, {culprit.id: fails}, skipped)
    with cast.ledger.begin() as work:
        made = work.add_changeset(made)
    text = written(cast, f"#{made.number}")
    without = section(text, "without")
    assert "Bulgaria: euro retention_generation 0.5 with it, >= 0.9 demanded, 1 without it" in without
    assert without.count("✗ broke") == 2
    assert "None: the candidate answers everything as expected." in section(text, "failing")
    assert "warning: hidden_drift <= 0.1 : 0.2" in section(text, "gates")
    assert "left out" not in section(text, "provenance")
    assert "<b>0</b> answers broke" in text
    with cast.ledger.begin() as work:
        assert name_of(show(work, "#2"), culprit.id) == "Bulgaria: euro"
        work.erase(Erasure(ref=culprit.id, reason="asked", erased_by="ann", erased_at=cast.now()))
        assert name_of(show(work, "#2"), culprit.id) == culprit.id[:12]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a hundred corrections with two thousand cases."""
    cast = started(tmp_path_factory.mktemp("large") / "ledger.db")
    old = history(cast, 4, 75)
    night(cast, file_all(cast, [f"Land {place}" for place in range(100)]), old, wrong=40, each=16)
    text = written(cast, "#5")
    assert text.count("</td></tr>") > 2000
    return text


def test_a_large_round_is_small_enough_and_shows_what_fails_first(large: str) -> None:
    assert len(large.encode()) < 2_000_000
    open_part = re.sub(r"<details>.*?</details>", "", large, flags=re.DOTALL)
    assert open_part.count("✗ broke") == 20  # of forty; the others are one click away
    assert open_part.count("<tr>") < 150
    assert large.index("✗ broke") < large.index("✓ right")


def test_the_command_writes_the_file(edited: Workspace, nse: Nse, tmp_path: Path) -> None:
    made = nse("report", "1", "--output", tmp_path / "page.html", "--json")
    assert made.code == 0, made.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert made.json == {"changeset": 1, "path": str(tmp_path / "page.html"), "bytes": len(text.encode())}
    assert "put in force as v1" in section(text, "who")
    assert "✓ good" in section(text, "signatures")
    assert nse("report", "#1").out.startswith("changeset-1.html: changeset #1, ")
    assert (edited.root / "changeset-1.html").read_text(encoding="utf-8") == text
    assert nse("report", "7").code == 2
    refused = nse("report", "1", "--output", tmp_path / "nowhere" / "page.html")
    assert (refused.code, "cannot write" in refused.error) == (2, True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_opens_the_page_silently_and_draws_it(large: str, dark: bool, tmp_path: Path) -> None:
    seen = visit(opened(large, tmp_path), tmp_path, dark=dark)
    assert seen.console == []
    assert seen.requests == []
    assert seen.ink > 0.01
    assert seen.background < 0.2 if dark else seen.background > 0.9


def test_a_browser_refuses_what_would_come_into_the_page(large: str, tmp_path: Path) -> None:
    address = "http://127.0.0.1:9/x.png"
    attacked = large.replace("</main>", f'<img src="{address}"><script>console.log("it ran")</script></main>')
    seen = visit(opened(attacked, tmp_path), tmp_path)
    assert seen.requests == []
    assert ["violates the following Content Security Policy" in line for line in seen.console] == [True, True]
    unguarded = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", attacked)
    seen = visit(opened(unguarded, tmp_path), tmp_path)  # so the test above sees what there is to see
    assert seen.requests == [address]
    assert ["it ran" in line for line in seen.console] == [True]


def opened(text: str, folder: Path) -> str:
    """The address of a page that was written to a file."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    return (folder / "page.html").as_uri()
