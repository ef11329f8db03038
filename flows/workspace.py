"""A workspace: the Git + DVC folder of one model, its ledger and its artifacts. Opens it; `flows.init` makes one."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.config import PARAMS, Params, read_params
from flows.errors import FlowError
from flows.git import identity
from ledger.artifacts import DvcStore
from ledger.unit_of_work import Ledger, open_ledger

LEDGER_URL = "NSE_LEDGER_URL"
ANY_CLOCK = "NSE_ANY_CLOCK"
"""Set to 1, it lets events be recorded that lie before the last one."""


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where everything of one model is.

    Attributes:
        root: The folder that holds `params.yaml`, absolute.
        params: What it says.
        clock: Tells the time, in UTC.
    """

    root: Path
    params: Params
    clock: Callable[[], datetime] = field(default=utc_now, compare=False)

    @property
    def model(self) -> str:
        """Name of the model in the ledger."""
        return self.params.model.name

    @property
    def model_path(self) -> Path:
        """Folder of the base model."""
        return self.path(self.params.model.path)

    @property
    def second_moment(self) -> Path:
        """The second-moment file of the base model."""
        return self.path(self.params.method.second_moment)

    @property
    def state(self) -> Path:
        """Working files that may be deleted at any time when nothing runs: drafts, cached values, locks."""
        return self.root / ".nse"

    def path(self, text: str) -> Path:
        """A path of `params.yaml`, absolute."""
        return self.root / text

    def ledger(self) -> Ledger:
        """Opens the ledger that `NSE_LEDGER_URL` names, or else `ledger.db`."""
        return open_ledger(ledger_url(self.root), any_clock=os.environ.get(ANY_CLOCK) == "1")

    def store(self) -> DvcStore:
        """The store of delta artifacts."""
        return DvcStore(self.root)

    def now(self) -> str:
        """The time as the ledger writes it."""
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def person(self, by: str | None) -> str:
        """The person that acts: `by`, or whom git's configuration names.

        Raises:
            FlowError: If both name nobody.
        """
        found = (by or "").strip() or identity(self.root)
        if not found:
            raise FlowError("nobody is named for the ledger", "give --by NAME, or set git config user.name")
        return found


def ledger_url(root: Path) -> str:
    """URL of the ledger of the workspace at `root`."""
    return os.environ.get(LEDGER_URL) or f"sqlite:///{root / 'ledger.db'}"


def open_workspace(folder: Path | None = None) -> Workspace:
    """Opens the workspace at `folder`, or the one that the current folder is in.

    Raises:
        FlowError: If there is none, or its `params.yaml` is wrong.
    """
    start = (folder or Path.cwd()).resolve()
    candidates = (start,) if folder else (start, *start.parents)
    root = next((place for place in candidates if (place / PARAMS).is_file()), None)
    if root is None:
        raise FlowError(
            f"{start} is not in a workspace (no {PARAMS})", "make one with `nse init DIR`, or give --workspace"
        )
    return Workspace(root, read_params(root / PARAMS))
