"""One part of a benchmark: one method on one order of the stream, round upon round, with everything asked at checkpoints."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, takewhile
from typing import Any

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.bench.job import BASE, Job
from nse.bench.memory import Peak
from nse.bench.retention import by_way, first_edits, retention_first
from nse.bench.score import Prose, Right, Scores, perplexity_of, score
from nse.bench.streams import Dataset, checkpoints, in_rounds, ordered, questions_about, read_dataset, standing
from nse.chat import needed_chat_context
from nse.consolidation import canonical
from nse.contexts import read_contexts
from nse.corpus import open_corpus
from nse.delta import Delta
from nse.editors import EditContext, get_editor, read_settings
from nse.errors import NseError
from nse.evaluation.capability import capability, read_task_sets
from nse.evaluation.probes import shuffled
from nse.evaluation.suites import Suite, held_facts, read_suite
from nse.fingerprint import json_digest
from nse.patch import Weights, compose, patched, version_digest
from nse.request import EditRequest
from nse.statistics import SecondMoments, read_second_moments
from nse.subjects import HeldFact, fact_key
from nse.values import ValueStore

SENTENCES = 50
"""Fixed sentences for perplexity (arXiv 2402.09656) where no suite brings its own."""
READ = 20_000
"""Texts of a corpus among which sentences are chosen."""
REFERENCES = 20
"""Texts that name the new object of a case, at most."""
LONGEST = 400
"""Characters of such a text at most."""
AGES = 10
"""Groups of edits by age."""
READINGS = 40
"""Perplexity is taken after so many rounds of a stream at most, evenly spread, and at the checkpoints."""
WRITINGS = 5
"""Texts are written, and task sets asked, at so many checkpoints at most, evenly spread: they take as long as many questions."""
GATE = 1.1
"""Bound of perplexity as a multiple of the base model's, as in the suites that are shipped."""


@dataclass
class _Course:
    """A stream under way.

    Attributes:
        deltas: Of the rounds so far, or the one of all edits so far.
        written: Requests whose facts are in them, in their order.
        rounds: A record per round, or per solve of all edits so far.
        checkpoints: A record per checkpoint.
        last: What was asked at the latest of them.
        capability: What it was when it was last measured.
        edits: Cases of the stream that are behind.
        unedited: Perplexity of the base model; NaN if there are no texts for it.
        asked: Probes put at all checkpoints.
        asking: Seconds that took.
        peak: Memory held while editing.
    """

    deltas: list[Delta] = field(default_factory=list)
    written: list[EditRequest] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    last: Scores = field(default_factory=lambda: Scores({}))
    capability: dict[str, float] = field(default_factory=dict)
    edits: int = 0
    unedited: float = math.nan
    asked: int = 0
    asking: float = 0.0
    peak: Peak = field(default_factory=Peak)


