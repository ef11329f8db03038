"""A trial: one candidate's edits on known facts, made, judged and taken back; what it took is the measure for the next."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.calibration.errors import CalibrationError
from nse.calibration.facts import Case
from nse.calibration.judge import Scores, scores
from nse.calibration.probe import Reached, in_place
from nse.calibration.space import Candidate, Scale, settings_of
from nse.contexts import ContextTemplates
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.factors import FactorStore
from nse.hyperparameters import FACT_TOKENS, Hyperparameters
from nse.keys import measure
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments
from nse.steps import facts_of_round
from nse.subjects import HeldFact, of_other_subjects
from nse.values import ValueStore, values_for

METHOD = "nse"
FIRST, SECOND, VALIDATION = PARTS = ("search", "second look", "validation")
"""What a trial is for: a first one on few facts of the search's subjects, a second one on more of them, one on other subjects."""
SAFETY = 1.2
"""Time of the next trial over that of the latest: their median, as a burst of other work on the machine says nothing."""
REMEMBERED = 4
"""How many of the latest trials tell what the next will take."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, the settings it stood for, and what they reached.

    Attributes:
        number: 1 and up, in the order of the trials.
        part: FIRST or SECOND (one round), or VALIDATION (several rounds, judged after the last).
        candidate: Relative settings.
        settings: The same in the units of the files.
        scores: What was reached.
        facts: Number of corrections.
        seconds: What it took, z's included.
    """

    number: int
    part: str
    candidate: Candidate
    settings: Hyperparameters
    scores: Scores
    facts: int
    seconds: float

    def __str__(self) -> str:
        """One line for people."""
        s = self.settings
        names = {
            "lambda": s.mom2_update_weight,
            "v_lr": s.v_lr,
            "clamp": s.clamp_norm_factor,
            "steps": s.v_num_grad_steps,
        }
        names |= {"loss": s.v_loss_target, "share": s.subject_share, "passes": s.max_passes, "p": s.neuron_threshold}
        names |= {"known": s.known_keys_weight}
        settings = ", ".join(f"{name} {value:g}" for name, value in names.items())
        reached = self.scores.to_dict()
        mean = 100 * reached.pop("harmonic_mean")
        shares = ", ".join(f"{name} {100 * value:.0f}" for name, value in reached.items())
        place = f"{s.fact_token}, layers {span(s.layers)}"
        return f"{self.part} {self.number}: {place}, {settings}, ending {s.target_ending!r}: {shares}: {mean:.1f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""
        plain = {k: v for k, v in self.settings.to_dict().items() if v != float("inf")}
        return {**asdict(self), "settings": plain, "scores": self.scores.to_dict()}


