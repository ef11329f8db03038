"""The figures of the version in force as files that DVC compares between Git revisions: `dvc metrics diff`, `dvc plots diff`.

They are made of the ledger alone and hold no text of any correction. Who wants them otherwise made asks the ledger.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from flows.errors import FlowError
from flows.git import commit
from flows.workspace import Workspace
from ledger.errors import LedgerError
from ledger.records import Changeset, HeadMove, Metric
from ledger.repository import parts_of
from ledger.status import read_state
from ledger.unit_of_work import UnitOfWork
from ledger.views import corrections_of
from nse.evaluation.retention import Kept, wilson

LOG = logging.getLogger(__name__)
VERSIONS, RETENTION, DELTA_NORM = "plots/versions.json", "plots/retention.json", "plots/delta_norm.json"
NORM = "delta_norm."
"""What the names of metrics begin with that say how far the edits moved one layer, relative to its weight."""
SHARES = tuple(f"{kind}_generation" for kind in ("efficacy", "generalization", "specificity", "retention", "untouched"))
"""What is plotted version by version: shares of right answers by free generation."""


def metrics_path(model: str) -> str:
    """Where the metrics of a model are, relative to its workspace; `metrics/baseline.json` is a stage's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-") or "model"
    return f"metrics/{name if name != 'baseline' else 'baseline-model'}.json"


def declared(model: str) -> dict[str, Any]:
    """What `dvc.yaml` says of these files, beside its stages."""

    def plot(file: str, x: str, y: list[str], **more: str) -> dict[str, Any]:
        return {"x": x, "y": {file: y}, **more}

    shares, ratio = list(SHARES), ["perplexity_ratio"]
    per_cent = {"x_label": "version", "y_label": "share of right answers"}
    by_age = {"x_label": "age in versions", "y_label": "share still answered"}
    return {
        "metrics": [metrics_path(model)],
        "plots": [
            {"metrics by version": plot(VERSIONS, "version", shares, title="Answers by version", **per_cent)},
            {"perplexity by version": plot(VERSIONS, "version", ratio, title="Perplexity, against the base model")},
            {"retention by age": plot(RETENTION, "age", ["low", "kept", "high"], title="Retention by age", **by_age)},
            {"delta norm by layer": plot(DELTA_NORM, "layer", ["norm"], title="Edits by layer, against its weight")},
        ],
    }


def keep_metrics(workspace: Workspace) -> bool:
    """Writes the files of the version in force and commits them to Git; returns whether that changed anything.

    The ledger holds all of it already, so files that cannot be kept are a warning: the next version's hold these figures too.
    """
    try:
        return write_metrics(workspace)
    except (LedgerError, FlowError, OSError) as error:
        LOG.warning("no metrics were kept in Git, the next version's hold them too: %s", error)
        return False


def write_metrics(workspace: Workspace) -> bool:
    """Writes the files of the version in force and commits them; again without news, it changes nothing.

    Raises:
        LedgerError: If the ledger cannot be read.
        FlowError: If Git refuses.
        OSError: If a file cannot be written.
    """
    with workspace.ledger().read() as work:
        files = metrics_files(work, workspace.model)
        position = work.head(workspace.model).position
    if not files:
        return False
    for name, text in files.items():
        path = workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return commit(workspace.root, f"Metrics of v{position}", *files)


def metrics_files(work: UnitOfWork, model: str) -> dict[str, str]:
    """The texts of the files by their paths, for the version in force; none for the base model, which no round evaluated."""
    head = work.head(model)
    if head.changeset_id is None:
        return {}
    changeset = work.changeset(head.changeset_id)
    figures = of_candidate(changeset.metrics)
    norms = [{"layer": _layer(n.removeprefix(NORM)), "norm": v} for n, v in figures.items() if n.startswith(NORM)]
    found = {
        metrics_path(model): {"version": head.position, "changeset": changeset.number, **figures},
        VERSIONS: _versions(work, work.heads(model)),
        RETENTION: [asdict(age) for age in retention_by_age(work, changeset)],
        DELTA_NORM: norms,
    }
    return {name: json.dumps(value, indent=1, allow_nan=False) + "\n" for name, value in found.items()}


def _layer(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _versions(work: UnitOfWork, heads: list[HeadMove]) -> list[dict[str, Any]]:
    """One row for each version: DVC plots a field that some rows lack only if they say so."""
    ids = {move.changeset_id: move.position for move in heads if move.changeset_id is not None}
    metrics = parts_of(work.connection, Metric, ids)
    rows = []
    for identity, position in ids.items():
        figures = of_candidate(metrics.get(identity, ()))
        rows.append({"version": position, **{name: figures.get(name) for name in (*SHARES, "perplexity_ratio")}})
    return rows


def of_candidate(metrics: Iterable[Metric]) -> dict[str, float | None]:
    """Metrics by name; one that is no finite number, which JSON cannot say, is None."""
    return {m.name: m.value if math.isfinite(m.value) else None for m in metrics if m.phase == "candidate"}


def retention_by_age(work: UnitOfWork, changeset: Changeset) -> tuple[Kept, ...]:
    """What a changeset's evaluation says of the corrections that were in force, youngest first; its own have the age 0.

    A correction is kept if the candidate answers it by free generation.
    """
    ages = _ages(work, changeset)
    own = None if changeset.kind == "consolidate" else 0  # what it writes has an age
    asked: dict[int, list[bool]] = {}
    for case in changeset.cases:
        age = own if case.kind == "efficacy" else ages.get(case.case_id) if case.kind == "retention" else None
        if case.phase == "candidate" and age is not None:
            asked.setdefault(age, []).append(case.passed)
    return tuple(_kept(age, passed) for age, passed in sorted(asked.items()))


def _kept(age: int, passed: list[bool]) -> Kept:
    low, high = wilson(sum(passed), len(passed))
    return Kept(age, len(passed), sum(passed) / len(passed), low, high)


def _ages(work: UnitOfWork, changeset: Changeset) -> Mapping[str, int]:
    """For how many versions each correction that was asked for again has been in force, that of the changeset included."""
    asked = {case.case_id for case in changeset.cases if case.kind == "retention"}
    corrections = corrections_of(work, asked).values()
    whole = any(correction.erased for correction in corrections)  # it has no subject to ask for
    subjects = None if whole else {correction.subject for correction in corrections}
    stretches = read_state(work, changeset.model, subjects=subjects).stretches()
    before = work.move_of(changeset.parent) if changeset.parent else None
    position = before.position if before else 0
    held = {
        identity: stretch.start
        for identity in asked
        for stretch in stretches.get(identity, ())
        if stretch.start <= position and (stretch.end is None or position < stretch.end)
    }
    return {identity: position + 1 - start for identity, start in held.items()}
