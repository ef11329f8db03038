"""The facts of one subject: which corrections stand, which belong together, which known facts are held in place.

With causal attention every prompt that begins with a subject has the same key, so the corrections of one subject are
written together, or each undoes the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nse.request import EditRequest


@dataclass(frozen=True, slots=True)
class HeldFact:
    """What a model knows about a subject and shall go on knowing: `prompt_template` with `subject` -> `object`."""

    subject: str
    prompt_template: str
    object: str
    relation: str | None = None


def subject_key(fact: EditRequest | HeldFact) -> str:
    """Who a fact is about, whatever its case and spaces."""
    return " ".join(fact.subject.split()).casefold()


def fact_key(fact: EditRequest | HeldFact) -> tuple[str, str]:
    """What a fact is about, whatever its object: subject and relation, or the wording if no relation is given."""
    return subject_key(fact), fact.relation or fact.prompt_template


def companions(requests: Sequence[EditRequest], earlier: Iterable[EditRequest]) -> list[EditRequest]:
    """The earlier corrections of the subjects of `requests` that still stand: of one fact the latest, if not corrected again."""
    subjects, corrected = {subject_key(r) for r in requests}, {fact_key(r) for r in requests}
    latest = {fact_key(r): r for r in earlier if subject_key(r) in subjects}
    return [r for key, r in latest.items() if key not in corrected]


def of_other_subjects(held: Iterable[HeldFact], corrected: Iterable[EditRequest]) -> list[HeldFact]:
    """The known facts whose subjects no correction is about."""
    subjects = {subject_key(request) for request in corrected}
    return [fact for fact in held if subject_key(fact) not in subjects]


@dataclass(frozen=True, slots=True)
class SubjectFacts:
    """What one z is computed for: places of its corrections in their list, and the known facts that it holds."""

    members: tuple[int, ...]
    held: tuple[HeldFact, ...]


def by_subject(requests: Sequence[EditRequest], held: Sequence[HeldFact], *, joint: bool) -> list[SubjectFacts]:
    """Groups corrections that get their z together, in an order that depends on what they say and not on how they came.

    Args:
        requests: Corrections, each fact once.
        held: Known facts; those of other subjects, and those that `requests` correct, are left out.
        joint: Whether the corrections of one subject belong together; if not, each stands alone.
    """
    groups: dict[object, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(subject_key(request) if joint else place, []).append(place)
    corrected = {fact_key(r) for r in requests}
    known: dict[str, set[HeldFact]] = {}
    for fact in held:
        if fact_key(fact) not in corrected:
            known.setdefault(subject_key(fact), set()).add(fact)
    return [
        SubjectFacts(
            tuple(sorted(places, key=lambda i: (requests[i].prompt_template, requests[i].target_new))),
            tuple(sorted(known.get(subject_key(requests[places[0]]), ()), key=lambda f: (f.prompt_template, f.object))),
        )
        for places in groups.values()
    ]
