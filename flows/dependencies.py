"""What a revert entails, told before any work is done: what goes, what comes back, what is written again, what it costs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flows.draft import Plan
from flows.evidence import by_round
from flows.session import Session, request_of
from flows.values import value_store
from ledger.active import changes_between
from ledger.records import ActiveDelta, CaseResult, Correction, HeadMove, Shown
from ledger.status import CorrectionStatus, ModelState, Proposal, correction_statuses
from nse.contexts import read_contexts
from nse.editors import get_editor, read_settings
from nse.evaluation.run import probes_of
from nse.evaluation.suites import held_facts, read_suite
from nse.steps import facts_of_round
from nse.subjects import by_subject
from nse.values import value_keys

Mode = Literal["drop", "replay"]
"""How a revert goes about it: leave columns out and later deltas as they are, or solve the later rounds again without them."""


@dataclass(frozen=True, slots=True)
class StatusChange(Shown):
    """A correction whose status will be another one."""

    correction: Correction
    now: CorrectionStatus
    then: CorrectionStatus


@dataclass(frozen=True, slots=True)
class RoundAgain(Shown):
    """A round that is solved again: the changeset that wrote it first (None: a new one), and its number of corrections."""

    changeset: int | None
    corrections: int


@dataclass(frozen=True, slots=True)
class Cost(Shown):
    """What has to be computed.

    Attributes:
        values: Target states z that the cache lacks.
        solves: Layers that are solved, at most: rounds x layers x passes.
        prompts: Questions to head and candidate, at most: answers that the head gave before are not asked for again.
    """

    values: int
    solves: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Dependencies(Shown):
    """What a revert entails.

    Attributes:
        mode: drop or replay.
        head: The version that it starts from.
        goes_out: Corrections that go out of force.
        comes_back: Corrections that come back in force: what the former superseded, or what an earlier revert took.
        others: Every other correction whose status changes, such as a duplicate that will be pending.
        again: Corrections of the same subjects that stay in force and are written again.
        rounds: What is solved again, in order.
        cost: What has to be computed.
    """

    mode: str
    head: HeadMove
    goes_out: tuple[StatusChange, ...]
    comes_back: tuple[StatusChange, ...]
    others: tuple[StatusChange, ...]
    again: tuple[Correction, ...]
    rounds: tuple[RoundAgain, ...]
    cost: Cost

    def lines(self) -> list[str]:
        """The same in figures, a line each."""
        out, back, again = (len(found) for found in (self.goes_out, self.comes_back, self.again))
        written = sum(found.corrections for found in self.rounds)
        return [
            f"{_count(out, 'correction goes', 'corrections go')} out of force",
            f"{_count(back, 'correction comes', 'corrections come')} back in force",
            f"{_count(len(self.others), 'other changes', 'others change')} status",
            f"{_count(again, 'other', 'others')} of the same subjects written again",
            f"{_count(len(self.rounds), 'round', 'rounds')} to solve, of {_count(written, 'correction', 'corrections')}",
            f"{_count(self.cost.values, 'value z', 'values z')} to compute, at most "
            f"{_count(self.cost.solves, 'solve', 'solves')} and {_count(self.cost.prompts, 'prompt', 'prompts')}",
        ]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def dependencies(
    session: Session, state: ModelState, plan: Plan, *, after: Sequence[ActiveDelta], origins: Sequence[str] = ()
) -> Dependencies:
    """What a planned revert or consolidation entails.

    Args:
        session: The workspace's model: values are cached by the digest of it.
        state: What the ledger says.
        plan: The revert or consolidation.
        after: The deltas that stay or come back.
        origins: Of each round of the plan the delta that it stands for, by SHA-256; fewer where a round stands for none.
    """
    now = correction_statuses(state)
    then = correction_statuses(_applied(state, plan, after))
    changed = {identity for identity in now if now[identity] != then[identity]}
    went = {identity for identity in changed if now[identity] == "active"}
    came = {identity for identity in changed if then[identity] == "active"}
    subjects = {state.corrections[identity].fact[0] for identity in went | came}
    stay = {identity for identity in plan.corrections if then[identity] == "active"} - came
    again = {i for i in stay if plan.mode == "drop" or state.corrections[i].fact[0] in subjects}
    writers: dict[str | None, int] = {}
    for _, changeset in state.applied():
        for result in changeset.results:
            writers.setdefault(result.delta, changeset.number)
    numbers = [*(writers.get(sha256) for sha256 in origins), *([None] * (len(plan.rounds) - len(origins)))]

    def changes(chosen: Collection[str]) -> tuple[StatusChange, ...]:
        return tuple(StatusChange(c, now[c.id], then[c.id]) for c in _corrections(state, chosen))

    return Dependencies(
        mode=plan.mode or "",
        head=state.head,
        goes_out=changes(went),
        comes_back=changes(came),
        others=changes(changed - went - came),
        again=_corrections(state, again),
        rounds=tuple(RoundAgain(n, len(written)) for n, written in zip(numbers, plan.rounds, strict=True)),
        cost=_cost(session, state, plan, after),
    )


def _corrections(state: ModelState, chosen: Collection[str]) -> tuple[Correction, ...]:
    return tuple(correction for identity, correction in state.corrections.items() if identity in chosen)


def _applied(state: ModelState, plan: Plan, after: Sequence[ActiveDelta]) -> ModelState:
    """What the ledger would say if the plan were carried out, all that it writes edited, and applied."""
    new = [ActiveDelta(f"round {place}", "") for place in range(len(plan.rounds))]
    results = [
        CaseResult(identity, "edited", 0.0, 0.0, delta.sha256)
        for delta, written in zip(new, plan.rounds, strict=True)
        for identity in written
    ]
    made = Proposal(
        id="planned",
        number=0,
        kind=plan.kind,
        method="",
        parent=plan.parent,
        parent_version=plan.parent_version,
        candidate_version="",
        reason="",
        planned_by="",
        planned_at="",
        changes=changes_between(state.active(state.head), (*after, *new)),
        results=tuple(results),
        reverted=tuple(plan.reverted),
        gates=(),
    )
    move = replace(state.head, position=state.head.position + 1, changeset_id=made.id)
    return replace(
        state,
        changesets={**state.changesets, made.id: made},
        heads={**state.heads, move.position: move},
        contents={**state.contents, **{d.sha256: frozenset(w) for d, w in zip(new, plan.rounds, strict=True)}},
        _places={**{changeset.id: at.position for at, changeset in state.applied()}, made.id: move.position},
    )


def _cost(session: Session, state: ModelState, plan: Plan, after: Sequence[ActiveDelta]) -> Cost:
    params, path = session.workspace.params, session.workspace.path
    settings = read_settings(path(params.method.hparams), params.method.name).settings
    suite, needs = read_suite(path(params.suite)), get_editor(params.method.name).needs
    asked = [request_of(state.corrections[identity]) for identity in dict.fromkeys(plan.corrections)]
    held_by = state.active(state.head) if plan.kind == "consolidate" else after
    retained = by_round(state, held_by, frozenset(plan.retained))
    probes = probes_of(suite, asked, retained, tokenizer=session.editable.tokenizer)
    return Cost(
        values=_values_lacking(session, state, plan, after) if plan.rounds and "values" in needs else 0,
        solves=len(plan.rounds) * len(settings.layers) * settings.max_passes,
        prompts=2 * len({probe.prompt for probe in probes}),
    )


def _values_lacking(session: Session, state: ModelState, plan: Plan, after: Sequence[ActiveDelta]) -> int:
    """How many z's the rounds of the plan need and the cache lacks; those of one subject are computed together."""
    params, path, store = session.workspace.params, session.workspace.path, value_store(session.workspace)
    settings = read_settings(path(params.method.hparams), params.method.name).settings
    contexts = read_contexts(path(params.method.contexts))
    held = held_facts(read_suite(path(params.suite)))
    there = set(state.held(after))
    of_subject: dict[str, list[str]] = {}
    for identity, correction in state.corrections.items():
        of_subject.setdefault(correction.fact[0], []).append(identity)
    lacking: set[str] = set()
    for written in plan.rounds:
        requests = [request_of(state.corrections[identity]) for identity in written]
        subjects = dict.fromkeys(state.corrections[identity].fact[0] for identity in written)
        known = [identity for subject in subjects for identity in of_subject[subject] if identity in there]
        earlier = [request_of(state.corrections[identity]) for identity in known]
        facts = facts_of_round(session.editable, requests, earlier, settings)
        for group in by_subject(facts, held, joint=settings.one_z_per_subject):
            keys = value_keys(session.editable, facts, group, contexts, settings)
            if any(store.get(key) is None for key in keys):
                lacking |= set(keys)
        there |= set(written)
    return len(lacking)
