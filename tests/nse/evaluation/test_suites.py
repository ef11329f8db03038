"""Suite files and gates."""

from dataclasses import dataclass

import pytest

from nse.errors import SuiteError
from nse.evaluation.probes import KnownFact
from nse.evaluation.suites import Canary, Gate, GateResult, read_suite

FILES = {
    "suite.yaml": "schema: 1\nfacts: facts.csv\ntemplates: t.yaml\ntext: text.txt\nneighbours: 3\n"
    'canaries:\n- {prompt: "The capital is", equals: Oslo}\ngates: {efficacy: ">= 0.9", perplexity_ratio: "<=1.1"}\n',
    "facts.csv": "subject,relation,object\nAnna,home,Oslo\nJürgen,home,Lima\n",
    "t.yaml": 'home: ["{} lives in", "{} is at"]\n',
    "text.txt": "One line.\n\nAnother.\n",
}


@dataclass
class Measured:
    metrics: dict[str, float]


@pytest.fixture
def suite(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / "suite.yaml"


def test_a_suite_is_read_with_all_that_it_names(suite) -> None:
    read = read_suite(suite)
    assert read.facts == (KnownFact("Anna", "home", "Oslo"), KnownFact("Jürgen", "home", "Lima"))
    assert read.templates == {"home": ("{} lives in", "{} is at")}
    assert read.texts == ("One line.", "Another.")
    assert read.neighbours == 3
    assert read.canaries == (Canary("The capital is", "Oslo"),)
    assert read.gates == (Gate("efficacy", ">=", 0.9), Gate("perplexity_ratio", "<=", 1.1))
    assert [f.name for f in read.files] == list(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_digest_depends_on_every_file(suite, name) -> None:
    before = read_suite(suite).digest
    assert read_suite(suite).digest == before
    path = suite.parent / name
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert read_suite(suite).digest != before


def test_an_empty_suite_asks_nothing_and_demands_nothing(tmp_path) -> None:
    (tmp_path / "s.yaml").write_text("")
    read = read_suite(tmp_path / "s.yaml")
    assert (read.facts, read.templates, read.texts, read.canaries, read.gates) == ((), {}, (), (), ())
    assert read.neighbours == 5
    assert read.gate(Measured({"efficacy": 0.0})) == ()


def test_gates_compare_what_was_measured_and_let_the_bound_itself_pass(suite) -> None:
    read = read_suite(suite)
    assert read.gate(Measured({"efficacy": 0.9, "perplexity_ratio": 1.2, "other": 0.0})) == (
        GateResult("efficacy", ">=", 0.9, 0.9, True),
        GateResult("perplexity_ratio", "<=", 1.1, 1.2, False),
    )
    assert [g.name for g in read.gate(Measured({"perplexity_ratio": 1.0}))] == ["perplexity_ratio"]
    assert not read.gate(Measured({"efficacy": float("nan")}))[0].passed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("suite.yaml", "a: [", r"suite\.yaml is not YAML"),
        ("suite.yaml", "- x", r"suite\.yaml is not a mapping"),
        ("suite.yaml", "fact: facts.csv", "key 'fact' is unknown: use .*facts"),
        ("suite.yaml", "facts: none.csv", r"none\.csv cannot be read"),
        ("suite.yaml", "text: ../text.txt", r"'\.\./text\.txt' lies outside the suite's folder"),
        ("suite.yaml", "text: /etc/hostname", "lies outside the suite's folder"),
        ("suite.yaml", "facts: facts.csv", "relation 'home' has no template"),
        ("suite.yaml", "neighbours: many", "neighbours is 'many'"),
        ("suite.yaml", "neighbours: -1", "neighbours is -1"),
        ("suite.yaml", "canaries: {a: b}", "canaries is not a list"),
        ("suite.yaml", "canaries: [{prompt: x}]", "a canary needs exactly `prompt` and `equals`"),
        ("suite.yaml", "canaries: [x]", "a canary needs exactly"),
        ("suite.yaml", "gates: [x]", "gates is not a mapping"),
        ("suite.yaml", "gates: {efficacy: 0.9}", "gate efficacy: '0.9' is no bound"),
        ("suite.yaml", 'gates: {efficacy: "> 0.9"}', "gate efficacy: '> 0.9' is no bound"),
        ("suite.yaml", 'gates: {eficacy: ">= 0.9"}', "gate 'eficacy' is on no metric"),
        ("suite.yaml", 'gates: {efficacy: ">= 0.9.1"}', "gate efficacy: '>= 0.9.1' is no bound"),
        ("facts.csv", "subject,relation\nAnna,home\n", r"facts\.csv has no column 'object'"),
        ("facts.csv", "", r"facts\.csv has no column 'object'"),
        ("facts.csv", "subject,relation,object\nAnna,home\n", r"facts\.csv record 1: a fact needs"),
        ("facts.csv", "subject,relation,object\nAnna,work,Lima\n", "relation 'work' has no template"),
        ("t.yaml", "home: [", r"t\.yaml is not YAML"),
        ("t.yaml", "- x", r"t\.yaml is not a mapping"),
        ("t.yaml", "home: []", r"t\.yaml: home needs a list of templates"),
        ("t.yaml", "home: x", r"t\.yaml: home needs a list of templates"),
        ("t.yaml", "home: [3]", r"t\.yaml: home needs a list of templates"),
        ("t.yaml", 'home: ["lives in"]', "template 'lives in' of home must have exactly one"),
        ("t.yaml", 'home: ["{} {}"]', "must have exactly one"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_names_it(suite, name, text, message) -> None:
    (suite.parent / name).write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError, match=message) as caught:
        read_suite(suite)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_not_utf8_is_refused(suite, name) -> None:
    (suite.parent / name).write_bytes(b"\xff")
    with pytest.raises(SuiteError, match=rf"{name} is not UTF-8"):
        read_suite(suite)
    (suite.parent / name).unlink()
    with pytest.raises(SuiteError, match=rf"{name} cannot be read"):
        read_suite(suite)
