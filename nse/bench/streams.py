"""The stream of a benchmark: which cases of a dataset are edited, in which order, in which rounds, and what is asked about them.

Every method gets the same of it. It knows no method and no model beyond its tokenizer.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nse.calibration.facts import read_facts
from nse.errors import RequestError, TokenError
from nse.evaluation.misleading import World, misleading_probes
from nse.evaluation.probes import Probe, chat_probes, request_probes, shuffled, untouched_probes
from nse.evaluation.suites import Suite
from nse.fingerprint import file_digest, json_digest
from nse.request import EditRequest, read_records, request_of
from nse.subjects import fact_key, subject_key
from nse.tokens import tokenize_template

UNTOUCHED = 200
"""Most of a dataset's further cases that are asked as facts which no edit is about."""
SUITES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a file offers for one stream.

    Attributes:
        requests: The first usable cases, as many as are to be edited.
        others: Cases after those, whose true objects nobody edits.
        left_out: Per case that cannot be used, which it is and why.
        digest: Of the file, or of all that a suite names.
        suite: The suite, if the file is one.
    """

    requests: tuple[EditRequest, ...]
    others: tuple[EditRequest, ...]
    left_out: tuple[tuple[str, str], ...]
    digest: str
    suite: Suite | None = None


def read_dataset(path: Path, tokenizer: PreTrainedTokenizerBase, *, edits: int, seed: int) -> Dataset:
    """Reads the first usable cases of a dataset.

    A case is usable if it is well formed, the model has tokens for its subject and target, and its name is not taken.

    Args:
        path: A file of requests in any layout of `nse.request`, or a suite (YAML), each of whose known facts can be corrected
            to another object of its relation: one of each subject first, the further ones after those.
        tokenizer: The model's.
        edits: How many cases are wanted.
        seed: Of a suite's new objects, and of the order in which its facts are taken.

    Raises:
        RequestError: If the file cannot be read, or has fewer usable cases.
        SuiteError: If a suite is malformed.
    """
    suite, digest = None, ""
    if path.suffix in SUITES:
        facts = read_facts(path, seed=seed)
        suite, digest = facts.suite, facts.digest
        wordings = facts.suite.templates if facts.suite else {}
        drafts: list[tuple[str, EditRequest | str]] = [
            (r.case_id, _with_prose(r, wordings)) for r in _spread(facts.requests, seed)
        ]
    else:
        drafts = [(f"record {i}", _draft(row, i)) for i, row in enumerate(read_records(path))]
        digest = file_digest(path)
    usable: dict[str, EditRequest] = {}
    left_out: list[tuple[str, str]] = []
    for name, draft in drafts:
        # cases beyond the stream are only asked about
        reason = (
            draft if isinstance(draft, str) else _unusable(draft, tokenizer if len(usable) < edits else None, usable)
        )
        if reason:
            left_out.append((name, reason))
        elif isinstance(draft, EditRequest):
            usable[draft.case_id] = draft
    found = tuple(usable.values())
    if len(found) < edits:
        first = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise RequestError(f"{path} has {len(found)} usable cases, {edits} edits are asked for: ask for fewer{first}")
    return Dataset(found[:edits], found[edits:], tuple(left_out), digest, suite)


def _draft(row: object, place: int) -> EditRequest | str:
    try:
        return request_of(row, case_id=str(place), where="it")
    except RequestError as error:
        return str(error)


def _with_prose(request: EditRequest, templates: Mapping[str, Sequence[str]]) -> EditRequest:
    """A correction of a suite's fact, with all wordings of its relation as beginnings of free text."""
    own = templates.get(request.relation or "", ())
    return replace(request, generation_prompts=tuple(t.replace("{}", request.subject) for t in own))


def _unusable(request: EditRequest, tokenizer: PreTrainedTokenizerBase | None, taken: Collection[str]) -> str:
    """Why a case cannot be used; empty if it can."""
    if problems := request.problems():
        return " ".join(problems[0])
    if request.case_id in taken:
        return f"case_id {request.case_id!r} is taken: give each case its own"
    if tokenizer is None:
        return ""
    try:
        tokenize_template(tokenizer, request.prompt_template, request.subject, target=request.target_new)
    except TokenError as error:
        return str(error)
    return ""


def _spread(requests: Sequence[EditRequest], seed: int) -> list[EditRequest]:
    """All requests, shuffled; the first of each subject before all others."""
    by_name = {r.case_id: r for r in requests}
    order = [by_name[name] for name in shuffled(by_name, f"bench {seed}")]
    first = {subject_key(r): r.case_id for r in reversed(order)}
    return sorted(order, key=lambda r: first[subject_key(r)] != r.case_id)  # a stable sort


