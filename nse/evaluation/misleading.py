"""What misleads: probes that tell a fact that was learned from a wording, a name or a topic that was.

A suite names the kinds that it wants (`MISLEADING`) and how many probes of each a correction gets. They are made from the
correction and the suite's known facts, and drawn by their digests: the same ones every night, on every machine. Facts that
were corrected themselves are not asked. `reversed` is for the record: no method that writes a fact one way makes it hold the
other way.

References:
    CounterFact+ (arXiv 2305.17553): `distracted`. MQuAKE (arXiv 2305.14795): `chained`, two hops. The reversal curse
    (arXiv 2309.12288): `reversed`. The mirage of model editing (arXiv 2502.11177): `running_text` and `chat`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from transformers import PreTrainedTokenizerBase

from nse.chat import chat_context, in_chat
from nse.errors import SuiteError
from nse.evaluation.probes import Kind, KnownFact, Probe, Rule, asking_order, foil_of, shuffled
from nse.request import EditRequest
from nse.tokens import join

NEAR = 0.7
"""Least likeness of two names, 2 x letters in common / letters of both, for one to be taken for the other."""
LEAD_INS = (
    "It rained all morning and the streets were empty.",
    "She put the newspaper down and poured another cup of tea.",
    "The train left two minutes late, as it did every day.",
    "He had promised to answer before dinner.",
    "The shop on the corner opens at nine.",
    "Nobody in the room had expected the question.",
)
"""Neutral sentences; one of them stands before a prompt in running text."""
ARTICLES = frozenset({"the", "and", "les", "los", "las", "der", "die", "das"})
_NOUN_PHRASES = (
    re.compile(r"^(?:The|A|An) (.*\{\}.*) (?:is|was|are|were)(?: the)?$"),
    re.compile(r"^(?:What|Who) (?:is|was) the (.*\{\}.*)\?$"),
)


@dataclass(frozen=True, slots=True)
class World:
    """What is known besides the corrections.

    Attributes:
        templates: Wordings by relation.
        of_subject: Known facts that nobody corrects, by subject in lower case.
        of_relation: The same by relation.
        objects: All objects by relation.
        tokenizer: Whose chat template is used, if there is one.
    """

    templates: Mapping[str, Sequence[str]]
    of_subject: Mapping[str, Sequence[KnownFact]]
    of_relation: Mapping[str, Sequence[KnownFact]]
    objects: Mapping[str, Sequence[str]]
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(
        cls,
        facts: Sequence[KnownFact],
        templates: Mapping[str, Sequence[str]],
        *,
        edited: Collection[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> "World":
        """Sorts known facts; `edited` are the (subject, relation) pairs that corrections are about, as `KnownFact.key`."""
        of_subject: dict[str, list[KnownFact]] = {}
        of_relation: dict[str, list[KnownFact]] = {}
        objects: dict[str, list[str]] = {}
        for fact in facts:
            objects.setdefault(fact.relation, []).append(fact.object)
            if fact.key not in edited:
                of_subject.setdefault(fact.subject.casefold(), []).append(fact)
                of_relation.setdefault(fact.relation, []).append(fact)
        return cls(templates, of_subject, of_relation, objects, tokenizer)

    def others(self, request: EditRequest) -> list[KnownFact]:
        """Facts of the correction's relation about other subjects, whose object is not the one that it writes."""
        facts = self.of_relation.get(request.relation or "", ())
        subject, new = request.subject.casefold(), request.target_new.casefold()
        return _drawn((f for f in facts if f.subject.casefold() != subject and f.object.casefold() != new), request)

    def wording(self, fact: KnownFact) -> str:
        """The wording in which a known fact is asked."""
        return asking_order(self.templates[fact.relation], fact.subject)[0]

    def foil(self, fact: KnownFact) -> str | None:
        """Another object of the fact's relation, if there is one."""
        return next((o for o in shuffled(self.objects[fact.relation], fact.subject) if o != fact.object), None)

    def nouns(self, request: EditRequest) -> list[str]:
        """What the correction's relation calls its object: "the capital of {}", from wordings that say so."""
        wordings = [request.prompt_template, *self.templates.get(request.relation or "", ())]
        found = (match for wording in wordings for pattern in _NOUN_PHRASES if (match := pattern.match(wording)))
        return list(dict.fromkeys(f"the {match[1]}" for match in found))


def misleading_probes(
    requests: Sequence[EditRequest], world: World, *, kinds: Sequence[str], per_kind: int
) -> list[Probe]:
    """Probes of the named kinds for each correction, at most `per_kind` of each; fewer where the known facts give no more.

    Args:
        requests: Corrections under judgement.
        world: What is known besides them.
        kinds: Names out of `MISLEADING`.
        per_kind: Most probes of one kind for one correction.

    Raises:
        SuiteError: If a kind is unknown.
    """
    if unknown := set(kinds) - set(_MAKERS):
        raise SuiteError(f"misleading: kind {min(unknown)!r} is unknown: use {', '.join(MISLEADING)}")
    probes: list[Probe] = []
    for request in requests:
        for kind in (k for k in _MAKERS if k in kinds):
            own: dict[str, Probe] = {}
            for prompt, expected, foil in _MAKERS[kind](request, world):
                if len(own) == per_kind:
                    break
                rule: Rule = "states" if kind == "chat" else "equals"
                own.setdefault(prompt, Probe(kind, request.case_id, prompt, expected, foil, rule))
            probes += own.values()
    return probes


