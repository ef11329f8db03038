"""The round: pending corrections become a proposed changeset. Each step takes and gives digests and paths only.

The plain path calls the steps one after another; the Prefect flows wrap each in a task (`flows.deploy`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flows.draft import Draft, Plan, save_plan
from flows.errors import FlowError, Refused
from flows.evidence import Evidence, judge, provenance
from flows.lock import writer
from flows.progress import Progress, silent, under
from flows.session import Session, request_of
from flows.workspace import Workspace
from ledger.records import ActiveDelta, CaseResult, Changeset, Correction
from ledger.status import ModelState, correction_statuses, read_state
from nse.contexts import read_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.evaluation.suites import held_facts, read_suite
from nse.factors import FactorStore
from nse.hyperparameters import read_hyperparameters
from nse.request import EditRequest
from nse.statistics import SecondMoments, read_second_moments
from nse.subjects import companions
from nse.values import ValueStore, values_for

T = TypeVar("T")
RunStep = Callable[..., Any]
"""Called as `run_step(name, function, *arguments)`; returns what the function returns."""

ARTIFACTS = "artifacts/deltas"


def call_directly(_name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Runs a step here and now."""
    return function(*arguments)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a round came to.

    Attributes:
        changeset: The proposal; None when nothing was pending.
        repeated: Whether it is an earlier one that failed its gates, and nothing has changed since.
    """

    changeset: Changeset | None
    repeated: bool = False


class Round:
    """The steps of a round on one workspace."""

    def __init__(self, session: Session, *, by: str, reason: str = "", progress: Progress = silent) -> None:
        """Prepares a round that `by` answers for."""
        self.session, self.workspace = session, session.workspace
        self.by, self.reason, self.progress = by, reason, progress

    def choose(self) -> str | None:
        """Chooses pending corrections, one per fact, up to the batch size; None when there are none."""
        workspace = self.workspace
        with workspace.ledger().read() as work:
            state = read_state(work, workspace.model)
            head = work.head(workspace.model)
        chosen = _pending(state, workspace.params.round.batch_size)
        if not chosen:
            return None
        facts = {c.fact for c in chosen}
        active = state.active(head)
        in_force = state.in_force(active)
        kept = [c for i, c in state.corrections.items() if i in in_force and c.fact not in facts]
        plan = Plan(
            kind="edit",
            parent_version=head.version,
            base_digest=workspace.params.model.digest,
            before=[delta.to_dict() for delta in active],
            after=[delta.to_dict() for delta in active],
            corrections=[c.id for c in chosen],
            retained=[c.id for c in kept],
            reverted=[],
            provenance=provenance(workspace),
        )
        return save_plan(workspace, plan)

    def failed_before(self, plan: str) -> int | None:
        """Number of the changeset of this very plan that failed its gates, if there is one."""
        with self.workspace.ledger().read() as work:
            changesets = work.changesets(self.workspace.model)
        return next((c.number for c in changesets if c.provenance.get("plan") == plan), None)

    def values(self, plan: str) -> int:
        """Computes the target states z that the cache lacks; returns how many corrections have theirs now."""
        wanted = self._plan(plan)
        return compute_values(
            self.session,
            self._requests(wanted.corrections),
            earlier=self._earlier(_active(wanted.after)),
            progress=self.progress,
        )

    def edit(self, plan: str) -> dict[str, str]:
        """Writes the corrections on top of the head into a delta; returns the status of each."""
        draft = Draft(self.workspace, plan)
        if not draft.has("results"):
            wanted, method = self._plan(plan), self.workspace.params.method
            path, before = self.workspace.path, _active(wanted.after)
            context = EditContext(
                hyperparameters=read_hyperparameters(path(method.hparams)).settings,
                second_moments=second_moments(self.session),
                contexts=read_contexts(path(method.contexts)),
                previous=self.session.deltas(before),
                earlier=self._earlier(before),
                held=held_facts(read_suite(path(self.workspace.params.suite))),
                values=value_store(self.workspace),
                factors=FactorStore(self.workspace.state / "factors"),
                progress=under("edit", self.progress),
            )
            result = get_editor(method.name).edit(self.session.editable, self._requests(wanted.corrections), context)
            result.delta.save(draft.delta)
            names = ("case_id", "status", "residual_before", "residual_after")
            draft.write("results", [{name: getattr(case, name) for name in names} for case in result.cases])
        return {case["case_id"]: case["status"] for case in draft.read("results")}

    def writes(self, plan: str) -> bool:
        """Whether the plan writes anything: a revert may only leave columns out."""
        return bool(self._plan(plan).corrections)

    def evaluate(self, plan: str) -> str:
        """Runs the suite on head and candidate; returns the candidate's version."""
        draft = Draft(self.workspace, plan)
        if not draft.has("evidence"):
            wanted = self._plan(plan)
            new = (Delta.load(draft.delta),) if wanted.corrections else ()
            evidence = judge(
                self.session,
                head=self.session.deltas(_active(wanted.before)),
                candidate=(*self.session.deltas(_active(wanted.after)), *new),
                requests=self._requests(wanted.corrections),
                retained=self._requests(wanted.retained),
                progress=self.progress,
            )
            draft.write("evidence", evidence.to_json())
        return str(draft.read("evidence")["candidate_version"])

    def store(self, plan: str) -> dict[str, str] | None:
        """Puts the delta where it is safe; returns its path and SHA-256, or None if no correction was written."""
        draft = Draft(self.workspace, plan)
        if all(case["status"] == "skipped" for case in draft.read("results")):
            return None
        stored = self.session.store.put(draft.delta, ARTIFACTS)
        return {"path": stored.path, "sha256": stored.sha256}

    def propose(self, plan: str, stored: dict[str, str] | None) -> int:
        """Writes the changeset with all its evidence to the ledger; returns its number.

        Raises:
            Refused: If the head moved since the round began.
        """
        draft, wanted, model = Draft(self.workspace, plan), self._plan(plan), self.workspace.model
        evidence = Evidence.from_json(draft.read("evidence"))
        results = draft.read("results") if draft.has("results") else []
        new = (ActiveDelta(stored["sha256"], stored["path"]),) if stored else ()
        changeset = Changeset(
            model=model,
            kind="edit" if wanted.kind == "edit" else "revert",
            parent_version=wanted.parent_version,
            candidate_version=evidence.candidate_version,
            base_digest=wanted.base_digest,
            active=(*_active(wanted.after), *new),
            results=tuple(
                CaseResult(c["case_id"], c["status"], c["residual_before"], c["residual_after"]) for c in results
            ),
            reverted=tuple(wanted.reverted),
            metrics=evidence.metrics,
            gates=evidence.gates,
            cases=evidence.cases,
            provenance={**wanted.provenance, "plan": plan},
            reason=self.reason or f"round of {len(wanted.corrections)} corrections",
            planned_by=self.by,
            planned_at=self.workspace.now(),
        )
        with self.workspace.ledger().begin() as work:
            if work.head(model).version != wanted.parent_version:
                raise Refused(
                    "the head moved while the round was planned; nothing was proposed", "run `nse plan` again"
                )
            return work.add_changeset(changeset).number or 0

    def _plan(self, plan: str) -> Plan:
        return Plan(**Draft(self.workspace, plan).read("plan"))

    def _corrections(self, ids: list[str]) -> list[Correction]:
        with self.workspace.ledger().read() as work:
            return [work.correction(identity) for identity in ids]

    def _requests(self, ids: list[str]) -> list[EditRequest]:
        return [request_of(correction) for correction in self._corrections(ids)]

    def _earlier(self, active: tuple[ActiveDelta, ...]) -> tuple[EditRequest, ...]:
        return earlier_requests(self.workspace, active)


