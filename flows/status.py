"""The state of a workspace at a glance: its head, what waits for a person, how many corrections have which status."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from flows.workspace import Workspace
from ledger.records import Changeset, HeadMove
from ledger.status import ChangesetStatus, correction_statuses, read_state

WAITING = ("proposed", "approved", "gate-failed")


@dataclass(frozen=True, slots=True)
class Status:
    """The head, the changesets that wait for somebody, and the number of corrections by status."""

    head: HeadMove
    waiting: tuple[tuple[Changeset, ChangesetStatus], ...]
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
        head = work.head(workspace.model)
        state = read_state(work, workspace.model)
    waiting = tuple((c, s) for c in state.changesets.values() if (s := state.status(c)) in WAITING)
    return Status(head, waiting, dict(Counter(correction_statuses(state).values())))