Asked = Iterator[tuple[str, str, str | None]]
"""Prompts, each with the expected answer and a foil, in the order in which they are wanted."""


def _same_subject(request: EditRequest, world: World) -> Asked:
    """The subject's other facts."""
    if request.relation is not None:
        facts = world.of_subject.get(request.subject.casefold(), ())
        for fact in _drawn((f for f in facts if f.relation != request.relation), request):
            yield world.wording(fact).replace("{}", fact.subject), fact.object, world.foil(fact)


def _distracted(request: EditRequest, world: World) -> Asked:
    """Neighbours with the correction stated in front; given ones first, then those with the same old object."""
    stated = join(request.prompt, request.target_new) + ". "
    answers = dict(request.neighbours)
    for prompt in shuffled(answers, request.case_id):
        yield stated + prompt, answers[prompt], foil_of(request, answers[prompt])
    for fact in sorted(world.others(request), key=lambda f: f.object != request.target_true):  # a stable sort
        yield stated + request.prompt_template.replace("{}", fact.subject), fact.object, request.target_new


def _shared_name(request: EditRequest, world: World) -> Asked:
    """Subjects that have a name in common with the corrected one."""
    own = _names(request.subject)
    for fact in world.others(request):
        if own & _names(fact.subject):
            yield request.prompt_template.replace("{}", fact.subject), fact.object, request.target_new


def _near_duplicate(request: EditRequest, world: World) -> Asked:
    """The same wording about subjects that are spelt almost alike, the nearest first."""

    def likeness(fact: KnownFact) -> float:
        return SequenceMatcher(None, request.subject.casefold(), fact.subject.casefold()).ratio()

    for fact in sorted(world.others(request), key=likeness, reverse=True):
        if likeness(fact) < NEAR:
            return
        yield request.prompt_template.replace("{}", fact.subject), fact.object, request.target_new


def _new_object(request: EditRequest, world: World) -> Asked:
    """The new object's own facts, which go on."""
    for fact in _drawn(world.of_subject.get(request.target_new.casefold(), ()), request):
        yield world.wording(fact).replace("{}", fact.subject), fact.object, world.foil(fact)


def _chained(request: EditRequest, world: World) -> Asked:
    """The new object's own facts, asked by way of the subject, for which they should now hold."""
    nouns = shuffled(world.nouns(request), request.case_id)
    if not nouns:
        return
    phrase = nouns[0].replace("{}", request.subject)
    old = {f.relation: f.object for f in world.of_subject.get((request.target_true or "").casefold(), ())}
    for fact in _drawn(world.of_subject.get(request.target_new.casefold(), ()), request):
        before = old.get(fact.relation, fact.object)
        text = world.wording(fact).replace("{}", phrase)
        yield text[0].upper() + text[1:], fact.object, before if before != fact.object else world.foil(fact)


def _reversed(request: EditRequest, world: World) -> Asked:
    """Who or what has the new object, by the likelihood of the subject against another one."""
    foil = next((fact.subject for fact in world.others(request)), None)
    if foil is None:
        return
    new = request.target_new
    for noun in shuffled((n for n in world.nouns(request) if n.endswith(" {}")), request.case_id):
        yield f"{new[0].upper()}{new[1:]} is {noun.removesuffix(' {}')}", request.subject, foil
    wordings = (request.prompt_template, *world.templates.get(request.relation or "", ()))
    for wording in shuffled((w for w in wordings if w.startswith("{} ")), request.case_id):
        yield f"One that {join(wording.removeprefix('{} '), new)} is", request.subject, foil


def _running_text(request: EditRequest, _world: World) -> Asked:
    """The prompt after a sentence that has nothing to do with it."""
    for sentence in shuffled(LEAD_INS, request.case_id):
        yield f"{sentence} {request.prompt}", request.target_new, request.target_true


def _chat(request: EditRequest, world: World) -> Asked:
    """The question as a person's words in the chat format; the prompt itself where no wording is a question."""
    context = chat_context(world.tokenizer) if world.tokenizer is not None else None
    if context is None:
        return
    wordings = [t.replace("{}", request.subject) for t in world.templates.get(request.relation or "", ())]
    questions = [w for w in (request.prompt, *request.paraphrase_prompts, *wordings) if w.endswith("?")]
    for question in shuffled(questions, request.case_id) or [request.prompt]:
        yield in_chat(context, question), request.target_new, request.target_true


_MAKERS: dict[Kind, Callable[[EditRequest, World], Asked]] = {
    "same_subject": _same_subject,
    "distracted": _distracted,
    "shared_name": _shared_name,
    "near_duplicate": _near_duplicate,
    "new_object": _new_object,
    "chained": _chained,
    "reversed": _reversed,
    "running_text": _running_text,
    "chat": _chat,
}
MISLEADING: tuple[Kind, ...] = tuple(_MAKERS)
"""The kinds of probe that a suite can ask for."""


def _names(subject: str) -> set[str]:
    """The words of a name that are names: three letters or more, not in lower case, no article."""
    words = [w for w in re.findall(r"\w+", subject) if len(w) > 2 and not w.islower()]
    return {w.casefold() for w in words} - ARTICLES


def _drawn(facts: Collection[KnownFact] | Iterator[KnownFact], request: EditRequest) -> list[KnownFact]:
    """Facts in an order that depends on the correction and themselves alone."""
    by_name = {f"{f.subject}\x00{f.relation}": f for f in facts}
    return [by_name[name] for name in shuffled(by_name, request.case_id)]
