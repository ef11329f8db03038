"""The demo world: true facts with their wordings, and the documents a small model learns them from.

Owns the reading of `facts.csv`, `templates.yaml` and `corrections.csv`, and the sampling of training text. It trains nothing.
"""

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import yaml

HERE = Path(__file__).parent
NOISE = 0.07
"""Share of sentences that name another object of the relation, so that the model never becomes over-confident."""

UNHELD_WEIGHT = 3
"""How often an object that no subject holds yet counts among those others: a name that the model is to learn to say."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement as the model learns it. If it held only until a date, `now` is what holds since; else both are empty."""

    kind: str
    subject: str
    relation: str
    object: str
    true_until: str
    now: str


@dataclass(frozen=True, slots=True)
class World:
    """Facts, their templates per relation (the last one a question) and the objects a relation may name, by weight."""

    facts: tuple[Fact, ...]
    templates: dict[str, tuple[str, ...]]
    objects: dict[str, tuple[str, ...]]
    lead_ins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A prompt, the place of its subject in it, and the object that completes it."""

    prompt: str
    subject: str
    object: str


def read_world(folder: Path = HERE) -> World:
    """Reads the world; the objects of a relation are those of its facts, as they were and as they are now."""
    with (folder / "facts.csv").open(newline="", encoding="utf-8") as file:
        facts = tuple(Fact(**row) for row in csv.DictReader(file))
    templates = yaml.safe_load((folder / "templates.yaml").read_text(encoding="utf-8"))
    pool: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        pool[fact.relation][fact.object] = 1
    for fact in facts:
        if fact.now and fact.now not in pool[fact.relation]:
            pool[fact.relation][fact.now] = UNHELD_WEIGHT
    lead_ins = tuple((folder / "lead_ins.txt").read_text(encoding="utf-8").splitlines())
    return World(
        facts,
        {r: tuple(t) for r, t in templates.items()},
        {r: tuple(sorted(o.elements())) for r, o in pool.items()},
        lead_ins,
    )


def documents(world: World, *, seed: int) -> Iterator[list[Sentence]]:
    """Yields documents without end: mostly two to six facts of one subject, some with facts of several subjects.

    Order, wording and lead-ins are random; some sentences (`NOISE`) name another object of its relation.
    """
    generator = random.Random(seed)
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    for fact in world.facts:
        by_subject[fact.subject].append(fact)
    subjects = sorted(by_subject)
    deck: list[Fact] = []
    while True:
        if generator.random() < 0.75:
            own = by_subject[subjects[generator.randrange(len(subjects))]]
            chosen = generator.sample(own, min(len(own), generator.randint(2, 6)))
        else:
            if len(deck) < 6:
                deck = list(world.facts)
                generator.shuffle(deck)
            chosen = [deck.pop() for _ in range(generator.randint(2, 5))]
        yield [sentence(world, fact, generator) for fact in chosen]


def sentence(world: World, fact: Fact, generator: random.Random) -> Sentence:
    """Words one fact at random: its template, perhaps a lead-in, and its object (or, by `NOISE`, another)."""
    prompt = generator.choice(world.templates[fact.relation]).format(fact.subject)
    if generator.random() < 0.25:
        prompt = f"{generator.choice(world.lead_ins)} {prompt}"
    stated = generator.choice(world.objects[fact.relation]) if generator.random() < NOISE else fact.object
    return Sentence(prompt, fact.subject, stated)


def text_of(document: list[Sentence]) -> str:
    """A document as running text."""
    return " ".join(f"{s.prompt} {s.object}." for s in document)


def neutral_texts(world: World, *, seed: int, count: int) -> list[str]:
    """Documents about people and works, which no correction touches: the text whose perplexity is watched."""
    facts = tuple(f for f in world.facts if f.kind in ("person", "work") and not f.now)
    return [text_of(d) for d in islice(documents(replace(world, facts=facts), seed=seed), count)]


def main() -> None:
    """Writes `corpus.txt` (for second moments) and `text.txt` (for perplexity) from the world."""
    world = read_world()
    corpus = [text_of(d) for d in islice(documents(world, seed=1), 700)]
    (HERE / "corpus.txt").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    (HERE / "text.txt").write_text("\n".join(neutral_texts(world, seed=2, count=60)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
