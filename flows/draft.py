"""Drafts: the working files of a round between its steps, one folder per plan, named by the digest of all its inputs.

A step that finds its own result here, from a run that was killed, does not do its work again.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.workspace import Workspace
from ledger.records import Kind, canonical_json, digest_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round will do.

    Attributes:
        kind: What kind of changeset it makes.
        parent_version: The head it starts from.
        base_digest: The base model.
        before: The active deltas of the head, as plain values.
        after: The active deltas that stay, as plain values; a round adds its own.
        rounds: Ids of what is to be written, in order, for each delta to be made; an edit and a consolidation make one.
        retained: Ids of what has to stay.
        reverted: Ids of what goes out of force.
        provenance: Every other input.
        parent: The changeset that led to the head it starts from; None for the base.
        mode: How a revert goes about it: drop or replay.
        superseded: Of what is to be written, ids that something else in force supersedes: the evaluation does not ask for them.
    """

    kind: Kind
    parent_version: str
    base_digest: str
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    rounds: list[list[str]]
    retained: list[str]
    reverted: list[str]
    provenance: dict[str, str]
    parent: str | None = None
    mode: str | None = None
    superseded: list[str] = field(default_factory=list)

    @property
    def corrections(self) -> list[str]:
        """Ids of all that is to be written, in order."""
        return [identity for written in self.rounds for identity in written]

    @property
    def asked_of(self) -> list[dict[str, Any]]:
        """The active deltas whose rounds `retained` is divided into: a consolidation leaves none of them."""
        return self.before if self.kind == "consolidate" else self.after

    def digest(self) -> str:
        """Names the plan by everything in it."""
        return digest_of(self)


class Draft:
    """The folder of one plan."""

    def __init__(self, workspace: Workspace, plan: str) -> None:
        """Names the folder; `plan` is the digest."""
        self.folder = workspace.state / "drafts" / plan

    def delta(self, place: int) -> Path:
        """Where the delta of a round of the plan is before it is stored."""
        return self.folder / f"delta-{place}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the part is there, whole."""
        return (self.folder / f"{name}.json").is_file()

    def read(self, name: str) -> Any:
        """A part that `write` wrote."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def write(self, name: str, value: Any) -> None:
        """Writes a part so that it is there as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{name}.{os.getpid()}"
        partial.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True), encoding="utf-8")
        partial.replace(self.folder / f"{name}.json")


def save_plan(workspace: Workspace, plan: Plan) -> str:
    """Writes the plan to its draft and returns its digest."""
    digest = plan.digest()
    Draft(workspace, digest).write("plan", json.loads(canonical_json(plan)))
    return digest
