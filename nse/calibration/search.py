"""The search: z-probes choose where to begin, steps along one setting at a time improve on it.

Which trials are made depends on what they measured and on nothing else; time decides only when the list ends. So two searches
with the same numbers of trials are the same.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nse.batch import Progress, silent
from nse.calibration.facts import Case
from nse.calibration.probe import Reached
from nse.calibration.space import COORDINATES, Candidate, neighbour
from nse.calibration.trial import FIRST, SECOND, Bench, Trial
from nse.hyperparameters import FACT_TOKENS

PROBED_LAYERS = 8
PROBED_DEPTH = 0.65
"""Share of the layers, from below, where z is probed: later ones act after the fact has been read."""
LIKELY_DEPTH = 0.25
"""Where the published settings lie, and ours: probed first, in case the time does not allow more."""
PROBE_FACTS = 10
PROBE_SHARE = 0.25
"""Most of the time that goes to z-probes."""
FIRST_SHARE = 0.6
"""Share of the time, and of the trials, after which the best so far are judged on more facts."""
FINALS_SHARE = 0.2
"""Most of the time that is kept for the finals."""
LOOKS = 6
"""Trials that get a second look at once: the best of many on the same facts was lucky with them."""
MARGIN = 0.03
"""A later trial gets a second look if its first is not this far below the best first."""
STARTS = 3
"""Last layers with which the search begins at the subject."""
SAID_DEPTHS = (1.0, 0.85, 0.7)
"""Where it begins at a prompt's last token, as shares of the depth: what is read there is said a few layers above."""
LAYERS = 4
"""Most rewrite layers."""
HOPELESS = 0.1
"""Layers whose best trial is this far below the best of all are not searched further."""
VARIANTS = ((0.05, 1.5), (0.2, 1.5), (0.2, 3.0), (0.1, 0.75))
"""(step, clamp) probed at the best layer."""

Say = Callable[[str], None]
"""Called with one line for people about each step done."""


@dataclass
class Budget:
    """How long a calibration may take: seconds of a clock, and a number of search trials, if it is bounded."""

    seconds: float
    trials: int | None = None
    clock: Callable[[], float] = time.monotonic
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        """Starts the clock."""
        self.begun = self.clock()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.begun

    def allows(self, seconds: float, *, reserve: float = 0.0) -> bool:
        """Whether something that takes `seconds` ends in time and leaves `reserve`."""
        return self.used + seconds + reserve <= self.seconds


class _SpentError(Exception):
    """The budget allows no further trial."""