def run_part(editable: EditableModel, job: Job, *, progress: Progress = silent) -> dict[str, Any]:
    """Runs one part; the model is bit-identical afterwards.

    A method that fails on its way (an error of this program, or of the numerical library on weights that have collapsed) leaves
    what was measured before, and the reason.

    Args:
        editable: The model with its base weights.
        job: What to do.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        The record: plain values, numbers that are not finite as None.

    Raises:
        NseError: If an input is malformed.
    """
    dataset = read_dataset(job.dataset, editable.tokenizer, edits=job.edits, seed=job.seed)
    suite = read_suite(job.suite) if job.suite else dataset.suite
    chat = needed_chat_context(editable.tokenizer) if job.chat else None
    questions = questions_about(dataset, suite, most=job.asked, tokenizer=editable.tokenizer, chat=chat)
    tasks = read_task_sets(job.tasks, most=job.task_questions)
    texts, prose = fixed_texts(job, suite, dataset.requests), _prose(job, dataset.requests)
    held = _held(suite, dataset) if job.hold else ()
    stream = ordered(dataset.requests, order=job.order, seed=job.seed)
    rounds = in_rounds(stream, job.batch_size)
    tested, read = (set(checkpoints(len(rounds), count)) for count in (job.checkpoints, READINGS))
    written = {sorted(tested)[place - 1] for place in checkpoints(len(tested), WRITINGS)}
    course, failed = _Course(), None
    context = None if job.method == BASE else _context(editable, job)
    warm = bool(job.values and job.values.is_dir() and any(job.values.iterdir()))
    if context is not None and texts:
        course.unedited = perplexity_of(editable, texts)
    progress("edits", 0, len(stream))
    try:
        for number, batch in enumerate(rounds, start=1):
            so_far = stream[: course.edits + len(batch)]
            asked = number in tested
            if context is not None and (asked or not job.consolidated):
                now = replace(context, held=_still(held, so_far))
                _edit(editable, job, so_far if job.consolidated else batch, now, course)
            course.edits = len(so_far)
            progress("edits", course.edits, len(stream))
            names = [r.case_id for r in standing(so_far)]
            watched = bool(texts and course.rounds) and number in (tested if job.consolidated else tested | read)
            if not (asked or watched):
                continue
            weights = compose(editable, course.deltas) if course.deltas else Weights()
            with patched(editable, weights):
                if asked:
                    about = prose if number in written else None
                    course.last = score(editable, names, questions, texts=texts, prose=about, seed=job.seed)
                if number in written:
                    if course.deltas or not course.capability:  # that of the base is measured once
                        course.capability = capability(editable, tasks)
                    course.last.metrics.update(course.capability)
                if watched:
                    seen = course.last.metrics["perplexity"] if asked else perplexity_of(editable, texts)
                    course.rounds[-1]["perplexity"] = seen
            if asked:
                course.asked += course.last.asked
                course.asking += course.last.seconds
                where = {"edits": course.edits, "facts": len(names), "version": version_digest(editable, weights)}
                course.last.metrics.update(retention_first(course.last.cases, [r.case_id for r in stream]))
                course.checkpoints.append({**where, **course.last.metrics})
    except (NseError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        failed = {"edits": course.edits, "reason": " ".join(str(error).split()) or type(error).__name__}
    told = {
        "method": job.method,
        "order": job.order,
        "stream": json_digest([r.case_id for r in stream]),
        "questions": questions.digest,
        "failed": failed,
        "warm": warm,
        "checkpoints": course.checkpoints,
        "rounds": course.rounds,
        "seconds": {"edits": sum(r["seconds"] for r in course.rounds), "probes": course.asking},
        "probes": course.asked,
    }
    end = {"metrics": {}} if failed is not None else _end(course, stream, solves=1 if job.consolidated else None)
    plain: dict[str, Any] = finite({**told, **end})
    return plain


def _context(editable: EditableModel, job: Job) -> EditContext:
    settings = read_settings(job.hparams, job.editor).settings
    moments = SecondMoments({}, {})
    if job.moments is not None:
        only = {editable.projection_name(layer) for layer in settings.layers}
        moments = read_second_moments(job.moments, module=min(only) if len(only) == 1 else None, only=only)
    return EditContext(
        settings,
        moments,
        read_contexts(job.contexts),
        values=ValueStore(job.values) if job.values else None,
        trained=job.trained,
        seed=job.seed + job.order,
        memory=job.memory,
    )


def _edit(
    editable: EditableModel, job: Job, batch: Sequence[EditRequest], context: EditContext, course: _Course
) -> None:
    """Writes a round on top of those before, or all edits so far in their place; of a fact that is in it twice, the latest."""
    requests = standing(batch)
    if job.consolidated:
        requests = canonical(requests)
        course.deltas.clear()
        course.written.clear()
    now = replace(context, previous=tuple(course.deltas), earlier=tuple(course.written))
    begun = time.perf_counter()
    with course.peak.watched():
        result = get_editor(job.editor).edit(editable, requests, now)
    seconds = time.perf_counter() - begun
    course.deltas.append(result.delta)
    written = set(result.delta.case_ids)
    course.written += [r for r in requests if r.case_id in written]
    statuses = Counter(case.status for case in result.cases)
    course.rounds.append(
        {
            "edits": len(batch) - (sum(r["edits"] for r in course.rounds) if job.consolidated else 0),
            "superseded": len(batch) - len(requests),
            "seconds": seconds,
            "parts": dict(result.seconds),
            **{status: statuses[status] for status in ("edited", "unconverged", "skipped")},
        }
    )


def _held(suite: Suite | None, dataset: Dataset) -> tuple[HeldFact, ...]:
    """Known facts that a method may be given: the suite's, or what the dataset says is true beyond the stream."""
    if suite is not None:
        return held_facts(suite)
    return tuple(
        HeldFact(r.subject, another_wording(r), r.target_true, r.relation)
        for r in dataset.others
        if r.target_true is not None
    )


def another_wording(request: EditRequest) -> str:
    """A wording of a case in which it is not asked, if it has one: the beginning of a text that names its subject."""
    asked = {request.prompt, *request.paraphrase_prompts}
    free = (p.replace(request.subject, "{}", 1) for p in request.generation_prompts if p not in asked)
    return next((template for template in free if template.count("{}") == 1), request.prompt_template)


def _still(held: Sequence[HeldFact], corrected: Sequence[EditRequest]) -> tuple[HeldFact, ...]:
    """Known facts that no correction so far is about."""
    facts = {fact_key(r) for r in corrected}
    return tuple(fact for fact in held if fact_key(fact) not in facts)


def fixed_texts(job: Job, suite: Suite | None, requests: Sequence[EditRequest]) -> tuple[str, ...]:
    """The texts for perplexity: a suite's own, or sentences of the corpus that name no subject of the stream."""
    if suite is not None and suite.texts:
        return suite.texts
    if job.corpus is None:
        return ()
    subjects = {r.subject for r in requests}
    texts = {t[:LONGEST] for t in islice(open_corpus(job.corpus).texts(), READ) if not any(s in t for s in subjects)}
    return tuple(shuffled(texts, "perplexity")[:SENTENCES])


def _prose(job: Job, requests: Sequence[EditRequest]) -> Prose | None:
    """What to write about: some cases, and texts of the corpus that name their new objects."""
    able = {r.case_id: r for r in requests if r.generation_prompts}
    chosen = [able[name] for name in shuffled(able, "prose")[: job.prose]]
    if not chosen:
        return None
    naming: dict[str, list[str]] = {r.target_new: [] for r in chosen}
    for text in islice(open_corpus(job.corpus).texts(), READ) if job.corpus else ():
        for target, own in naming.items():
            if len(own) < REFERENCES and target in text:
                own.append(text[:LONGEST])
    return Prose(tuple(chosen), {r.case_id: tuple(naming[r.target_new]) for r in chosen})


def _end(course: _Course, stream: Sequence[EditRequest], *, solves: int | None) -> dict[str, Any]:
    """What holds at the end of a stream: all metrics, each case, and what is left of the edits of each age.

    `solves` is how many of the last rounds it rests on; None: all.
    """
    size, places = -(-len(stream) // AGES), {r.case_id: place for place, r in enumerate(stream)}

    def between(start: int, end: int) -> list[Right]:
        return [ways for name, ways in course.last.cases.items() if start <= places[name] < end]

    ages = []
    for start in range(0, len(stream), size):
        end = min(start + size, len(stream))
        if own := between(start, end):
            ages.append({"from": start + 1, "to": end, "facts": len(own), **by_way("efficacy", own)})
    cases = sorted(course.last.cases.items())
    return {
        "first_edits": first_edits(len(stream)),
        "ages": ages,
        "cases": {name: [right if right is None else int(right) for right in ways] for name, ways in cases},
        "metrics": {**course.last.metrics, **_gate(course), **_cost(course, solves)},
    }


def _gate(course: _Course) -> dict[str, float]:
    """How many edits a gate on perplexity alone lets through: those up to the last reading before the first that it stops."""
    if not course.rounds or math.isnan(course.unedited):
        return {}
    edits = accumulate(r["edits"] for r in course.rounds)
    readings = ((r["perplexity"], n) for r, n in zip(course.rounds, edits, strict=True) if "perplexity" in r)
    within = takewhile(lambda reading: reading[0] <= GATE * course.unedited, readings)
    return {"edits_within_gate": max((n for _, n in within), default=0)}


def _cost(course: _Course, solves: int | None) -> dict[str, float]:
    """What the edits of the last so many rounds took; nothing for the base."""
    if not course.rounds:
        return {}
    rounds = course.rounds[-solves:] if solves else course.rounds
    edits = sum(r[status] for r in rounds for status in ("edited", "unconverged", "skipped"))
    memory = {"peak_memory_mib": course.peak.process / 2**20, "peak_device_memory_mib": course.peak.device / 2**20}
    return {
        "skipped": sum(r["skipped"] for r in rounds),
        "unconverged": sum(r["unconverged"] for r in rounds),
        "seconds_per_edit": sum(r["seconds"] for r in rounds) / max(edits, 1),
        **{name: value for name, value in memory.items() if value},
    }


def finite(value: Any) -> Any:
    """Plain values with None in place of numbers that JSON does not know."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
