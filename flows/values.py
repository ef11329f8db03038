"""Target states z, second moments and whatever else an editor needs beside its requests: computed ahead, cached, read."""

from collections.abc import Collection, Sequence

from flows.errors import FlowError
from flows.progress import Progress, silent
from flows.session import Session, request_of
from flows.workspace import Workspace
from ledger.records import ActiveDelta, Correction, subject_key
from ledger.status import ModelState, correction_statuses, read_state
from nse.contexts import read_contexts
from nse.editors import get_editor, read_settings
from nse.evaluation.suites import held_facts, read_suite
from nse.request import EditRequest
from nse.statistics import SecondMoments, read_second_moments
from nse.steps import facts_of_round
from nse.values import ValueStore, values_for


def second_moments(session: Session) -> SecondMoments:
    """C0 of the workspace's model, if its method uses it.

    Raises:
        FlowError: If the file was made for another model.
        StatisticsError: If it is malformed.
    """
    if "second_moments" not in get_editor(session.workspace.params.method.name).needs:
        return SecondMoments({}, {})
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


def earlier_requests(
    workspace: Workspace,
    active: tuple[ActiveDelta, ...],
    requests: Sequence[EditRequest],
    written: Collection[str] = (),
) -> tuple[EditRequest, ...]:
    """The requests of all corrections in the weights that a round has to know, in the order of filing.

    These are the corrections of the subjects of `requests`, and all of which one supersedes another, as far as their columns are
    in `active` or earlier rounds of the same plan have `written` them. Of an erased one nothing is left to give.
    """
    subjects = {request.subject for request in requests}
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model, subjects=subjects, corrected_again=True)
    there = state.held(active) | set(written)
    replaced = there - state.not_superseded(there)
    again = replaced.union(*(state.replacers[identity] & there for identity in replaced))
    about = {subject_key(subject) for subject in subjects}
    return tuple(
        request_of(correction)
        for identity, correction in state.corrections.items()
        if identity in there
        and not correction.erased
        and (identity in again or subject_key(correction.subject) in about)
    )


def compute_values(
    session: Session,
    requests: list[EditRequest],
    *,
    earlier: tuple[EditRequest, ...],
    progress: Progress = silent,
) -> int:
    """Computes and caches z for `requests` and the `earlier` corrections of their subjects; how many have theirs now.

    A method that knows no z has nothing to compute ahead.
    """
    method, path = session.workspace.params.method, session.workspace.path
    if "values" not in get_editor(method.name).needs:
        return 0
    settings = read_settings(path(method.hparams), method.name).settings
    values_for(
        session.editable,
        facts_of_round(session.editable, requests, earlier, settings),
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
        active = work.active(workspace.model, work.head(workspace.model).position)
    requests = [request_of(correction) for correction in pending]
    return compute_values(session, requests, earlier=earlier_requests(workspace, active, requests), progress=progress)


def pending_corrections(workspace: Workspace) -> list[Correction]:
    """Every correction that waits for a round, one per fact."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
    return choose_pending(state, len(state.corrections))


def choose_pending(state: ModelState, most: int) -> list[Correction]:
    """The first corrections that wait for a round, one per fact."""
    statuses = correction_statuses(state)
    facts: dict[tuple[str, str], Correction] = {}
    for identity, correction in state.corrections.items():
        if statuses[identity] == "pending":
            facts.setdefault(correction.fact, correction)
    return list(facts.values())[:most]