@dataclass
class Search:
    """One search on one bench.

    Attributes:
        bench: Makes the trials.
        cases: The facts of a first trial of a candidate.
        second: Other facts, for a second look at it; may be empty.
        budget: Its bounds.
        layers: Layers that may be rewritten.
        finals: Tells the seconds that the finals will want after a candidate.
        progress: Called as `progress(stage, done, total)`.
        say: Called with a line per step.
        probes: The z-probes made.
        trials: The trials made, those of the finals too.
    """

    bench: Bench
    cases: Sequence[Case]
    second: Sequence[Case]
    budget: Budget
    layers: Sequence[int]
    finals: Callable[[Candidate], float] = lambda _candidate: 0.0
    progress: Progress = silent
    say: Say = lambda _line: None
    probes: list[Reached] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def probe(self) -> tuple[Candidate, ...]:
        """Probes z layer by layer, then other rates and clamps at the best layer; returns where to begin."""
        few, every = self.cases[:PROBE_FACTS], self.bench.editable.layers
        layers = probed_layers(self.layers, every)
        said = [Candidate(last, fact_token="last") for last in layers_where_said(self.layers, every)]
        self.bench.measure_hidden(few, [c.place for c in (*map(Candidate, layers), *said)])
        total = len(layers) + len(VARIANTS)
        for layer in layers:
            self._probe(Candidate(layer), few, total)
        of_layers = sorted(self.probes, key=lambda p: -p.score)
        for step, clamp in VARIANTS:
            self._probe(replace(of_layers[0].candidate, step=step, clamp=clamp), few, total)
        self.progress("z-probe", total, total)
        enriched = [p.candidate for p in of_layers[:STARTS]]
        varied = sorted(self.probes[len(of_layers) :], key=lambda p: -p.score)
        return (*enriched, *said, *(p.candidate for p in varied[:1]))

    def run(self, start: Sequence[Candidate]) -> None:
        """Tries settings on the first facts, then on both, until the budget ends or no step improves on the best."""
        lasts = {where: tuple(sorted({c.last for c in start if c.fact_token == where})) for where in FACT_TOKENS}
        try:
            for candidate in opening(start):
                if self._possible(candidate):
                    self._first(candidate)
            done: set[tuple[str, tuple[int, ...]]] = set()
            while begin := self._unsearched(done):
                done |= {_where(c) for c in (begin.candidate, self._improve(begin.candidate, lasts, self._merit))}
        except _SpentError:
            pass  # of the first facts' share
        if not self.second:
            return
        try:
            for trial in self.different()[:LOOKS]:
                self._look(trial.candidate)
            self._improve(self.pool()[0].candidate, lasts, self._merit_of_both)
        except _SpentError:
            return

    @property
    def best(self) -> Trial:
        """The best trial on the first facts."""
        return self.ranked()[0]

    def ranked(self) -> list[Trial]:
        """Trials on the first facts, best first; of equals that which was first."""
        own = [t for t in self.trials if t.part == FIRST]
        return sorted(own, key=lambda t: (-t.scores.harmonic_mean, -t.scores.guard, t.number))

    def different(self) -> list[Trial]:
        """The same without those whose scores were those of a better one throughout."""
        return list({t.scores: t for t in reversed(self.ranked())}.values())[::-1]

    def pool(self) -> list[Trial]:
        """Trials on the first facts whose candidates had a second look, best of both first; all if none had."""
        looked = {t.candidate for t in self.trials if t.part == SECOND}
        own = [t for t in self.different() if t.candidate in looked]
        return sorted(own, key=lambda t: (-self.mean(t.candidate), t.number)) or self.different()

    def mean(self, candidate: Candidate) -> float:
        """Mean of the harmonic means of all of a candidate's trials, by their numbers of facts."""
        own = [t for t in self.trials if t.candidate == candidate]
        return sum(t.scores.harmonic_mean * t.facts for t in own) / sum(t.facts for t in own)

    def _unsearched(self, done: set[tuple[str, tuple[int, ...]]]) -> Trial | None:
        """The best trial with a place and layers from which no steps were made, if it is not hopeless."""
        bound = self.best.scores.harmonic_mean - HOPELESS
        return next(
            (t for t in self.ranked() if _where(t.candidate) not in done and t.scores.harmonic_mean >= bound), None
        )

    def _improve(
        self, best: Candidate, lasts: Mapping[str, tuple[int, ...]], merit: Callable[[Candidate], tuple[float, float]]
    ) -> Candidate:
        """Steps along one setting after the other, on in a direction as long as that improves, until none does."""
        while True:
            before = best
            for coordinate in COORDINATES:
                for direction in (1, -1):
                    while True:
                        candidate = neighbour(best, coordinate, direction, lasts=lasts)
                        if candidate is None or not self._possible(candidate) or merit(candidate) <= merit(best):
                            break
                        best = candidate
            if best == before:
                return best

    def _merit(self, candidate: Candidate) -> tuple[float, float]:
        scores = self._first(candidate).scores
        return scores.harmonic_mean, scores.guard

    def _merit_of_both(self, candidate: Candidate) -> tuple[float, float]:
        """Merit on both lots of facts; one whose first trial was much worse than the best is not looked at again."""
        first = self._first(candidate, share=1.0).scores
        if first.harmonic_mean < self.best.scores.harmonic_mean - MARGIN:
            return -1.0, 0.0
        return self._look(candidate), first.guard

    def _first(self, candidate: Candidate, *, share: float = FIRST_SHARE) -> Trial:
        return self._trial(candidate, self.cases, FIRST, share)

    def _look(self, candidate: Candidate) -> float:
        self._trial(candidate, self.second, SECOND, 1.0)
        return self.mean(candidate)

    def _trial(self, candidate: Candidate, cases: Sequence[Case], part: str, share: float) -> Trial:
        """A candidate's trial in a part, made now if it was not before.

        Raises:
            _SpentError: If that share of the budget does not allow it; the first of all is always made, or there would be
                nothing to show.
        """
        if made := next((t for t in self.trials if t.candidate == candidate and t.part == part), None):
            return made
        expected = self.bench.expected(candidate, len(cases), part=part)
        if self.trials and not self._allows(candidate, expected, share):
            raise _SpentError
        trial = self.bench.run(candidate, [cases], part=part, number=len(self.trials) + 1)
        self.trials.append(trial)
        self.say(f"{trial} (best {100 * self.mean(self.pool()[0].candidate):.1f})")
        if self.budget.trials is not None:
            self.progress("trials", len(self.trials), self.budget.trials)
        else:
            self.progress("trials (seconds)", int(min(self.budget.used, self.budget.seconds)), int(self.budget.seconds))
        return trial

    def _allows(self, candidate: Candidate, expected: float, share: float) -> bool:
        if self.budget.trials is not None and len(self.trials) >= math.ceil(share * self.budget.trials):
            return False
        finals = min(self.finals(candidate), FINALS_SHARE * self.budget.seconds)
        return self.budget.allows(expected, reserve=max(finals, (1 - share) * self.budget.seconds))

    def _possible(self, candidate: Candidate) -> bool:
        return {(candidate.fact_token, layer) for layer in candidate.layers} <= set(self.bench.weight)

    def _probe(self, candidate: Candidate, cases: Sequence[Case], total: int) -> None:
        """Probes one choice if its share of the time allows; the first one is always made."""
        slowest = max((p.seconds for p in self.probes), default=0.0)
        if self.probes and self.budget.used + slowest > PROBE_SHARE * self.budget.seconds:
            return
        self.probes.append(self.bench.probe(candidate, cases))
        self.progress("z-probe", len(self.probes), total)
        self.say(str(self.probes[-1]))