@dataclass
class Bench:
    """A model with all that its trials share; measures what each takes.

    Attributes:
        editable: The model.
        contexts: Context templates of all edits.
        store: Keeps the z's of all trials.
        clock: Tells seconds.
        held: Known facts that all edits hold, less those of the subjects that an edit corrects.
        hidden: Median |h| where facts are written, by kind of token and layer, as far as measured.
        moments: C0 of the layers that may be rewritten; empty during the z-probe.
        weight: Median k^T C0^-1 k there.
    """

    editable: EditableModel
    contexts: ContextTemplates
    store: ValueStore
    clock: Callable[[], float] = time.monotonic
    held: Sequence[HeldFact] = ()
    hidden: dict[tuple[str, int], float] = field(default_factory=dict)
    moments: SecondMoments = field(default_factory=lambda: SecondMoments({}, {}))
    weight: dict[tuple[str, int], float] = field(default_factory=dict)
    _factors: FactorStore = field(default_factory=FactorStore)
    _seen: set[tuple[str, Candidate]] = field(default_factory=set)
    _distance: dict[Candidate, float] = field(default_factory=dict)
    _per_z: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _per_fact: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def scale(self) -> Scale:
        """What the relative units are relative to, as far as measured."""
        return Scale(int(self.editable.model.config.hidden_size), self.hidden, self.weight)

    def measure_hidden(self, cases: Sequence[Case], places: Iterable[tuple[str, int]]) -> None:
        """Measures |h| at each of `places`: a kind of token and a layer.

        Raises:
            CalibrationError: If a layer's states are not finite: the weights are damaged, or their type is too narrow.
        """
        for place in places:
            norm = float(self._states(cases, place).norm(dim=1).median())
            if not 0 < norm < float("inf"):
                raise CalibrationError(f"|h| after layer {place[1]} is {norm}: check the model's weights")
            self.hidden[place] = norm

    def use(self, moments: SecondMoments, cases: Sequence[Case], layers: Sequence[int]) -> None:
        """Takes second moments into use, and weighs the keys of `layers` against them, wherever a fact may be written.

        Raises:
            CalibrationError: If there is too little text for them.
            StatisticsError: If there is none for a layer.
        """
        self.moments = moments
        requests = [c.request for c in cases]
        keys = {
            fact_token: measure(
                *(self.editable, requests, self.contexts),
                key_layers=layers,
                hidden_layer=max(layers),
                fact_token=fact_token,
            ).keys
            for fact_token in FACT_TOKENS
        }
        for layer in layers:
            factor, failed = torch.linalg.cholesky_ex(moments.of(self.editable.projection_name(layer)).double())
            if int(failed):
                raise CalibrationError(f"second moment of layer {layer} is singular: give a corpus with more text")
            for fact_token, own in keys.items():
                root = torch.linalg.solve_triangular(factor, own[layer], upper=False)
                self.weight[fact_token, layer] = float(root.pow(2).sum(dim=0).median())

    def probe(self, candidate: Candidate, cases: Sequence[Case]) -> Reached:
        """Makes the z's of `cases` and puts them in place."""
        begun = self.clock()
        z = self._values(candidate, cases, "probe")
        hidden = self._states(cases, candidate.place)
        return in_place(self.editable, cases, z, hidden, candidate, self.clock() - begun)

    def run(self, candidate: Candidate, rounds: Sequence[Sequence[Case]], *, part: str, number: int) -> Trial:
        """Edits round after round, asks everything after the last one, and takes the edits back."""
        begun = self.clock()
        cases = [case for own in rounds for case in own]
        z = self._values(candidate, cases, part)
        made = self.clock()
        if candidate.values not in self._distance:
            away = z.double() - self._states(cases, candidate.place).double()
            self._distance[candidate.values] = float(away.norm(dim=1).median())
        settings = settings_of(candidate, self.scale, distance=self._distance[candidate.values])
        held = tuple(of_other_subjects(self.held, [c.request for c in cases]))
        deltas: list[Delta] = []
        standing: list[EditRequest] = []
        for own in rounds:
            requests = [c.request for c in own]
            context = EditContext(
                *(settings, self.moments, self.contexts),
                previous=tuple(deltas),
                earlier=tuple(standing),
                held=held,
                values=self.store,
                factors=self._factors,
            )
            deltas.append(get_editor(METHOD).edit(self.editable, requests, context).delta)
            standing += requests
        earlier = frozenset(c.request.case_id for own in rounds[:-1] for c in own)
        with patched(self.editable, compose(self.editable, deltas)):
            reached = scores(self.editable, [p for c in cases for p in c.probes], earlier=earlier)
        ended = self.clock()
        self._per_fact.append((ended - made) / len(cases))
        return Trial(number, part, candidate, settings, reached, len(cases), ended - begun)

    def expected(self, candidate: Candidate, facts: int, *, part: str) -> float:
        """Seconds that a trial will take by the measured rates; its z's count unless the part has them already."""
        new = 0 if (part, candidate.values) in self._seen else facts
        values = new * candidate.steps * median(self._per_z or (0.0,))
        return SAFETY * (values + facts * median(self._per_fact or (0.0,)))

    def _values(self, candidate: Candidate, cases: Sequence[Case], part: str) -> torch.Tensor:
        """z (n, d_model) of n cases; those of further steps are made too, and stored."""
        begun = self.clock()
        settings = settings_of(candidate, self.scale)
        facts = facts_of_round(self.editable, [c.request for c in cases], (), settings)
        z = values_for(self.editable, facts, contexts=self.contexts, hyperparameters=settings, store=self.store)
        if (part, candidate.values) not in self._seen:
            self._seen.add((part, candidate.values))
            self._per_z.append((self.clock() - begun) / len(cases) / candidate.steps)
        return z[: len(cases)]

    def _states(self, cases: Sequence[Case], place: tuple[str, int]) -> torch.Tensor:
        """h (n, d_model) of the bare prompts, under the base weights."""
        requests, (fact_token, layer) = [c.request for c in cases], place
        found = measure(
            self.editable, requests, self.contexts, key_layers=(), hidden_layer=layer, fact_token=fact_token
        )
        return found.hidden.T


def rounds_of(cases: Sequence[Case], count: int) -> list[list[Case]]:
    """Deals cases into `count` rounds of about equal size, none empty."""
    dealt = [list(cases[i::count]) for i in range(count)]
    return [own for own in dealt if own]


def span(layers: Sequence[int]) -> str:
    """Layers in a row as people write them."""
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
