"""One writer per workspace at a time. It spares people collisions; what guards the ledger is its compare-and-swap."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

from filelock import FileLock, Timeout

from flows.errors import Refused
from flows.workspace import Workspace

PATIENCE_SECONDS = 10.0
DIED = "writer.died.json"
"""Where a writer finds who held the lock before it and died; `flows.reconcile` says it."""


@contextmanager
def writer(workspace: Workspace, doing: str, by: str, *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Holds the workspace's writer lock inside the block.

    Raises:
        Refused: If somebody else still holds it after `patience` seconds; the line says who.
    """
    workspace.state.mkdir(exist_ok=True)
    holder = workspace.state / "writer.json"
    lock = FileLock(workspace.state / "writer.lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise Refused(
            f"{_who(holder)} is writing to this workspace", "wait until it is done, then try again"
        ) from error
    try:
        if holder.exists():
            holder.replace(workspace.state / DIED)  # whoever wrote it did not come to the end
        said = {"doing": doing, "by": by, "since": workspace.now(), "pid": getpid()}
        holder.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        said = json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return "another process"
    return f"{said['by']} (`nse {said['doing']}`, process {said['pid']}, since {said['since']})"