def ordered(requests: Sequence[EditRequest], *, order: int, seed: int) -> list[EditRequest]:
    """The stream of one order: a permutation that depends on the order's number and the seed alone."""
    stream = list(requests)
    random.Random(f"{seed}/{order}").shuffle(stream)
    return stream


def in_rounds(stream: Sequence[EditRequest], size: int) -> list[list[EditRequest]]:
    """The stream in rounds of `size`."""
    return [list(stream[start : start + size]) for start in range(0, len(stream), size)]


def standing(stream: Iterable[EditRequest]) -> list[EditRequest]:
    """Of each fact its latest correction: what the model shall answer after the stream."""
    return list({fact_key(r): r for r in stream}.values())


def checkpoints(rounds: int, count: int) -> list[int]:
    """After how many rounds all is tested, evenly spread, the end always among them."""
    return sorted({max(1, round(rounds * k / count)) for k in range(1, count + 1)})


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked: of each case its own probes, and facts that no edit is about."""

    cases: dict[str, tuple[Probe, ...]]
    untouched: tuple[Probe, ...]

    @property
    def digest(self) -> str:
        """Digest of every question."""
        probes = [probe for own in (*self.cases.values(), self.untouched) for probe in own]
        return json_digest([[p.kind, p.case_id, p.prompt, p.expected, p.foil] for p in probes])


def questions_about(
    dataset: Dataset,
    suite: Suite | None,
    *,
    most: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: str | None = None,
) -> Questions:
    """The questions about a stream, the same in every order.

    What the stream itself corrects is no neighbour: a question about the subject of one of its corrections is left out of
    specificity where it is of the same relation, and so is one that is a correction's own prompt.

    Args:
        dataset: The stream and what else its file offers.
        suite: Known facts to ask about besides, if any.
        most: Questions of each kind about a case at most, chosen by digest, the same for all methods; 0 asks all. Of misleading
            ones there are as many as the suite says.
        tokenizer: Whose chat template is used for the suite's misleading questions.
        chat: The chat format as a context, in which everything else is asked as well; None for prose alone.
    """
    corrected = {r.prompt for r in dataset.requests}
    subjects: dict[str | None, set[str]] = {}
    for request in dataset.requests:
        subjects.setdefault(request.relation, set()).add(request.subject.casefold())
    edited = {(r.subject.casefold(), r.relation or "") for r in dataset.requests}
    facts, templates, neighbours = (suite.facts, suite.templates, suite.neighbours) if suite else ((), {}, 0)
    kinds, per_kind = (suite.misleading, suite.per_kind) if suite else ((), 0)
    world = World.of(facts, templates, edited=edited, tokenizer=tokenizer)
    cases: dict[str, tuple[Probe, ...]] = {}
    for request in dataset.requests:
        relation = request.relation
        barred = subjects[relation] if relation is not None else set()
        near = [
            (prompt, answer)
            for prompt, answer in request.neighbours
            if prompt not in corrected and not any(name in prompt.casefold() for name in barred)
        ]
        prompts, answers = zip(*near, strict=True) if near else ((), ())
        asked = replace(request, neighborhood_prompts=prompts, neighborhood_answers=answers)
        own = request_probes(
            asked,
            facts=[f for f in facts if f.relation == relation],
            templates=templates.get(relation or "", ()),
            edited=edited,
            neighbours=neighbours,
        )
        misleading = misleading_probes([asked], world, kinds=kinds, per_kind=per_kind)
        cases[request.case_id] = (*_at_most(most, tuple(dict.fromkeys(own))), *misleading)
    untouched = tuple(_untouched(dataset, suite, edited))
    if chat is not None:
        cases = {name: (*probes, *chat_probes(probes, chat)) for name, probes in cases.items()}
        untouched = (*untouched, *chat_probes(untouched, chat))
    return Questions(cases, untouched)


def _at_most(most: int, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    if not most:
        return probes
    of_kind: dict[str, list[str]] = {}
    for probe in probes:
        of_kind.setdefault(probe.kind, []).append(probe.prompt)
    chosen = {kind: set(shuffled(prompts, "asked")[:most]) for kind, prompts in of_kind.items()}
    return tuple(probe for probe in probes if probe.prompt in chosen[probe.kind])


def _untouched(dataset: Dataset, suite: Suite | None, edited: set[tuple[str, str]]) -> list[Probe]:
    if suite is not None:
        return untouched_probes(suite.facts, templates=suite.templates, edited=edited, sample=suite.untouched)
    facts = {fact_key(r) for r in dataset.requests}
    others = {r.case_id: r for r in dataset.others if r.target_true is not None and fact_key(r) not in facts}
    chosen = [others[name] for name in shuffled(others, "untouched")[:UNTOUCHED]]
    return [Probe("untouched", r.case_id, r.prompt, r.target_true or "", r.target_new) for r in chosen]
