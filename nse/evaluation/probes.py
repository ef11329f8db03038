"""Probes: the single questions that an evaluation asks, made from requests, known facts and canaries."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nse.chat import in_chat
from nse.request import EditRequest

Kind = Literal[
    "efficacy",
    "generalization",
    "specificity",
    "same_subject",
    "distracted",
    "shared_name",
    "near_duplicate",
    "new_object",
    "chained",
    "reversed",
    "running_text",
    "chat",
    "retention",
    "untouched",
    "kept",
    "canary",
    "chat_efficacy",
    "chat_generalization",
    "chat_specificity",
    "chat_retention",
    "chat_untouched",
    "chat_kept",
]
IN_CHAT: dict[Kind, Kind] = {
    "efficacy": "chat_efficacy",
    "generalization": "chat_generalization",
    "specificity": "chat_specificity",
    "retention": "chat_retention",
    "untouched": "chat_untouched",
    "kept": "chat_kept",
}
"""Kinds that are asked in the chat format as well, each with the kind that it is there."""
Rule = Literal["equals", "contains", "lacks", "states"]
"""How a generated answer is judged: it is the expected text, it has it in it, it has not; or, in the chat format, its first
sentence states it and not the foil (`nse.evaluation.answers`)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        kind: What it measures.
        case_id: The request, fact or canary that it belongs to.
        prompt: Text that the answer follows.
        expected: The right answer.
        foil: A wrong answer to compare probabilities with, if there is one.
        rule: What the answer has to do with `expected`.
    """

    kind: Kind
    case_id: str
    prompt: str
    expected: str
    foil: str | None = None
    rule: Rule = "equals"


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A fact that a suite holds the model to."""

    subject: str
    relation: str
    object: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is about, whatever the answer."""
        return (self.subject.casefold(), self.relation)


def shuffled(items: Iterable[str], seed: str) -> list[str]:
    """The items in an order that depends on `seed` alone, the same on every machine."""
    return sorted(set(items), key=lambda item: hashlib.sha256(f"{seed}\x00{item}".encode()).digest())


def asking_order(templates: Sequence[str], subject: str) -> list[str]:
    """Wordings of a relation in the order in which a subject's known fact is asked: the suite asks the first."""
    return shuffled(templates, subject)


def foil_of(request: EditRequest, expected: str) -> str | None:
    """A correction's object that is not the expected answer: the new one, or the old one, if it is known."""
    return request.target_new if expected != request.target_new else request.target_true


def request_probes(
    request: EditRequest,
    *,
    facts: Sequence[KnownFact],
    templates: Sequence[str],
    edited: set[tuple[str, str]],
    neighbours: int,
) -> list[Probe]:
    """The probes of one correction: its prompt, wordings it was not written with, and neighbours that must not move.

    Args:
        request: The correction.
        facts: Known facts of the correction's relation.
        templates: Wordings of its relation.
        edited: (subject, relation) pairs that are corrected now or were before: they are no neighbours.
        neighbours: How many neighbours to ask; those with the same old object come first.
    """
    new, old = request.target_new, request.target_true
    probes = [Probe("efficacy", request.case_id, request.prompt, new, old)]
    unseen = [t.replace("{}", request.subject) for t in templates if t != request.prompt_template]
    probes += [Probe("generalization", request.case_id, p, new, old) for p in (*request.paraphrase_prompts, *unseen)]
    probes += [Probe("specificity", request.case_id, p, a, foil_of(request, a)) for p, a in request.neighbours]
    others = {f.subject: f for f in facts if f.key not in edited and f.subject.casefold() != request.subject.casefold()}
    same = shuffled((s for s, f in others.items() if f.object == old), request.subject)
    rest = shuffled((s for s, f in others.items() if f.object != old), request.subject)
    for subject in [*same, *rest][:neighbours]:
        expected = others[subject].object
        prompt = request.prompt_template.replace("{}", subject)
        probes.append(Probe("specificity", request.case_id, prompt, expected, foil_of(request, expected)))
    return probes


def chat_probes(probes: Iterable[Probe], context: str) -> list[Probe]:
    """Of each probe of a kind in `IN_CHAT` the twin that asks the same as a person's words to the model.

    Args:
        probes: Any probes.
        context: The chat format as a context (`nse.chat`).
    """
    return [
        replace(probe, kind=IN_CHAT[probe.kind], prompt=in_chat(context, probe.prompt), rule="states")
        for probe in probes
        if probe.kind in IN_CHAT
    ]


def untouched_probes(
    facts: Sequence[KnownFact],
    *,
    templates: dict[str, tuple[str, ...]],
    edited: set[tuple[str, str]],
    sample: int | None = None,
) -> list[Probe]:
    """One question for each known fact that no correction is about, its wording chosen by its subject.

    Args:
        facts: All known facts.
        templates: Wordings by relation.
        edited: (subject, relation) pairs that corrections are about.
        sample: How many of the facts to draw, by their digest alone: the same ones on every night; all if not given.
    """
    objects: dict[str, list[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, []).append(fact.object)
    drawn = set(shuffled((f"{f.subject}\x00{f.relation}" for f in facts), "untouched")[:sample])
    probes = []
    for fact in facts:
        if fact.key in edited or f"{fact.subject}\x00{fact.relation}" not in drawn:
            continue
        template = asking_order(templates[fact.relation], fact.subject)[0]
        foil = next((o for o in shuffled(objects[fact.relation], fact.subject) if o != fact.object), None)
        case = f"{fact.subject} / {fact.relation}"
        probes.append(Probe("untouched", case, template.replace("{}", fact.subject), fact.object, foil))
    return probes
