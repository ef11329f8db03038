"""The facts of a calibration: which are asked for, how they are split by subject, and which of them the model knows.

Search and validation take their facts from two parts of the subjects; the third part is never asked about, so that a later
test can use it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nse.batch import Progress, silent
from nse.calibration.errors import CalibrationError
from nse.calibration.judge import BaseAnswers
from nse.evaluation.probes import KnownFact, Probe, request_probes, shuffled
from nse.evaluation.suites import Suite, read_suite
from nse.fingerprint import file_digest, json_digest
from nse.request import EditRequest, read_requests
from nse.subjects import HeldFact

SEARCH_SHARE, VALIDATION_SHARE = 0.4, 0.2
HELD_SHARE = 1 / 3
"""Share of the subjects of both whose facts are held, and so are no neighbours: what is held says nothing about the rest."""
LEAST = {"search": 6, "validation": 3}
"""Fewest known subjects with which a part says anything at all."""
PER_CASE = {"generalization": 4, "specificity": 5, "untouched": 4}
"""Most questions of a kind about one fact."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file offers: one possible correction per fact, the suite it came from, if it did, and its digest."""

    requests: tuple[EditRequest, ...]
    digest: str
    suite: Suite | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Subjects by part, each in the order in which they are tried; `held_out` is for later tests."""

    search: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A correction of a fact that the model knows, and its questions; those of what must stay the base model answers right."""

    request: EditRequest
    probes: tuple[Probe, ...] = field(repr=False)


def read_facts(path: Path, *, seed: int) -> Facts:
    """Reads facts with their true objects, and for each an object to write instead.

    Args:
        path: A suite (YAML): its known facts, each corrected to another object of its relation in the relation's first
            wording; or requests in any layout of `nse.request`, of which those without `target_true` are left out.
        seed: Of the choice of objects.

    Raises:
        NseError: If the file is malformed.
    """
    if path.suffix not in (".yaml", ".yml"):
        requests = tuple(r for r in read_requests(path) if r.target_true)
        return Facts(requests, file_digest(path))
    suite = read_suite(path)
    objects: dict[str, set[str]] = {}
    for fact in suite.facts:
        objects.setdefault(fact.relation, set()).add(fact.object)
    found = []
    for fact in suite.facts:
        name = f"{fact.subject} / {fact.relation}"
        if others := sorted(objects[fact.relation] - {fact.object}):
            new = random.Random(f"{seed}/{name}").choice(others)
            template = suite.templates[fact.relation][0]
            found.append(EditRequest(name, fact.subject, template, new, fact.object, fact.relation))
    return Facts(tuple(found), suite.digest, suite)


def split(facts: Facts, *, seed: int) -> Split:
    """Splits the subjects by their digests and the seed alone: the same parts on every machine."""
    order = tuple(shuffled((_name(r.subject) for r in facts.requests), f"calibration {seed}"))
    first = round(len(order) * SEARCH_SHARE)
    second = first + round(len(order) * VALIDATION_SHARE)
    return Split(order[:first], order[first:second], order[second:])


def known_cases(
    base: BaseAnswers,
    facts: Facts,
    parts: Split,
    *,
    part: str,
    count: int,
    seed: int,
    but: Sequence[Case] = (),
    progress: Progress = silent,
) -> tuple[Case, ...]:
    """Up to `count` cases of one part, each of another subject, whose fact the model gives by greedy generation.

    Args:
        base: Answers of the base model.
        facts: What the file offers.
        parts: The split.
        part: Name of the part.
        count: Most cases.
        seed: Chooses one of a subject's facts.
        but: Cases not to give again; their subjects come last. With them, too few cases are none, and no error.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        CalibrationError: If there are too few; the message says how many are needed.
    """
    given, again = {c.request.case_id for c in but}, {_name(c.request.subject) for c in but}
    subjects = tuple(sorted(getattr(parts, part), key=lambda name: name in again))  # a stable sort
    of: dict[str, list[EditRequest]] = {subject: [] for subject in subjects}
    for request in facts.requests:
        if (name := _name(request.subject)) in of:
            of[name].append(request)
    chosen: list[tuple[EditRequest, list[EditRequest]]] = []
    asked = 0
    for start in range(0, len(subjects), count):
        block = subjects[start : start + count]
        flat = [r for name in block for r in of[name]]
        answers = iter(base.right([(r.prompt, r.target_true or "") for r in flat]))
        known = {name: [r for r in of[name] if next(answers)] for name in block}
        asked += len(flat)
        fresh = [([r for r in own if r.case_id not in given], own) for own in known.values()]
        chosen += [(_first(new, seed), own) for new, own in fresh if new]
        progress(f"known facts for {part}", min(len(chosen), count), count)
        if len(chosen) >= count:
            break
    if len(chosen) < LEAST.get(part, 1):
        if but:
            return ()
        raise CalibrationError(
            f"the model knows a fact of only {len(chosen)} of {len(subjects)} subjects kept for {part} ({asked} facts asked),"
            f" {LEAST.get(part, 1)} are needed: give more facts, or facts that this model knows"
        )
    return _cases(base, facts, parts, chosen[:count])


