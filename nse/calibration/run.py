"""A calibration from files to files: reads the facts, runs the search, writes settings, trials and plot at the very end."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.calibration.errors import CalibrationError
from nse.calibration.facts import Case, held_facts, known_cases, read_facts, split, used_digest
from nse.calibration.finals import Finals, Found
from nse.calibration.judge import BaseAnswers
from nse.calibration.plot import check_plot, draw
from nse.calibration.record import evidence, write_settings, write_trials
from nse.calibration.search import Budget, Say, Search, reach
from nse.calibration.trial import Bench
from nse.contexts import read_contexts, sample_contexts
from nse.fingerprint import file_digest, json_digest
from nse.proposal import propose
from nse.statistics import SecondMoments, collect_second_moments, read_second_moments
from nse.values import ValueStore


@dataclass(frozen=True, slots=True)
class CalibrationFiles:
    """What a calibration reads and writes.

    Attributes:
        facts: A suite, or requests with their true objects.
        output: The hyper-parameter file.
        corpus: Text for second moments; not needed where they are given.
        second_moment: Second moments; only the layers they are of can be rewritten.
        contexts: Context templates; sampled from the model if not given.
        plot: The plot, if one is wanted.
        values: Folder that keeps z's for a later run; a temporary one if not given.
    """

    facts: Path
    output: Path
    corpus: Path | None = None
    second_moment: Path | None = None
    contexts: Path | None = None
    plot: Path | None = None
    values: Path | None = None

    @property
    def trials(self) -> Path:
        """The JSON of all trials, beside the output."""
        return self.output.with_suffix(".trials.json")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a calibration does.

    Attributes:
        minutes: Time budget.
        trials: Most trials, those of the finals not counted; as many as the time allows if not given.
        facts: Corrections in a first trial; a second look has twice as many.
        validated: Corrections in a validation trial.
        seed: Of the split, of the facts chosen, of their new objects and of sampled contexts.
    """

    minutes: float = 20.0
    trials: int | None = None
    facts: int = 20
    validated: int = 30
    seed: int = 0


def calibrate(
    editable: EditableModel,
    files: CalibrationFiles,
    *,
    extent: Extent,
    progress: Progress = silent,
    say: Say = lambda _line: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Finds settings for a model and writes them; nothing is written before all is measured.

    Args:
        editable: The model; bit-identical afterwards.
        files: What is read and written.
        extent: How much is done.
        progress: Called as `progress(stage, done, total)`.
        say: Called with a line about each probe and trial.
        clock: Tells seconds.

    Returns:
        The settings, their evidence, and the files written.

    Raises:
        NseError: If an input is missing or malformed, too few of its facts are known, or a plot cannot be drawn.
    """
    budget = Budget(60 * extent.minutes, extent.trials, clock)
    if files.plot is not None:
        check_plot()
    if files.second_moment is None and files.corpus is None:
        raise CalibrationError("there is neither text nor second moments: give --corpus or --second-moment")
    facts = read_facts(files.facts, seed=extent.seed)
    parts = split(facts, seed=extent.seed)
    base, proposal = BaseAnswers(editable), propose(editable)
    if proposal is not None:
        say(proposal.source)

    def known(part: str, count: int, but: tuple[Case, ...] = ()) -> tuple[Case, ...]:
        return known_cases(base, facts, parts, part=part, count=count, seed=extent.seed, but=but, progress=progress)

    cases, validation = known("search", extent.facts), known("validation", extent.validated)
    second = known("search", 2 * extent.facts, cases)
    contexts = read_contexts(files.contexts) if files.contexts else sample_contexts(editable, seed=extent.seed)
    given = read_second_moments(files.second_moment) if files.second_moment else None
    with tempfile.TemporaryDirectory(prefix="nse-calibration-") as temporary:
        store = ValueStore(files.values or Path(temporary))
        bench = Bench(editable, contexts, store, clock, held_facts(facts, parts))
        proposed = proposal.settings if proposal else None
        search = Search(bench, cases, second, budget, _layers(editable, given), proposed, progress=progress, say=say)
        finals = Finals(search, validation)
        search.finals = finals.seconds
        start = search.begin()
        layers = reach(start, search.layers)
        bench.use(given or _moments(editable, files, layers, progress), cases, layers)
        search.run(start)
        found = finals.run()
    record = evidence(
        found,
        {
            "model": editable.base_digest,
            "tokenizer": editable.tokenizer_digest,
            "facts_digest": facts.digest,
            "contexts": json_digest(contexts),
            "corpus": file_digest(files.corpus) if files.corpus and given is None else None,
            "proposal": proposal.source if proposal else None,
            "seed": extent.seed,
            "minutes": extent.minutes,
            "seconds": round(budget.used, 1),
            "split": used_digest([cases, second, validation]),
            "used": [case.request.case_id for case in (*cases, *second, *validation)],
        },
    )
    return _written(files, found, record)


def _written(files: CalibrationFiles, found: Found, record: dict[str, Any]) -> dict[str, Any]:
    """Writes everything, the hyper-parameter file last."""
    write_trials(files.trials, found, record)
    if files.plot is not None:
        draw(found, files.plot)
    write_settings(files.output, found.chosen.settings, record)
    names = [files.output, files.trials, *([files.plot] if files.plot else [])]
    settings = {k: v for k, v in found.chosen.settings.to_dict().items() if v != float("inf")}
    return {"settings": settings, "calibration": record, "files": [str(name) for name in names]}


def _layers(editable: EditableModel, given: SecondMoments | None) -> list[int]:
    """The layers that may be rewritten: all, or those that second moments were given for."""
    every = range(editable.layers)
    if given is None:
        return list(every)
    if given.metadata.get("model_digest", editable.base_digest) != editable.base_digest:
        raise CalibrationError(
            "the second moments were made for another model: leave --second-moment out, give --corpus"
        )
    found = [layer for layer in every if editable.projection_name(layer) in given.moments]
    if not found:
        raise CalibrationError("the second moments are of no layer of this model: leave them out, give --corpus")
    return found


def _moments(
    editable: EditableModel, files: CalibrationFiles, layers: tuple[int, ...], progress: Progress
) -> SecondMoments:
    assert files.corpus is not None
    return collect_second_moments(editable, files.corpus, layers=layers, progress=progress)
