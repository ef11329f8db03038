"""The round: pending corrections become a proposed changeset. Each step takes and gives digests and paths only.

The plain path calls the steps one after another; the Prefect flows wrap each in a task (`flows.deploy`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from flows.bisect import Search, curable, narrowed_by, search, suspicion
from flows.checkpoints import keep_checkpoint
from flows.decide import approve_by_policy
from flows.draft import Draft, Plan, save_plan
from flows.errors import Refused
from flows.estimate import expected, in_words
from flows.evidence import Evidence, by_round, judge, provenance
from flows.lock import writer
from flows.progress import Progress, silent, under
from flows.reconcile import ARTIFACTS, reconcile
from flows.session import Session, request_of
from flows.values import choose_pending, compute_values, earlier_requests, second_moments, value_store
from ledger.active import changes_between
from ledger.records import ActiveDelta, CaseResult, Changeset, Correction
from ledger.status import changeset_status, open_proposals, read_state
from ledger.unit_of_work import UnitOfWork
from nse.consolidation import canonical
from nse.contexts import read_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor, read_settings
from nse.errors import DeltaError
from nse.evaluation.run import probes_of
from nse.evaluation.suites import held_facts, read_suite
from nse.factors import FactorStore
from nse.request import EditRequest

T = TypeVar("T")
WAITS = ("proposed", "approved")
_WHAT = {"consolidate": "consolidation"}
RunStep = Callable[..., Any]
"""Called as `run_step(name, function, *arguments)`; returns what the function returns."""


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

    def __init__(
        self,
        session: Session,
        *,
        by: str,
        reason: str = "",
        progress: Progress = silent,
        foretell: Callable[[str], None] | None = None,
    ) -> None:
        """Prepares a round that `by` answers for; `foretell` is told how long it will take, if that is of interest."""
        self.session, self.workspace = session, session.workspace
        self.by, self.reason, self.progress, self.foretell = by, reason, progress, foretell

    def choose(self) -> str | None:
        """Chooses pending corrections, one per fact, up to the batch size; None when there are none."""
        workspace = self.workspace
        with workspace.ledger().read() as work:
            state = read_state(work, workspace.model)
        chosen = choose_pending(state, workspace.params.round.batch_size)
        if not chosen:
            return None
        facts = {c.fact for c in chosen}
        active = state.active(state.head)
        in_force = state.in_force(active)
        kept = [c for i, c in state.corrections.items() if i in in_force and c.fact not in facts]
        plan = Plan(
            kind="edit",
            parent=state.head.changeset_id,
            parent_version=state.head.version,
            base_digest=workspace.params.model.digest,
            before=[delta.to_dict() for delta in active],
            after=[delta.to_dict() for delta in active],
            rounds=[[c.id for c in chosen]],
            retained=[c.id for c in kept],
            reverted=[],
            provenance=provenance(workspace),
        )
        return save_plan(workspace, plan)

    def carry_out(self, plan: str, run_step: RunStep) -> int:
        """Runs every step of a plan that was chosen; returns the number of the changeset that it proposes.

        If a round of edits fails its gates, what is proposed is the round without the corrections at fault, if they are found.
        """
        if self.foretell is not None and not Draft(self.workspace, plan).has("evidence"):
            self.foretell(in_words(self.expected(plan)))
        run_step("compute values", self.values, plan)
        run_step("edit", self.edit, plan)
        run_step("evaluate", self.evaluate, plan)
        smaller = self.narrow(plan, run_step)
        stored = run_step("store delta", self.store, smaller)
        number: int = run_step("propose changeset", self.propose, smaller, stored, plan)
        run_step("checkpoint", partial(keep_checkpoint, self.workspace))
        return number

    def expected(self, plan: str) -> dict[str, float]:
        """Seconds that the steps of a plan will take."""
        wanted, workspace = self._plan(plan), self.workspace
        with workspace.ledger().read() as work:
            state = read_state(work, workspace.model)
        probes = probes_of(
            read_suite(workspace.path(workspace.params.suite)),
            self._requests([i for i in wanted.corrections if i not in wanted.superseded]),
            by_round(state, _active(wanted.asked_of), frozenset(wanted.retained)),
            tokenizer=self.session.editable.tokenizer,
        )
        asked = [(wanted.parent_version, probes), (plan, probes)]  # no version is named like a plan: all is new there
        return expected(self.session, self._requests(wanted.corrections), asked)

    def narrow(self, plan: str, run_step: RunStep) -> str:
        """Finds the corrections that make a round fail its gates; returns the plan without them, or `plan` if there is none.

        Every trial has a draft of its own, so one that a crash interrupts is not made again. What was found is written to the
        draft of `plan`.
        """
        wanted, evidence = self._plan(plan), self._evidence(plan)
        solves, corrections = self.workspace.params.round.bisection_solves, wanted.corrections
        hopeless = evidence.gate_passed or not curable(evidence.gates, evidence.metrics)
        if wanted.kind != "edit" or hopeless or len(corrections) < 2 or not solves:
            return plan
        plans = {frozenset[str](): plan}

        def cures(left_out: Sequence[str]) -> bool:
            smaller = plans[frozenset(left_out)] = self._without(wanted, left_out)
            self.progress(
                f"search for what fails: without {len(left_out)} of {len(corrections)}", len(plans) - 1, solves
            )
            passed: bool = run_step(f"try without {len(left_out)} of {len(corrections)}", self.trial, smaller)
            return passed

        suspects = suspicion(evidence, {c.id: c.subject for c in self._corrections(corrections)})
        order = sorted(corrections, key=lambda identity: -suspects[identity])
        found = search(order, cures, solves=solves, suspects=suspects)
        smaller = plan if len(found.corrections) == len(corrections) else plans[frozenset(found.corrections)]
        with_it = {identity: plans[frozenset(found.corrections) - {identity}] for identity in found.at_fault}
        Draft(self.workspace, plan).write("search", Search.of(found, with_it, len(corrections)).to_dict())
        return smaller

    def trial(self, plan: str) -> bool:
        """Makes every step of a plan up to its evaluation; whether its gates pass."""
        self.values(plan)
        self.edit(plan)
        self.evaluate(plan)
        return self._evidence(plan).gate_passed

    def _without(self, wanted: Plan, left_out: Collection[str]) -> str:
        """Saves the plan of a round without some of its corrections; what these would have replaced is retained."""
        with self.workspace.ledger().read() as work:
            state = read_state(work, self.workspace.model)
        rest = [identity for identity in wanted.corrections if identity not in left_out]
        facts, in_force = {state.corrections[i].fact for i in rest}, state.in_force(_active(wanted.before))
        kept = [i for i, correction in state.corrections.items() if i in in_force and correction.fact not in facts]
        return save_plan(self.workspace, replace(wanted, rounds=[rest], retained=kept))

    def failed_before(self, plan: str) -> int | None:
        """Number of the changeset of this very plan that failed its gates, if there is one."""
        with self.workspace.ledger().read() as work:
            number = work.planned(self.workspace.model, plan)
            failed = number is not None and changeset_status(work, work.changeset(f"#{number}")) == "gate-failed"
        return number if failed else None

    def values(self, plan: str) -> int:
        """Computes the target states z that the cache lacks; returns how many corrections have theirs now."""
        wanted = self._plan(plan)
        for place, corrections in enumerate(wanted.rounds):
            before = [i for earlier in wanted.rounds[:place] for i in earlier]
            requests = canonical(self._requests(corrections))
            earlier = earlier_requests(self.workspace, _active(wanted.after), requests, before)
            compute_values(self.session, requests, earlier=earlier, progress=self.progress)
        return len(wanted.corrections)

    def edit(self, plan: str) -> dict[str, str]:
        """Writes the corrections on top of the head, a delta for each round; returns the status of each."""
        draft, wanted = Draft(self.workspace, plan), self._plan(plan)
        statuses: dict[str, str] = {}
        for place, corrections in enumerate(wanted.rounds):
            if not draft.has(f"results-{place}"):
                self._edit(draft, wanted, place, corrections)
            statuses |= {case["case_id"]: case["status"] for case in draft.read(f"results-{place}")}
        return statuses

    def _edit(self, draft: Draft, wanted: Plan, place: int, corrections: list[str]) -> None:
        method, path = self.workspace.params.method, self.workspace.path
        requests, before = canonical(self._requests(corrections)), _active(wanted.after)
        done = [case for earlier in range(place) for case in draft.read(f"results-{earlier}")]
        written = [case["case_id"] for case in done if case["status"] != "skipped"]
        settings = read_settings(path(method.hparams), method.name).settings
        context = EditContext(
            hyperparameters=settings,
            second_moments=second_moments(self.session),
            contexts=read_contexts(path(method.contexts)),
            previous=(*self._deltas(before), *(Delta.load(draft.delta(i)) for i in range(place))),
            earlier=earlier_requests(self.workspace, before, requests, written),
            held=held_facts(read_suite(path(self.workspace.params.suite))),
            values=value_store(self.workspace),
            factors=FactorStore(self.workspace.state / "factors"),
            trained=path(method.trained) if method.trained else None,
            seed=method.seed,
            progress=under("edit", self.progress),
        )
        result = get_editor(method.name).edit(self.session.editable, requests, context)
        result.delta.save(draft.delta(place))
        names = ("case_id", "status", "residual_before", "residual_after")
        order = {identity: number for number, identity in enumerate(corrections)}
        cases = sorted(result.cases, key=lambda case: order[case.case_id])
        draft.write(f"results-{place}", [{name: getattr(case, name) for name in names} for case in cases])

    def evaluate(self, plan: str) -> str:
        """Runs the suite on head and candidate; returns the candidate's version."""
        draft = Draft(self.workspace, plan)
        if not draft.has("evidence"):
            wanted = self._plan(plan)
            after = _active(wanted.after)
            with self.workspace.ledger().read() as work:
                state = read_state(work, self.workspace.model)
            new = tuple(Delta.load(draft.delta(place)) for place in range(len(wanted.rounds)))
            evidence = judge(
                self.session,
                head=self.session.deltas(_active(wanted.before)),
                candidate=(*self._deltas(after), *new),
                requests=self._requests([i for i in wanted.corrections if i not in wanted.superseded]),
                retained=by_round(state, _active(wanted.asked_of), frozenset(wanted.retained)),
                progress=self.progress,
            )
            draft.write("evidence", evidence.to_json())
        return str(draft.read("evidence")["candidate_version"])

    def store(self, plan: str) -> list[dict[str, str] | None]:
        """Puts the deltas where they are safe; returns path and SHA-256 of each, None where no correction was written."""
        draft = Draft(self.workspace, plan)
        return [self._store(draft, place) for place in range(len(self._plan(plan).rounds))]

    def _store(self, draft: Draft, place: int) -> dict[str, str] | None:
        if all(case["status"] == "skipped" for case in draft.read(f"results-{place}")):
            return None
        stored = self.session.store.put(draft.delta(place), ARTIFACTS)
        return {"path": stored.path, "sha256": stored.sha256}

    def propose(self, plan: str, stored: list[dict[str, str] | None], whole: str | None = None) -> int:
        """Writes the changeset with all its evidence to the ledger; returns its number.

        Args:
            plan: What is proposed.
            stored: Its deltas, as `store` gave them.
            whole: The plan that it is a part of, if that one failed its gates (`narrow`).

        Raises:
            Refused: If the head moved since the round began.
        """
        draft, wanted, model = Draft(self.workspace, plan), self._plan(plan), self.workspace.model
        evidence = self._evidence(plan)
        new = tuple(ActiveDelta(delta["sha256"], delta["path"]) for delta in stored if delta)
        changeset = Changeset(
            model=model,
            kind=wanted.kind,
            mode="replay" if wanted.mode == "replay" else "drop" if wanted.mode == "drop" else None,
            method=self.workspace.params.method.name,
            parent=wanted.parent,
            parent_version=wanted.parent_version,
            candidate_version=evidence.candidate_version,
            base_digest=wanted.base_digest,
            plan_digest=plan,
            changes=changes_between(_active(wanted.before), (*_active(wanted.after), *new)),
            results=tuple(
                CaseResult(
                    c["case_id"],
                    c["status"],
                    c["residual_before"],
                    c["residual_after"],
                    delta["sha256"] if delta and c["status"] != "skipped" else None,
                )
                for place, delta in enumerate(stored)
                for c in draft.read(f"results-{place}")
            ),
            reverted=(*wanted.reverted, *self._lost(draft, wanted)),
            metrics=evidence.metrics,
            gates=evidence.gates,
            cases=evidence.cases,
            provenance=wanted.provenance | evidence.warnings,
            reason=self.reason or f"{_WHAT.get(wanted.kind, 'round')} of {len(wanted.corrections)} corrections",
            planned_by=self.by,
            planned_at=self.workspace.now(),
        )
        if whole is not None and Draft(self.workspace, whole).has("search"):
            changeset = self._narrowed(changeset, whole)
        with self.workspace.ledger().begin() as work:
            if work.head(model).changeset_id != wanted.parent:
                raise Refused(
                    "the head moved while the round was planned; nothing was proposed", "run `nse plan` again"
                )
            self._check_alone(work, plan, wanted)
            proposed = work.add_changeset(changeset)
            approve_by_policy(self.workspace, work, proposed)
        return proposed.number or 0

    def _lost(self, draft: Draft, wanted: Plan) -> tuple[str, ...]:
        """Corrections that were in force, and that a consolidation could not write: they go out of force."""
        if wanted.kind != "consolidate":
            return ()
        return tuple(case["case_id"] for case in draft.read("results-0") if case["status"] == "skipped")

    def _narrowed(self, changeset: Changeset, whole: str) -> Changeset:
        """The changeset with what the search in its whole round found: who was left out, on what evidence."""
        draft = Draft(self.workspace, whole)
        found = Search(**draft.read("search"))
        judged = {identity: self._evidence(plan) for identity, plan in found.with_it.items()}
        tried = {case["case_id"]: case for case in draft.read("results-0")}
        results = tuple(
            CaseResult(i, "skipped", tried[i]["residual_before"], tried[i]["residual_after"]) for i in found.with_it
        )
        return narrowed_by(changeset, found, judged, results)

    def _check_alone(self, work: UnitOfWork, plan: str, wanted: Plan) -> None:
        """Checks that nobody else, on another machine say, has proposed this meanwhile."""
        state = open_proposals(work, self.workspace.model)
        same, written = work.planned(self.workspace.model, plan), set(wanted.corrections)
        for other in state.changesets.values():
            touched = wanted.kind == "edit" and not written.isdisjoint(other.correction_ids)
            if state.status(other) in WAITS and (other.number == same or touched):
                problem = f"{other.planned_by} proposed changeset #{other.number} meanwhile, at {other.planned_at}"
                raise Refused(f"{problem}; nothing was proposed", "decide about that one")

    def open_before(self, plan: str) -> int | None:
        """Number of the changeset of this very plan that waits, if there is one: from a run that died after it."""
        with self.workspace.ledger().read() as work:
            number = work.planned(self.workspace.model, plan)
            waits = number is not None and changeset_status(work, work.changeset(f"#{number}")) in WAITS
        return number if waits else None

    def _plan(self, plan: str) -> Plan:
        return Plan(**Draft(self.workspace, plan).read("plan"))

    def _evidence(self, plan: str) -> Evidence:
        return Evidence.from_json(Draft(self.workspace, plan).read("evidence"))

    def _deltas(self, active: tuple[ActiveDelta, ...]) -> tuple[Delta, ...]:
        """The deltas that stay in force, less what is dropped of them.

        Raises:
            Refused: If a method wrote the corrections of a round together, so that some of them cannot be dropped.
        """
        try:
            return self.session.deltas(active)
        except DeltaError as error:
            if all(self.session.delta(delta.sha256, delta.path).separable for delta in active if delta.dropped):
                raise
            problem = "some corrections of a round are to be dropped, and its method wrote all of them together"
            raise Refused(problem, "revert with --mode replay, or the whole round") from error

    def _corrections(self, ids: list[str]) -> list[Correction]:
        with self.workspace.ledger().read() as work:
            return [work.correction(identity) for identity in ids]

    def _requests(self, ids: list[str]) -> list[EditRequest]:
        return [request_of(correction) for correction in self._corrections(ids)]


def _active(plain: list[dict[str, Any]]) -> tuple[ActiveDelta, ...]:
    return tuple(ActiveDelta(d["sha256"], d["path"], tuple(d["dropped"])) for d in plain)


def run_round(
    session: Session,
    *,
    by: str,
    run_step: RunStep = call_directly,
    progress: Progress = silent,
    reason: str = "",
    foretell: Callable[[str], None] | None = None,
) -> Planned:
    """Plans one round under the writer lock, up to a proposed changeset; `foretell` as for `Round`."""
    workspace = session.workspace
    steps = Round(session, by=by, reason=reason, progress=progress, foretell=foretell)
    with writer(workspace, "plan", by):
        run_step("reconcile", partial(reconcile, workspace))
        plan = run_step("choose corrections", steps.choose)
        if plan is None:
            return Planned(None)
        number = steps.failed_before(plan)
        repeated = number is not None
        if number is None:
            number = steps.carry_out(plan, run_step)
    with workspace.ledger().read() as work:
        return Planned(work.changeset(f"#{number}"), repeated)