def _pending(state: ModelState, most: int) -> list[Correction]:
    statuses = correction_statuses(state)
    facts: dict[tuple[str, str], Correction] = {}
    for identity, correction in state.corrections.items():
        if statuses[identity] == "pending":
            facts.setdefault(correction.fact, correction)
    return list(facts.values())[:most]


def _active(plain: list[dict[str, Any]]) -> tuple[ActiveDelta, ...]:
    return tuple(ActiveDelta(d["sha256"], d["path"], tuple(d["dropped"])) for d in plain)


def second_moments(session: Session) -> SecondMoments:
    """C0 of the workspace's model.

    Raises:
        FlowError: If the file was made for another model.
        StatisticsError: If it is malformed.
    """
    path = session.workspace.second_moment
    moments = read_second_moments(path)
    made_for = moments.metadata.get("model_digest", session.editable.base_digest)
    if made_for != session.editable.base_digest:
        problem = f"{path.name} was made for model {made_for[:12]}, this one is {session.editable.base_digest[:12]}"
        raise FlowError(problem, "make it again with `dvc repro second_moment`")
    return moments


def value_store(workspace: Workspace) -> ValueStore:
    """The cache of z's of a workspace."""
    return ValueStore(workspace.state / "values")


def earlier_requests(workspace: Workspace, active: tuple[ActiveDelta, ...]) -> tuple[EditRequest, ...]:
    """The requests of all corrections whose columns are in `active`, in the order of filing."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
    held = state.held(active)
    return tuple(request_of(correction) for identity, correction in state.corrections.items() if identity in held)


def compute_values(
    session: Session,
    requests: list[EditRequest],
    *,
    earlier: tuple[EditRequest, ...],
    progress: Progress = silent,
) -> int:
    """Computes and caches z for `requests` and the `earlier` corrections of their subjects; how many have theirs now."""
    method, path = session.workspace.params.method, session.workspace.path
    settings = read_hyperparameters(path(method.hparams)).settings
    values_for(
        session.editable,
        [*requests, *(companions(requests, earlier) if settings.joint_values else ())],
        contexts=read_contexts(path(method.contexts)),
        hyperparameters=settings,
        held=held_facts(read_suite(path(session.workspace.params.suite))),
        store=value_store(session.workspace),
        progress=progress,
    )
    return len(requests)


def compute_pending_values(session: Session, *, progress: Progress = silent) -> int:
    """Computes z for every correction that waits, ahead of the night; returns how many wait."""
    workspace = session.workspace
    pending = pending_corrections(workspace)
    if not pending:
        return 0
    with workspace.ledger().read() as work:
        state, head = read_state(work, workspace.model), work.head(workspace.model)
    earlier = earlier_requests(workspace, state.active(head))
    return compute_values(session, [request_of(c) for c in pending], earlier=earlier, progress=progress)


def pending_corrections(workspace: Workspace) -> list[Correction]:
    """Every correction that waits for a round, one per fact."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
    return _pending(state, len(state.corrections))


def run_round(
    session: Session, *, by: str, run_step: RunStep = call_directly, progress: Progress = silent, reason: str = ""
) -> Planned:
    """Plans one round under the writer lock, up to a proposed changeset."""
    workspace = session.workspace
    steps = Round(session, by=by, reason=reason, progress=progress)
    with writer(workspace, "plan", by):
        plan = run_step("choose corrections", steps.choose)
        if plan is None:
            return Planned(None)
        number = steps.failed_before(plan)
        repeated = number is not None
        if number is None:
            run_step("compute values", steps.values, plan)
            run_step("edit", steps.edit, plan)
            run_step("evaluate", steps.evaluate, plan)
            stored = run_step("store delta", steps.store, plan)
            number = run_step("propose changeset", steps.propose, plan, stored)
    with workspace.ledger().read() as work:
        return Planned(work.changeset(f"#{number}"), repeated)
