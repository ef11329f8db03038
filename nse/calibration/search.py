"""The search: from where evidence or z-probes say that it should begin, one generation of neighbours after the other.

A generation is tried on few facts, the best of it on more, so that most of the time goes to what is good.

Which trials are made depends on what they measured and on nothing else; time decides only when the list ends. So two searches
with the same numbers of trials are the same.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nse.batch import Progress, silent
from nse.calibration.facts import Case
from nse.calibration.probe import Reached
from nse.calibration.space import Candidate, neighbours, start_of
from nse.calibration.trial import FIRST, SECOND, Bench, Trial
from nse.hyperparameters import FACT_TOKENS, Hyperparameters

PROBED_LAYERS = 8
PROBED_DEPTH = 0.65
"""Share of the layers, from below, where z is probed: later ones act after the fact has been read."""
LIKELY_DEPTH = 0.25
"""Where the published settings lie, and ours: probed first, in case the time does not allow more."""
PROBE_FACTS = 10
PROBE_SHARE = 0.25
"""Most of the time that goes to z-probes."""
FIRST_SHARE = 0.6
"""Share of the time, and of the trials, after which nothing new is tried: the best so far are judged on more facts."""
FINALS_SHARE = 0.2
"""Most of the time that is kept for the finals."""
SURVIVORS = 3
"""One of so many of a generation goes on to more facts: the best of many on the same few was lucky with them."""
PARENTS = 2
"""How many of the best have their neighbours tried next."""
STARTS = 3
"""Last layers with which the search begins at the subject."""
SAID_DEPTHS = (1.0, 0.85, 0.7)
"""Where it begins at a prompt's last token, as shares of the depth: what is read there is said a few layers above."""
LAYERS = 4
"""Most rewrite layers of a model without evidence."""
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
        second: Other facts, and more, for a second look at it; may be empty.
        budget: Its bounds.
        layers: Layers that may be rewritten.
        proposed: Settings that were good on a similar model; none if they do not fit.
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
    proposed: Hyperparameters | None = None
    finals: Callable[[Candidate], float] = lambda _candidate: 0.0
    progress: Progress = silent
    say: Say = lambda _line: None
    probes: list[Reached] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def begin(self) -> tuple[Candidate, ...]:
        """Where to begin: at the proposed settings, with the last layers beside theirs, or where z-probes say."""
        if self.proposed is not None and not set(self.proposed.layers) <= set(self.layers):
            self.proposed = None
        if self.proposed is None:
            return self.probe()
        start = start_of(self.proposed)
        start = replace(start, known=start.known if self.bench.held else 0.0)
        beside = [replace(start, last=last) for last in (start.last - 1, start.last + 1) if last in self.layers]
        self.bench.measure_hidden(self.cases[:PROBE_FACTS], [c.place for c in (start, *beside)])
        return (start, *beside)

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
        """Tries where to begin, then the neighbours of the best, until the budget ends or all these have been tried."""
        lasts = {where: tuple(sorted({c.last for c in start if c.fact_token == where})) for where in FACT_TOKENS}
        fresh = opening(start) if self.proposed is None else [start[0]]
        try:
            while fresh := self._untried(fresh):
                self._generation(fresh)
                fresh = [n for t in self.pool()[:PARENTS] for n in neighbours(t.candidate, lasts=lasts)]
        except _SpentError:
            return

    def _generation(self, fresh: Sequence[Candidate]) -> None:
        """First trials of new candidates, then a second look at the best of them.

        Raises:
            _SpentError: If the budget allows no more.
        """
        spent = False
        try:
            for candidate in fresh:
                self._first(candidate)
        except _SpentError:
            spent = True  # of the first trials' share
        own = [t for t in self.different() if t.candidate in fresh]
        for trial in own[: math.ceil(len(own) / SURVIVORS)] if self.second else ():
            self._look(trial.candidate)
        if spent:
            raise _SpentError

    def _untried(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        tried = {t.candidate for t in self.trials}
        return [c for c in dict.fromkeys(candidates) if c not in tried and self._possible(c)]

    @property
    def incumbent(self) -> Trial | None:
        """The first trial of the proposed settings, if there were any."""
        return self.trials[0] if self.proposed is not None else None

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

    def _first(self, candidate: Candidate) -> None:
        self._trial(candidate, self.cases, FIRST, FIRST_SHARE)

    def _look(self, candidate: Candidate) -> None:
        self._trial(candidate, self.second, SECOND, 1.0)

    def _trial(self, candidate: Candidate, cases: Sequence[Case], part: str, share: float) -> None:
        """Makes a candidate's trial in a part.

        Raises:
            _SpentError: If that share of the budget does not allow it; the first of all is always made, or there would be
                nothing to show.
        """
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

    def _allows(self, candidate: Candidate, expected: float, share: float) -> bool:
        if self.budget.trials is not None and len(self.trials) >= math.ceil(share * self.budget.trials):
            return False
        finals = min(self.finals(candidate), FINALS_SHARE * self.budget.seconds)
        return self.budget.allows(expected, reserve=max(finals, (1 - share) * self.budget.seconds))

    def _possible(self, candidate: Candidate) -> bool:
        there = {(candidate.fact_token, layer) for layer in candidate.layers} <= set(self.bench.weight)
        return there and bool(not candidate.known or self.bench.held)

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
    """The layers that any candidate of the search may rewrite: below a last one as many as it begins with and one more."""
    return tuple(sorted({c.last - i for c in start for i in range(max(LAYERS, c.count + 1))} & set(layers)))


def opening(start: Sequence[Candidate]) -> list[Candidate]:
    """The first trials: one to three layers at the first choice of each place, then one and two at the others."""
    firsts = [next(c for c in start if c.fact_token == where) for where in dict.fromkeys(c.fact_token for c in start)]
    others = [c for c in start if c not in firsts]
    return [replace(c, count=n) for own, counts in ((firsts, (2, 1, 3)), (others, (2, 1))) for c in own for n in counts]
