"""The finals: the best candidates of a search on other subjects, in several rounds; one is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from nse.calibration.facts import Case
from nse.calibration.probe import Reached
from nse.calibration.search import Search
from nse.calibration.space import Candidate
from nse.calibration.trial import VALIDATION, Trial, rounds_of

FINALISTS = 3
ROUNDS = 2
CLOSE = 0.002
"""Harmonic means this near count as equal: retention and the subjects' other facts decide."""
AHEAD = 0.01
"""How much better than the proposed settings others must be: these rest on more facts than a search asks about."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a calibration came to.

    Attributes:
        probes: Its z-probes, in order.
        trials: Its trials, in order.
        chosen: The search trial whose candidate was chosen.
    """

    probes: tuple[Reached, ...]
    trials: tuple[Trial, ...]
    chosen: Trial

    def of_chosen(self, part: str) -> Trial | None:
        """The chosen candidate's trial in a part, if it had one."""
        return next((t for t in self.trials if t.part == part and t.candidate == self.chosen.candidate), None)


@dataclass(frozen=True, slots=True)
class Finals:
    """The finals of one search, on the facts of other subjects."""

    search: Search
    cases: Sequence[Case]

    def seconds(self, candidate: Candidate) -> float:
        """What the finals will take by the rates measured, if all their z's have to be made as this candidate's."""
        return FINALISTS * self.search.bench.expected(candidate, len(self.cases), part=VALIDATION)

    def run(self) -> Found:
        """Judges the best as far as time allows and chooses one; with no time left, the best of the search."""
        search = self.search
        best = [t for t in search.pool() if t is not search.incumbent]
        pool = [search.incumbent, *best][:FINALISTS] if search.incumbent else best[:FINALISTS]
        judged = []
        for number, trial in enumerate(pool, 1):
            if search.budget.allows(search.bench.expected(trial.candidate, len(self.cases), part=VALIDATION)):
                rounds = rounds_of(self.cases, ROUNDS)
                found = search.bench.run(trial.candidate, rounds, part=VALIDATION, number=len(search.trials) + 1)
                search.trials.append(found)
                search.say(str(found))
                judged.append(trial)
            search.progress(VALIDATION, number, len(pool))
        return Found(tuple(search.probes), tuple(search.trials), self._choice(judged or pool))

    def _choice(self, trials: Sequence[Trial]) -> Trial:
        means = {t.number: self.search.mean(t.candidate) for t in trials}
        incumbent = self.search.incumbent
        if incumbent is not None and means.get(incumbent.number, 0.0) >= max(means.values()) - AHEAD:
            return incumbent
        close = [t for t in trials if means[t.number] >= max(means.values()) - CLOSE]
        return max(close, key=lambda t: (self._guard(t.candidate), means[t.number], -t.number))

    def _guard(self, candidate: Candidate) -> float:
        own = [t for t in self.search.trials if t.candidate == candidate]
        return sum(t.scores.guard * t.facts for t in own) / sum(t.facts for t in own)
