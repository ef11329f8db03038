"""What versions and corrections do to single weights: norms of differences, and contributions to a neuron."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flows.errors import FlowError
from flows.progress import Progress, silent
from flows.session import Session
from ledger.records import ActiveDelta, Correction, HeadMove
from ledger.views import corrections_of, resolve_version
from nse.delta import Delta, LayerDelta
from nse.patch import compose


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """How far two versions are apart in one weight.

    Attributes:
        name: The weight's parameter name.
        layer: Its layer; None if its name has no number.
        relative: ||W_b - W_a|| / ||W_base||, Frobenius norms, of the weights as they are in force (rounded).
    """

    name: str
    layer: int | None
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {"weight": self.name, "layer": self.layer, "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Touch:
    """What a correction adds to the weights that go out of one neuron.

    Attributes:
        correction: The correction.
        delta: SHA-256 of the delta that holds its columns.
        norm: Euclidean norm of the part of the neuron's column of the weight (d_out,) that its columns make.
        share: `norm` as a share of the whole contribution's norm over all neurons (Frobenius).
    """

    correction: Correction
    delta: str
    norm: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "correction": self.correction.to_dict(),
            "delta": self.delta,
            "norm": self.norm,
            "share": self.share,
        }


def weight_diffs(session: Session, a: HeadMove, b: HeadMove, *, progress: Progress = silent) -> tuple[WeightDiff, ...]:
    """Composes two versions and compares every weight that either of them rewrites, by name.

    Raises:
        ArtifactError: If a delta cannot be had.
    """
    editable, workspace = session.editable, session.workspace
    with workspace.ledger().read() as work:
        active = [work.active(workspace.model, move.position) for move in (a, b)]
    old, new = (compose(editable, session.deltas(deltas), progress=progress) for deltas in active)
    base = {name: editable.base_tensors[name].double().cpu() for name in old.keys() | new.keys()}
    found = []
    for name in sorted(base, key=lambda name: (layer_of(name) or 0, name)):
        difference = new.get(name, base[name]).double() - old.get(name, base[name]).double()
        found.append(WeightDiff(name, layer_of(name), float(difference.norm() / base[name].norm())))
    return tuple(found)


def touched(
    session: Session, layer: int, neuron: int | None = None, *, at: str = "head", progress: Progress = silent
) -> tuple[Touch, ...]:
    """Returns the corrections in a version whose columns change a neuron's outgoing weights in a layer, strongest first.

    Reads the delta files, not the model.

    Args:
        session: The workspace.
        layer: Number of the layer.
        neuron: Index of an input of the rewritten weight, in [0, d_in); None: the whole weight.
        at: The version, as `ledger.views.resolve_version` reads it.
        progress: Called with deltas done.

    Raises:
        FlowError: If no delta rewrites a weight of the layer, or it has no such neuron.
        ArtifactError: If a delta cannot be had.
    """
    workspace = session.workspace
    with workspace.ledger().read() as work:
        active = work.active(workspace.model, resolve_version(work, workspace.model, at).position)
    norms: list[tuple[str, str, float, float]] = []
    layers: set[int] = set()
    for done, (entry, delta) in enumerate(_opened(session, active), start=1):
        layers |= {number for name in delta.layers if (number := layer_of(name)) is not None}
        for name, factors in delta.layers.items():
            if layer_of(name) == layer:
                norms += ((case, entry.sha256, *norm) for case, norm in _contributions(delta, factors, neuron, name))
        progress("read deltas", done, len(active))
    if layer not in layers:
        known = ", ".join(map(str, sorted(layers))) or "none"
        raise FlowError(f"no delta in force rewrites a weight of layer {layer}", f"rewritten layers: {known}")
    with workspace.ledger().read() as work:
        corrections = corrections_of(work, {case for case, *_ in norms})
    strongest = sorted(norms, key=lambda found: (-found[2], found[0]))
    return tuple(
        Touch(corrections[case], sha256, norm, norm / whole if whole else 0.0)
        for case, sha256, norm, whole in strongest
    )


def _opened(session: Session, active: Sequence[ActiveDelta]) -> Iterator[tuple[ActiveDelta, Delta]]:
    """Each active delta, less what is dropped of it; one at a time, so that a long history fits in memory."""
    for entry in active:
        yield entry, Delta.load(session.store.fetch(entry.path, entry.sha256)).without(entry.dropped)


def _contributions(
    delta: Delta, factors: LayerDelta, neuron: int | None, name: str
) -> list[tuple[str, tuple[float, float]]]:
    """Per correction the norm of what its columns add at a neuron, and of all that they add; those that add nothing left out."""
    width = factors.right.shape[1]
    if neuron is not None and not 0 <= neuron < width:
        raise FlowError(f"{name} has no neuron {neuron}", f"give one from 0 to {width - 1}")
    found = []
    for place, case in enumerate(delta.case_ids):
        columns = factors.case_index == place
        left, right = factors.left[:, columns].double(), factors.right[columns].double()  # (d_out, c), (c, d_in)
        # ||left @ right||_F without the (d_out, d_in) product
        whole = float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
        norm = whole if neuron is None else float(torch.linalg.vector_norm(left @ right[:, neuron]))
        if norm > 0:
            found.append((case, (norm, whole)))
    return found


def layer_of(name: str) -> int | None:
    """The layer of a weight: the first number in its parameter name, as every transformers model has it."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found.group(1)) if found else None
