"""Finds what a model knows: asks it candidate facts by greedy generation and writes those that it has right, for a suite.

`python -m demo.smollm2.find --model DIR --candidates demo/smollm2/candidates.csv PARAREL.json --output demo/smollm2/known.csv`

A fact is known if the answer is right after the relation's first wording, in which neighbours of corrections are asked, and
after the one in which the suite asks it by itself. Beside the file it writes another, `.json`, with the digest of the model
and what the model says where a correction is to be made. Asked twice, a model says the same: the seed only draws the facts that
are kept where a relation has more than `--most`.
"""

import argparse
import csv
import datetime
import hashlib
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flows.progress import Progress, shown
from nse.architecture import EditableModel, load_model
from nse.evaluation.answers import answer, same_answer
from nse.evaluation.generate import generate
from nse.evaluation.probes import KnownFact, asking_order
from nse.evaluation.questions import Question, reply

HERE = Path(__file__).parent
PARAREL = {"P36": "capital", "P103": "native_language", "P1412": "spoken_language", "P1376": "capital_of"}
"""Relations of ParaRel of which small models know something, by our names."""
SOURCES = {
    "candidates.csv": "written for this demo",
    "pararel.json": "ParaRel (yanaiela/pararel, MIT licence), facts from T-REx",
}
Templates = Mapping[str, Sequence[str]]


def read_candidates(path: Path) -> list[KnownFact]:
    """Reads facts from a CSV file, or those of ParaRel's relations from a dataset in the CounterFact layout."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [KnownFact(row["subject"], row["relation"], row["object"]) for row in csv.DictReader(file)]
    rewrites = [record["requested_rewrite"] for record in json.loads(path.read_text(encoding="utf-8"))]
    return [
        KnownFact(r["subject"], PARAREL[r["relation_id"]], r["target_true"]["str"])
        for r in rewrites
        if r["relation_id"] in PARAREL
    ]


def read_corrections(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a file of corrections."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def known(
    editable: EditableModel, facts: Iterable[KnownFact], templates: Templates, progress: Progress
) -> list[KnownFact]:
    """The facts that the model has right after the first wording, and after the one in which a suite asks them."""
    left = list(dict.fromkeys(fact for fact in facts if fact.relation in templates))
    left = _right(editable, left, [templates[fact.relation][0] for fact in left], progress, "first wording")
    asked = [asking_order(templates[fact.relation], fact.subject)[0] for fact in left]
    return _right(editable, left, asked, progress, "wording of the suite")


def _right(
    editable: EditableModel, facts: Sequence[KnownFact], wordings: Sequence[str], progress: Progress, name: str
) -> list[KnownFact]:
    """The facts that are right after these wordings.

    An answer is right only if it begins with the object, which one pass shows; only then is it generated up to its end.
    """
    pairs = [(fact, wording.replace("{}", fact.subject)) for fact, wording in zip(facts, wordings, strict=True)]
    questions = [Question(prompt, (fact.object,)) for fact, prompt in pairs]
    begun = reply(editable, questions, stage=f"{name}: which answers begin right", progress=progress)
    pairs = [pair for pair, found in zip(pairs, begun, strict=True) if found.right[0]]

    def told(_stage: str, done: int, total: int) -> None:
        progress(f"{name}: whole answers", done, total)

    texts = generate(editable, [p for _, p in pairs], expected=[fact.object for fact, _ in pairs], progress=told)
    return [fact for (fact, _), text in zip(pairs, texts, strict=True) if same_answer(text, fact.object)]


def said(editable: EditableModel, corrections: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the model answers today where a correction is to be made, by "subject / relation"."""
    prompts = [row["prompt_template"].replace("{}", row["subject"]) for row in corrections]
    texts = generate(editable, prompts, expected=[row["target_new"] for row in corrections])
    return {
        f"{row['subject']} / {row['relation']}": answer(text, row["target_new"])
        for row, text in zip(corrections, texts, strict=True)
    }


def drawn(facts: Sequence[KnownFact], *, most: int, seed: int) -> list[KnownFact]:
    """At most `most` facts of each relation, drawn by the seed; in the order of relation and subject."""
    relations: dict[str, list[KnownFact]] = {}
    for fact in sorted(facts, key=lambda fact: (fact.relation, fact.subject)):
        relations.setdefault(fact.relation, []).append(fact)
    generator = random.Random(seed)
    chosen = [generator.sample(own, min(most, len(own))) for own in relations.values()]
    return sorted((fact for own in chosen for fact in own), key=lambda fact: (fact.relation, fact.subject))


def write(path: Path, facts: Sequence[KnownFact], about: Mapping[str, Any]) -> None:
    """Writes the facts, and beside them what they are and where they come from."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("subject", "relation", "object"))
        rows.writerows((fact.subject, fact.relation, fact.object) for fact in facts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps({"facts": len(facts), "sha256": digest, **about}, ensure_ascii=False, indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Asks a model and writes what it knows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--candidates", type=Path, nargs="+", default=[HERE / "candidates.csv"])
    parser.add_argument("--templates", type=Path, default=HERE / "templates.yaml")
    parser.add_argument("--corrections", type=Path, default=HERE / "corrections.csv")
    parser.add_argument("--most", type=int, default=80, help="most facts of a relation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "known.csv")
    options = parser.parse_args()
    templates = yaml.safe_load(options.templates.read_text(encoding="utf-8"))
    corrections = read_corrections(options.corrections)
    corrected = {(row["subject"].casefold(), row["relation"]) for row in corrections}
    candidates = [fact for path in options.candidates for fact in read_candidates(path) if fact.key not in corrected]
    editable = load_model(options.model)
    with shown(Console(stderr=True)) as progress:
        found = known(editable, candidates, templates, progress)
    facts = drawn(found, most=options.most, seed=options.seed)
    about = {
        "model_digest": editable.base_digest,
        "tokenizer_digest": editable.tokenizer_digest,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python -m demo.smollm2.find --candidates {' '.join(p.name for p in options.candidates)}"
        f" --most {options.most} --seed {options.seed}",
        "asked": len({fact for fact in candidates if fact.relation in templates}),
        "known": len(found),
        "sources": {path.name: SOURCES.get(path.name, path.name) for path in options.candidates},
        "said_before_correction": said(editable, corrections),
    }
    write(options.output, facts, about)
    print(f"{len(facts)} facts in {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
