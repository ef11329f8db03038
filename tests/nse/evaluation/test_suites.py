"""Suite files and gates."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from nse.errors import SuiteError
from nse.evaluation.gates import METRICS, kind_of
from nse.evaluation.harness import Harness
from nse.evaluation.misleading import MISLEADING
from nse.evaluation.probes import KnownFact
from nse.evaluation.suites import Canary, Gate, GateResult, KeptFact, read_suite

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


def test_a_suite_says_whether_it_asks_in_the_chat_format(tmp_path) -> None:
    for text, chat in (("", None), ("chat: true", True), ("chat: false", False)):
        (tmp_path / "s.yaml").write_text(text)
        assert read_suite(tmp_path / "s.yaml").chat is chat
    (tmp_path / "s.yaml").write_text("chat: often")
    with pytest.raises(SuiteError, match="chat is 'often': write true or false"):
        read_suite(tmp_path / "s.yaml")


def test_a_gate_in_the_chat_format_needs_what_its_kind_needs_and_the_format(suite) -> None:
    text = FILES["suite.yaml"].replace("efficacy:", "chat_untouched_generation:")
    suite.write_text(text)
    assert read_suite(suite).gates[0] == Gate("chat_untouched_generation", ">=", 0.9)
    for change, advice in (("chat: false", "leave `chat` true"), ("untouched: 0", "leave `untouched` above 0")):
        suite.write_text(f"{text}{change}\n")
        with pytest.raises(SuiteError, match=f"gate chat_untouched_generation is on what .*: .*{advice}"):
            read_suite(suite)


def test_a_canary_is_not_judged_as_a_chat_answer(tmp_path) -> None:
    (tmp_path / "s.yaml").write_text("canaries: [{prompt: a, states: b}]")
    with pytest.raises(SuiteError, match="`equals`, `contains` or `lacks`"):
        read_suite(tmp_path / "s.yaml")


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
    alone = Measured({"perplexity_ratio": 1.0})
    assert [g.name for g in read.gate(alone)] == ["perplexity_ratio"]
    assert [str(gate) for gate in read.not_measured(alone)] == ["efficacy >= 0.9"]
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
        ("suite.yaml", "canaries: [{prompt: x, equals: y, lacks: z}]", "a canary needs exactly"),
        ("suite.yaml", 'canaries: [{prompt: x, lacks: " "}]', "a canary needs exactly"),
        ("suite.yaml", "gates: [x]", "gates is not a mapping"),
        ("suite.yaml", "gates: {efficacy: 0.9}", "gate efficacy: '0.9' is no bound"),
        ("suite.yaml", 'gates: {efficacy: "> 0.9"}', "gate efficacy: '> 0.9' is no bound"),
        ("suite.yaml", 'gates: {eficacy: ">= 0.9"}', "gate 'eficacy' is on no metric"),
        ("suite.yaml", 'gates: {efficacy: ">= 0.9.1"}', "gate efficacy: '>= 0.9.1' is no bound"),
        ("suite.yaml", "gates: {efficacy: {bound: '>= 0', level: warn}}", "gate efficacy: key 'level' is unknown"),
        ("suite.yaml", "gates: {efficacy: {severity: warn}}", "gate efficacy: '' is no bound"),
        ("suite.yaml", "gates: {efficacy: {bound: '>= 0', severity: low}}", "severity is 'low': write block or warn"),
        (
            "suite.yaml",
            "gates: {efficacy: {bound: '>= 0', against: base}}",
            "against is 'base': write absolute or head",
        ),
        ("suite.yaml", "keep: none.csv", r"none\.csv cannot be read"),
        ("suite.yaml", "keep: 3", "keep is 3: write a name, or a list of names"),
        ("suite.yaml", "keep: facts.csv", "relation 'home' has no template"),
        ("suite.yaml", "keep: ../x.csv", "lies outside the suite's folder"),
        ("suite.yaml", "misleading: [chat, chatter]", "misleading kind 'chatter' is unknown"),
        ("suite.yaml", "per_kind: -1", "per_kind is -1"),
        *(
            ("suite.yaml", text, rf"suite\.yaml: gate {gate} is on what the suite never measures: {advice}")
            for text, gate, advice in (
                ('gates: {chat: ">= 0"}', "chat", "list chat in `misleading`"),
                (
                    'misleading: chat\nper_kind: 0\ngates: {chat: ">= 0"}',
                    "chat",
                    "list chat in `misleading`, `per_kind`",
                ),
                ('gates: {generalization: ">= 0"}', "generalization", "name `templates`"),
                ('gates: {specificity: ">= 0"}', "specificity", "name `facts`, and leave `neighbours` above 0"),
                ('misleading: [chained]\ngates: {chained: ">= 0"}', "chained", "list chained in `misleading`"),
                ('gates: {harness.x.acc: ">= 0"}', r"harness\.x\.acc", "list the task x in `harness.tasks`"),
                ('gates: {hidden_drift: "<= 1"}', "hidden_drift", "name a `text`"),
                ('gates: {canary: ">= 1"}', "canary", "write `canaries`"),
                ('gates: {kept_generation: ">= 1"}', "kept_generation", "name files to `keep`"),
                ('gates: {untouched: ">= 1"}', "untouched", "name `facts`"),
                ('retention: 0\ngates: {retention: ">= 1"}', "retention", "leave `retention` above 0"),
                ('gates: {retention_low: ">= 1"}', "retention_low", "write `retention: N`"),
            )
        ),
        ("suite.yaml", "harness: [x]", "harness is"),
        ("suite.yaml", "harness: {limit: 3}", "harness has no tasks"),
        ("suite.yaml", "harness: {tasks: [x], include: tasks}", "'tasks' is no folder"),
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


def test_a_gate_may_warn_and_may_be_against_the_head(tmp_path) -> None:
    path = tmp_path / "s.yaml"
    relative = '{bound: ">= -0.02", against: head}'
    path.write_text(
        f'gates:\n  efficacy: {{bound: ">= 0.9", severity: warn}}\n  efficacy_generation: [">= 0.5", {relative}]\n'
    )
    read = read_suite(path)
    assert read.gates == (
        Gate("efficacy", ">=", 0.9, "warn"),
        Gate("efficacy_generation", ">=", 0.5),
        Gate("efficacy_generation", ">=", -0.02, "block", "head"),
    )
    assert read.relative
    head = Measured({"efficacy_generation": 0.93, "efficacy": 0.0})
    assert read.gate(Measured({"efficacy_generation": 0.91, "efficacy": 0.8}), head) == (
        GateResult("efficacy", ">=", 0.9, 0.8, False, "warn"),
        GateResult("efficacy_generation", ">=", 0.5, 0.91, True),
        GateResult("efficacy_generation", ">=", 0.91, 0.91, True),
    )
    assert not read.gate(Measured({"efficacy_generation": 0.909}), head)[-1].passed
    assert len(read.gate(Measured({"efficacy_generation": 0.91}))) == 1  # no head, nothing to compare with
    assert [str(gate) for gate in read.not_measured(Measured({"efficacy_generation": 0.91}))] == [
        "efficacy >= 0.9",
        "efficacy_generation >= -0.02 against head",
    ]


def test_metrics_of_layers_and_of_the_harness_can_be_bounded(tmp_path) -> None:
    gates = '{delta_norm.3: "<= 0.1", harness.my_task.acc: ">= 0.5", harness.my_task_part.acc: ">= 0.5"}'
    (tmp_path / "s.yaml").write_text(f"harness: {{tasks: [my_task]}}\ngates: {gates}")
    names = [gate.name for gate in read_suite(tmp_path / "s.yaml").gates]
    assert names == ["delta_norm.3", "harness.my_task.acc", "harness.my_task_part.acc"]


def test_every_share_belongs_to_a_kind_of_probes_and_nothing_else_does() -> None:
    kinds = {name: kind_of(name) for name in METRICS}
    assert kinds["near_duplicate_generation"] == "near_duplicate"
    assert kinds["retention_generation_low"] == kinds["retention_high"] == "retention"
    assert kinds["specificity"] == kinds["specificity_accuracy"] == "specificity"
    assert {name for name, kind in kinds.items() if kind is None} >= {"perplexity_ratio", "delta_norm", "text_entropy"}


def test_a_canary_may_have_to_contain_or_to_lack_a_text(tmp_path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("canaries: [{prompt: a, contains: b}, {prompt: c, lacks: d}]")
    assert read_suite(path).canaries == (Canary("a", "b", "contains"), Canary("c", "d", "lacks"))


def test_facts_that_must_stay_come_from_a_table_or_from_requests(suite) -> None:
    folder = suite.parent
    suite.write_text("templates: t.yaml\nkeep: [facts.csv, stay.json]\nmisleading: chat\nper_kind: 1\n")
    rewrite = (
        '{"prompt": "{} speaks", "subject": "Ida", "target_new": {"str": "Dutch"}, "target_true": {"str": "Thai"}}'
    )
    (folder / "stay.json").write_text(f'[{{"case_id": 7, "requested_rewrite": {rewrite}}}]')
    read = read_suite(suite)
    anna, _, ida = read.kept
    assert (anna.name, anna.expected, anna.foil) == ("Anna / home", "Oslo", "Lima")
    assert anna.prompt in ("Anna lives in", "Anna is at")
    assert ida == KeptFact("stay 7: Ida", "Ida speaks", "Thai", "Dutch")
    assert (read.misleading, read.per_kind) == (("chat",), 1)
    assert {file.name for file in read.files} == {"suite.yaml", "t.yaml", "facts.csv", "stay.json"}
    before = read.digest
    (folder / "stay.json").write_text((folder / "stay.json").read_text().replace("Thai", "Lao"))
    assert read_suite(suite).digest != before
    (folder / "stay.json").write_text('[{"subject": "Ida", "prompt": "{} speaks", "target_new": "Dutch"}]')
    with pytest.raises(SuiteError, match="case 0 has no target_true"):
        read_suite(suite)


def test_task_files_of_the_harness_belong_to_the_suite(tmp_path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\n")
    (tmp_path / "s.yaml").write_text("harness: {tasks: [mine], include: tasks, limit: 5}")
    read = read_suite(tmp_path / "s.yaml")
    assert read.harness == Harness(("mine",), tmp_path / "tasks", 5)
    before = read.digest
    (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\nnum_fewshot: 0\n")
    assert read_suite(tmp_path / "s.yaml").digest != before


@pytest.mark.parametrize(("name", "misleading"), [("suite.yaml", ()), ("misleading.yaml", MISLEADING)])
def test_the_suites_of_the_demo_are_read(name: str, misleading: tuple[str, ...]) -> None:
    suite = read_suite(Path(__file__).parents[3] / "demo" / name)
    assert len(suite.facts) == 1521
    assert suite.misleading == misleading
    assert suite.judges_corrections