def held_facts(facts: Facts, parts: Split) -> tuple[HeldFact, ...]:
    """The facts of subjects that are never asked about unless they are corrected themselves, to be held in all edits."""
    held = _held_subjects(parts)
    return tuple(
        HeldFact(r.subject, r.prompt_template, r.target_true or "", r.relation)
        for r in facts.requests
        if _name(r.subject) in held
    )


def used_digest(parts: Sequence[Sequence[Case]]) -> str:
    """Digest of which facts served for what."""
    return json_digest([[case.request.case_id for case in part] for part in parts])


def _cases(
    base: BaseAnswers, facts: Facts, parts: Split, chosen: Sequence[tuple[EditRequest, list[EditRequest]]]
) -> tuple[Case, ...]:
    """Puts the questions to each correction; of what must stay, only what the base model answers right is kept."""
    requests = [request for request, _ in chosen]
    never = {*parts.held_out, *_held_subjects(parts)}
    drafts: list[list[Probe]] = []
    for request, own in chosen:
        probes = _probes(facts.suite, request, requests, never)
        others = [r for r in own if (r.relation, r.prompt_template) != (request.relation, request.prompt_template)]
        others = [r for r in others if r.relation is None or r.relation != request.relation]
        probes += [Probe("untouched", request.case_id, r.prompt, r.target_true or "", r.target_new) for r in others]
        drafts.append(probes)
    staying = [p for probes in drafts for p in probes if p.kind == "specificity"]
    stays = iter(base.right([(p.prompt, p.expected) for p in staying]))
    cases = []
    for (request, _), probes in zip(chosen, drafts, strict=True):
        kept = [p for p in probes if p.kind != "specificity" or next(stays)]
        cases.append(Case(request, tuple(p for kind in (*PER_CASE, "efficacy") for p in _some(kept, kind))))
    return tuple(cases)


def _probes(suite: Suite | None, request: EditRequest, requests: Sequence[EditRequest], never: set[str]) -> list[Probe]:
    """Questions about one correction; none is about another subject of `never`, or about a fact corrected in the same part."""
    if suite is not None:
        facts = [f for f in suite.facts if f.relation == request.relation and _name(f.subject) not in never]
        edited = {KnownFact(r.subject, r.relation or "", "").key for r in requests}
        templates = suite.templates.get(request.relation or "", ())
        count = 2 * PER_CASE["specificity"]
        return request_probes(request, facts=facts, templates=templates, edited=edited, neighbours=count)
    probes = request_probes(request, facts=(), templates=(), edited=set(), neighbours=0)
    same = {_name(r.subject) for r in requests if r.relation == request.relation}
    barred = [n for n in (*never, *same) if n != _name(request.subject)]
    return [p for p in probes if p.kind != "specificity" or not any(name in p.prompt.casefold() for name in barred)]


def _some(probes: Sequence[Probe], kind: str) -> list[Probe]:
    """The first questions of a kind, as many as a case may have, in an order that depends on their texts alone."""
    own = {p.prompt: p for p in probes if p.kind == kind}
    return [own[text] for text in shuffled(own, kind)[: PER_CASE.get(kind, 1)]]


def _held_subjects(parts: Split) -> set[str]:
    """A part of the subjects of search and validation, chosen by their names alone."""
    subjects = shuffled((*parts.search, *parts.validation), "held")
    return set(subjects[: round(len(subjects) * HELD_SHARE)])


def _first(requests: Sequence[EditRequest], seed: int) -> EditRequest:
    """One of a subject's facts, chosen by the seed alone."""
    names = {r.case_id: r for r in requests}
    return names[shuffled(names, f"fact {seed}")[0]]


def _name(subject: str) -> str:
    return " ".join(subject.split()).casefold()
