"""The space that is searched: settings in units that mean the same on every model, and the steps between them.

A learning rate is a share of |h| per step, lambda a share of what a key weighs against C0, alpha a share of the way to z. A model
that no one has tuned then starts where the others did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
        ending: What z makes the model say after a target.
        contexts: In which contexts z is optimised, as `value_contexts` of `Hyperparameters`.
        decay: What |delta| = |h| adds to the loss, in nats; the published weight divides by |h| once more, and where |h| is
            small forbids z.
        protection: lambda as a share of k^T C0^-1 k (median over subjects): a key alone in its round is written to
            1 / (1 + protection).
        share: Share of a key measured on the subject alone.
        known: Weight of the held facts' keys.
        passes: Most passes over the layers.
        tolerance: alpha as a share of the median |z - h|.
        neurons: Share p of the activation that the chosen neurons reach.
        fact_token: Where a fact is written, as in `Hyperparameters`.
    """

    last: int
    count: int = 1
    step: float = 0.1
    clamp: float = 1.5
    steps: int = 25
    loss_target: float = 0.05
    ending: str = ""
    contexts: str = "all"
    decay: float = 0.0
    protection: float = 0.1
    share: float = 0.0
    known: float = 0.0
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
        default = Candidate(self.last)
        return replace(self, **{name: getattr(default, name) for name in AFTER_VALUES})


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
        target_ending=candidate.ending,
        value_contexts=candidate.contexts,
        mom2_update_weight=_digits(candidate.protection * scale.weight.get(candidate.place, 1.0)),
        subject_share=candidate.share,
        known_keys_weight=candidate.known,
        neuron_threshold=candidate.neurons,
        alpha=_digits(candidate.tolerance * distance),
        max_passes=candidate.passes,
    )


LADDERS: dict[str, tuple[Any, ...]] = {
    "protection": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.75, 1.5, 3.0, 6.0),
    "share": (0.0, 0.3, 0.6, 0.8),
    "count": (1, 2, 3, 4, 5, 6),
    "known": (0.0, 1.0, 3.0, 10.0),
    "neurons": (0.7, 0.8, 0.9, 0.95, 1.0),
    "step": (0.025, 0.05, 0.1, 0.2, 0.4),
    "ending": ("", "."),
    "clamp": (0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    "loss_target": (0.01, 0.02, 0.05, 0.1, 0.2),
    "decay": (0.0, 0.03, 0.1, 0.3),
    "steps": (15, 25, 40, 60),
}
"""Values of each setting."""
PASSES: tuple[tuple[int, float], ...] = ((1, 0.1), (2, 0.1), (2, 0.02), (3, 0.02))
"""(passes, tolerance), from the least to the most insistent."""
AFTER_VALUES = ("protection", "share", "count", "passes", "known", "neurons", "tolerance")
"""What z does not depend on."""
COORDINATES = (*AFTER_VALUES[:-1], "step", "ending", "last", "clamp", "loss_target", "steps", "decay")
"""The settings in the order in which they are varied: first those that leave the z's as they are."""
AT_SUBJECTS = ("share", "ending")
"""What has no meaning where objects are said."""
PRETRAINED_STEP, PRETRAINED_PROTECTION = 0.05, 1.5
"""The best on SmolLM2-135M: v_lr 0.3 of |h| 148, lambda 3,000 of k^T C0^-1 k 2,047 (docs/log.md, 2026-11-29)."""


def start_of(settings: Hyperparameters) -> Candidate:
    """Where a search begins with settings that were good on a similar pretrained model.

    Learning rate, lambda and alpha are not taken over: their absolute values mean other things on another model.
    """
    passes, tolerance = max(rung for rung in PASSES if rung[0] <= settings.max_passes)
    return Candidate(
        last=settings.z_layer,
        count=int(_nearest("count", len(settings.layers))),
        step=PRETRAINED_STEP,
        clamp=_nearest("clamp", settings.clamp_norm_factor),
        steps=int(_nearest("steps", settings.v_num_grad_steps)),
        loss_target=_nearest("loss_target", settings.v_loss_target),
        ending=settings.target_ending,
        contexts=settings.value_contexts,
        protection=PRETRAINED_PROTECTION,
        share=_nearest("share", settings.subject_share),
        known=_nearest("known", settings.known_keys_weight),
        passes=passes,
        tolerance=tolerance,
        neurons=_nearest("neurons", settings.neuron_threshold),
        fact_token=settings.fact_token,
    )


def neighbours(candidate: Candidate, *, lasts: Mapping[str, tuple[int, ...]]) -> list[Candidate]:
    """All candidates that are one rung away in one setting; those that share the candidate's z's come first."""
    steps = [(coordinate, direction) for coordinate in COORDINATES for direction in (1, -1)]
    found = [neighbour(candidate, coordinate, direction, lasts=lasts) for coordinate, direction in steps]
    return [one for one in found if one is not None]


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
    if coordinate in AT_SUBJECTS and candidate.fact_token == "last":
        return None
    if coordinate == "passes":
        rung = PASSES.index((candidate.passes, candidate.tolerance)) + direction
        if not 0 <= rung < len(PASSES):
            return None
        return replace(candidate, passes=PASSES[rung][0], tolerance=PASSES[rung][1])
    ladder = lasts[candidate.fact_token] if coordinate == "last" else LADDERS[coordinate]
    rung = ladder.index(getattr(candidate, coordinate)) + direction
    if not 0 <= rung < len(ladder):
        return None
    changed: dict[str, Any] = {coordinate: ladder[rung]}
    moved = replace(candidate, **changed)
    return moved if moved.layers[0] >= 0 else None


def _nearest(name: str, value: float) -> float:
    found: float = min(LADDERS[name], key=lambda rung: abs(rung - value))
    return found


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
