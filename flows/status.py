"""The state of a workspace at a glance: its head, what waits for a person, how many corrections have which status."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from flows.workspace import Workspace
from ledger.records import HeadMove
from ledger.status import ChangesetStatus, Proposal, correction_statuses, read_state

WAITING = ("proposed", "approved", "gate-failed")


@dataclass(frozen=True, slots=True)
class Status:
    """The head, the changesets that wait for somebody, and the number of corrections by status."""

    head: HeadMove
    waiting: tuple[tuple[Proposal, ChangesetStatus], ...]
    corrections: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "head": self.head.to_dict(),
            "waiting": [{"number": c.number, "kind": c.kind, "status": s, "reason": c.reason} for c, s in self.waiting],
            "corrections": self.corrections,
        }


def read_status(workspace: Workspace) -> Status:
    """Reads the state of a workspace from its ledger."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
    now = workspace.now()
    waiting = tuple((c, s) for c in state.changesets.values() if (s := state.status(c, at=now)) in WAITING)
    return Status(state.head, waiting, dict(Counter(correction_statuses(state).values())))
