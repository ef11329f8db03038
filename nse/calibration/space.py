"""The space that is searched: settings in units that mean the same on every model, and the steps between them.

A learning rate is a share of |h| per step, lambda a share of what a key weighs against C0, alpha a share of the way to z. A model
that no one has tuned then starts where the others did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nse.hyperparameters import Hyperparameters


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings in relative units.

    Attributes:
        last: The last rewrite layer, where z is taken.
        count: Number of rewrite layers, ending there.
        step: |change of delta| in one step of Adam, as a share of |h|.
        clamp: Greatest |delta| as a share of |h|.
        steps: Most steps.
        loss_target: Loss at which z is done.
        decay: What |delta| = |h| adds to the loss, in nats; the published weight divides by |h| once more, and where |h| is
            small forbids z.
        protection: lambda as a share of k^T C0^-1 k (median over subjects): a key alone in its round is written to
            1 / (1 + protection).
        share: Share of a key measured on the subject alone.
        passes: Most passes over the layers.
        tolerance: alpha as a share of the median |z - h|.
        neurons: Share p of the activation that the chosen neurons reach.
        fact_token: Where a fact is written, as in `Hyperparameters`.
    """

    last: int
    count: int = 1
    step: float = 0.1
    clamp: float = 1.5
    steps: int = 30
    loss_target: float = 0.05
    decay: float = 0.0
    protection: float = 0.1
    share: float = 0.0
    passes: int = 2
    tolerance: float = 0.1
    neurons: float = 1.0
    fact_token: str = "subject_last"

    @property
    def place(self) -> tuple[str, int]:
        """Where z is taken: the kind of token, and the layer."""
        return self.fact_token, self.last

    @property
    def layers(self) -> tuple[int, ...]:
        """The rewrite layers, ascending."""
        return tuple(range(self.last - self.count + 1, self.last + 1))

    @property
    def values(self) -> "Candidate":
        """The same with all that z does not depend on at its default: candidates of equal `values` share their z's."""
        own = self.step, self.clamp, self.steps, self.loss_target, self.decay
        return Candidate(self.last, 1, *own, fact_token=self.fact_token)


@dataclass(frozen=True, slots=True)
class Scale:
    """What the relative units are relative to.

    Attributes:
        width: d_model.
        hidden: Median |h| where facts are written, by kind of token and layer.
        weight: Median k^T C0^-1 k of the keys there, in the same way.
    """

    width: int
    hidden: Mapping[tuple[str, int], float]
    weight: Mapping[tuple[str, int], float]


def settings_of(candidate: Candidate, scale: Scale, *, distance: float = 0.0) -> Hyperparameters:
    """A candidate in the units of the hyper-parameter files, to three digits.

    Args:
        candidate: The relative settings.
        scale: The model's own.
        distance: Median |z - h| under the base weights; alpha is relative to it.
    """
    return Hyperparameters(
        layers=candidate.layers,
        fact_token=candidate.fact_token,
        v_num_grad_steps=candidate.steps,
        v_lr=_digits(candidate.step * scale.hidden[candidate.place] / scale.width**0.5),
        v_weight_decay=_digits(candidate.decay * scale.hidden[candidate.place]),
        clamp_norm_factor=candidate.clamp,
        v_loss_target=candidate.loss_target,
        mom2_update_weight=_digits(candidate.protection * scale.weight.get(candidate.place, 1.0)),
        subject_share=candidate.share,
        neuron_threshold=candidate.neurons,
        alpha=_digits(candidate.tolerance * distance),
        max_passes=candidate.passes,
    )


LADDERS: dict[str, tuple[float, ...]] = {
    "protection": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "share": (0.0, 0.25, 0.5, 0.75),
    "count": (1, 2, 3, 4),
    "neurons": (0.7, 0.8, 0.9, 0.95, 1.0),
    "loss_target": (0.01, 0.02, 0.05, 0.1, 0.2),
    "clamp": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
    "decay": (0.0, 0.03, 0.1, 0.3),
    "step": (0.025, 0.05, 0.1, 0.2, 0.4),
    "steps": (20, 30, 45, 60),
}
"""Values of each setting, in the order in which the settings are varied: first those that leave the z's as they are."""
PASSES: tuple[tuple[int, float], ...] = ((1, 0.1), (2, 0.1), (2, 0.02), (3, 0.02))
"""(passes, tolerance), from the least to the most insistent."""
COORDINATES = (
    "protection",
    "share",
    "count",
    "passes",
    "neurons",
    "clamp",
    "loss_target",
    "step",
    "steps",
    "decay",
    "last",
)


def neighbour(
    candidate: Candidate, coordinate: str, direction: int, *, lasts: Mapping[str, tuple[int, ...]]
) -> Candidate | None:
    """The candidate one rung up (`direction` 1) or down (-1) a setting's ladder, or None past its end.

    Args:
        candidate: Where from.
        coordinate: One of `COORDINATES`.
        direction: 1 or -1.
        lasts: The last layers that may be tried where a fact is written, ascending; no rewrite layer lies below 0.
    """
    if coordinate == "share" and candidate.fact_token == "last":
        return None
    if coordinate == "passes":
        rung = PASSES.index((candidate.passes, candidate.tolerance)) + direction
        if not 0 <= rung < len(PASSES):
            return None
        return replace(candidate, passes=PASSES[rung][0], tolerance=PASSES[rung][1])
    ladder: tuple[float, ...] = lasts[candidate.fact_token] if coordinate == "last" else LADDERS[coordinate]
    rung = ladder.index(getattr(candidate, coordinate)) + direction
    if not 0 <= rung < len(ladder):
        return None
    value = ladder[rung]
    whole = coordinate in ("count", "steps", "last")
    moved = _with(candidate, coordinate, int(value) if whole else value)
    return moved if moved.layers[0] >= 0 else None


def _with(candidate: Candidate, coordinate: str, value: float) -> Candidate:
    changed: dict[str, float] = {coordinate: value}
    return replace(candidate, **changed)  # type: ignore[arg-type]


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
