"""Evidence: what the suite says about the weights in force and about those proposed, and whether the gates pass."""

import dataclasses
import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.errors import FlowError
from flows.explain import NOT_MEASURED, WARNING
from flows.progress import Progress, under
from flows.session import Session, request_of
from flows.workspace import Workspace
from ledger.records import ActiveDelta, CaseRow, Gate, Metric, Phase
from ledger.status import ModelState
from nse.architecture import EditableModel
from nse.delta import Delta
from nse.editors import get_editor
from nse.errors import SuiteError
from nse.evaluation.harness import harness_metrics
from nse.evaluation.run import Evaluation, evaluate
from nse.evaluation.suites import Suite, read_suite
from nse.fingerprint import file_digest
from nse.request import EditRequest


@dataclass(frozen=True, slots=True)
class Evidence:
    """Metrics and cases of head and candidate, the gates that block, and what is to be told of the others.

    Attributes:
        warnings: Of gates that warn and failed the value of the candidate, of gates that were not measured why, by gate as it is
            written. They go into the changeset's provenance: its gates are those that decide about it.
    """

    candidate_version: str
    metrics: tuple[Metric, ...]
    gates: tuple[Gate, ...]
    cases: tuple[CaseRow, ...]
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def gate_passed(self) -> bool:
        """Whether every gate that blocks passed."""
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """As plain values, floats as they are."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Evidence":
        """From what `to_json` gave."""
        return cls(
            data["candidate_version"],
            tuple(Metric(**m) for m in data["metrics"]),
            tuple(Gate(**g) for g in data["gates"]),
            tuple(CaseRow(**c) for c in data["cases"]),
            data.get("warnings", {}),
        )


def judge(
    session: Session,
    *,
    head: Sequence[Delta],
    candidate: Sequence[Delta],
    requests: Sequence[EditRequest],
    retained: Sequence[Sequence[EditRequest]],
    progress: Progress,
) -> Evidence:
    """Runs the suite on head and candidate and compares.

    Args:
        session: The model.
        head: Deltas in force.
        candidate: Deltas proposed.
        requests: What the candidate shall have learned; none for a revert.
        retained: Earlier corrections that the candidate shall still answer, by round.
        progress: Told how far it is.
    """
    suite = read_suite(session.workspace.path(session.workspace.params.suite))
    found: dict[Phase, Evaluation] = {}
    phases: tuple[tuple[Phase, Sequence[Delta]], ...] = (("head", head), ("candidate", candidate))
    for phase, deltas in phases:
        with session.with_deltas(deltas) as editable:
            told = under(phase, progress)
            found[phase] = measured(
                session, editable, suite, deltas=deltas, requests=requests, retained=retained, progress=told
            )
    gates = suite.gate(found["candidate"], found["head"])
    return Evidence(
        candidate_version=session.version(candidate),
        metrics=tuple(Metric(n, phase, float(v)) for phase, e in found.items() for n, v in sorted(e.metrics.items())),
        gates=tuple(
            Gate(g.name, ">=" if g.op == ">=" else "<=", float(g.bound), float(g.value), bool(g.passed))
            for g in gates
            if g.severity == "block"
        ),
        cases=tuple(
            CaseRow(c.kind, phase, c.case_id, c.prompt, c.expected, float(c.probability), c.generated, bool(c.passed))
            for phase, evaluation in found.items()
            for c in evaluation.cases
        ),
        warnings={
            f"{WARNING}{g.name} {g.op} {g.bound:g}": f"{g.value:.4g}"
            for g in gates
            if g.severity == "warn" and not g.passed
        }
        | {
            f"{NOT_MEASURED}{g}": "there is nothing to ask that it is about"
            for g in suite.not_measured(found["candidate"], found["head"])
        },
    )


def by_round(state: ModelState, active: Iterable[ActiveDelta], corrections: Collection[str]) -> list[list[EditRequest]]:
    """The requests of corrections that deltas hold, those of one delta together; of two that hold one, with the first."""
    place: dict[str, int] = {}
    for number, delta in enumerate(active):
        for identity in state.held([delta]):
            place.setdefault(identity, number)
    rounds: dict[int, list[EditRequest]] = {}
    for identity, correction in state.corrections.items():
        if identity in corrections:
            rounds.setdefault(place[identity], []).append(request_of(correction))
    return [rounds[number] for number in sorted(rounds)]


def measured(
    session: Session,
    editable: EditableModel,
    suite: Suite,
    *,
    deltas: Sequence[Delta],
    requests: Sequence[EditRequest] = (),
    retained: Sequence[Sequence[EditRequest]] = (),
    progress: Progress,
) -> Evaluation:
    """Runs a suite on the weights of `deltas`, which are in force, and the tasks of the harness that it asks for.

    Raises:
        SuiteError: If it asks for tasks and the harness is not installed, or a gate is on a metric that they do not have.
    """
    found = evaluate(
        editable,
        suite,
        requests=requests,
        retained=retained,
        store=session.outcomes,
        version=session.version(deltas),
        progress=progress,
    )
    if suite.harness is None:
        return found
    scores = harness_metrics(editable, suite.harness)
    gates = (gate.name for gate in suite.gates if gate.name.startswith("harness."))
    if absent := next((name for name in gates if name not in scores), None):
        has = ", ".join(sorted(scores)) or "none"
        raise SuiteError(f"{suite.files[0]}: gate {absent} is on no metric of the tasks: they have {has}")
    return dataclasses.replace(found, metrics=found.metrics | scores)


def provenance(workspace: Workspace) -> dict[str, str]:
    """Every input of a changeset besides its corrections: digests of files, settings, versions of programs.

    Raises:
        FlowError: If one of the files is missing; the line says how to get it.
    """
    method = workspace.params.method
    found = {"method": method.name, "seed": str(method.seed), "dtype": workspace.params.model.dtype}
    needs = get_editor(method.name).needs
    files = {"hparams": method.hparams, "contexts": method.contexts}
    if "second_moments" in needs:
        files["second_moment"] = method.second_moment
    if "trained" in needs:
        files["trained"] = method.trained or ""
    for name, text in files.items():
        path = workspace.path(text)
        if not path.is_file():
            how = {
                "second_moment": "make it with `dvc repro second_moment`",
                "trained": "make it with `nse train`, and name it as method.trained in params.yaml",
            }
            raise FlowError(f"{text or name} is missing", how.get(name, f"see method.{name} in params.yaml"))
        found[name] = file_digest(path)
    suite = read_suite(workspace.path(workspace.params.suite))
    found["suite"] = suite.digest
    found["python"] = platform.python_version()
    programs = {"torch": "torch", "transformers": "transformers", "nse": "nse-pipeline"}
    if suite.harness is not None:
        programs["harness"] = "lm-eval"
    return found | {f"{name} version": _version(package) for name, package in programs.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source tree"  # run from a checkout that is not installed