def probed_layers(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """At most `PROBED_LAYERS` of `layers`, spread over the lower part of a model of `total`, the likeliest first."""
    low = [layer for layer in layers if layer < max(1, round(total * PROBED_DEPTH))] or list(layers[:1])
    count = min(PROBED_LAYERS, len(low))
    spread = [low[round(i * (len(low) - 1) / max(1, count - 1))] for i in range(count)]
    return tuple(sorted(spread, key=lambda layer: abs(layer - LIKELY_DEPTH * total)))


def layers_where_said(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """The last layers with which a search begins where an object is said: of `layers` those nearest to `SAID_DEPTHS`."""
    wanted = (round(share * (total - 1)) for share in SAID_DEPTHS)
    return tuple(dict.fromkeys(min(layers, key=lambda layer: abs(layer - near)) for near in wanted))


def reach(start: Sequence[Candidate], layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that any candidate of the search may rewrite: those up to `LAYERS` below a last one."""
    return tuple(sorted({c.last - i for c in start for i in range(LAYERS)} & set(layers)))


def opening(start: Sequence[Candidate]) -> list[Candidate]:
    """The first trials: one to three layers at the first choice of each place, then one and two at the others."""
    firsts = [next(c for c in start if c.fact_token == where) for where in dict.fromkeys(c.fact_token for c in start)]
    others = [c for c in start if c not in firsts]
    return [replace(c, count=n) for own, counts in ((firsts, (2, 1, 3)), (others, (2, 1))) for c in own for n in counts]


def _where(candidate: Candidate) -> tuple[str, tuple[int, ...]]:
    return candidate.fact_token, candidate.layers
