"""ParaRel's facts as a stream for a pretrained model: what it knows is asked first, neighbours are facts that it knows.

    python -m benchmarks.pararel --model DIR --output build/methods/pararel.json
    python -m benchmarks.pararel --model DIR --output build/methods/pararel-tuning.json --edits 400 --tuning

Of the facts that the model says by greedy generation, `KEPT` of a hundred are never corrected. Half of them are neighbours, which
no method is told of. The other half stand after the corrections: they are asked as untouched, and a method may be told to hold
them. The others are corrected first, then facts that it does not know, one of each subject.
Answers are kept beside the output, by the model's digest.

Settings are tuned on other subjects: `--tuning` makes a stream of those facts of smollm2_dev.json that are known, then of unknown
facts whose subjects no reported stream of `REPORTED` corrections names. Such a stream leaves the subjects of that file out.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.table import HERE
from flows.progress import shown
from nse.architecture import EditableModel, load_model
from nse.batch import Progress
from nse.evaluation.answers import same_answer
from nse.evaluation.generate import generate
from nse.request import EditRequest, read_requests
from nse.subjects import subject_key

DATA = HERE.parent / "shared/data"
RELATIONS = ("P103", "P36", "P1412", "P1376", "P17")
"""Relations of which SmolLM2-135M knows more than a few facts, or whose subjects are easily corrected."""
KEPT = 45
NEIGHBOURS = 3
ANSWER_TOKENS = 5
REPORTED = 1000
PART = 400
"""Facts that are asked between two savings."""


def known(editable: EditableModel, facts: Sequence[EditRequest], answers: Path, progress: Progress) -> set[str]:
    """Names of the facts whose true object the model says after the bare prompt; kept answers are not asked again."""
    found: dict[str, str] = json.loads(answers.read_text(encoding="utf-8")) if answers.is_file() else {}
    open_ = [fact for fact in facts if fact.case_id not in found]
    for start in range(0, len(open_), PART):
        progress("facts", len(facts) - len(open_) + start, len(facts))
        part = open_[start : start + PART]
        said = generate(editable, [fact.prompt for fact in part], max_new_tokens=ANSWER_TOKENS)
        found |= {fact.case_id: answer for fact, answer in zip(part, said, strict=True)}
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return {f.case_id for f in facts if f.target_true and same_answer(found[f.case_id], f.target_true)}


def stream(facts: Sequence[EditRequest], right: set[str], *, edits: int, seed: int) -> list[dict[str, Any]]:
    """The records of the stream: `edits` corrections with their neighbours, then the facts that stay."""
    drawn = random.Random(seed)
    by_subject: dict[str, EditRequest] = {}
    for fact in sorted(facts, key=lambda f: (f.case_id not in right, drawn.random())):
        by_subject.setdefault(subject_key(fact), fact)
    chosen = list(by_subject.values())  # what is known first
    known_ = [fact for fact in chosen if fact.case_id in right]
    drawn.shuffle(known_)
    kept = known_[: len(known_) * KEPT // 100]
    near: dict[str, list[EditRequest]] = defaultdict(list)
    for fact in kept[::2]:
        near[fact.relation or ""].append(fact)
    corrected = [fact for fact in (*known_[len(kept) :], *chosen[len(known_) :]) if near[fact.relation or ""]][:edits]
    return [
        *(_record(fact, near[fact.relation or ""], drawn) for fact in corrected),
        *(_record(f, (), drawn) for f in kept[1::2]),
    ]


def _record(fact: EditRequest, near: Sequence[EditRequest], drawn: random.Random) -> Mapping[str, Any]:
    """A fact in our plain layout; its neighbours are known facts of its relation, asked in its own wording."""
    neighbours = drawn.sample(list(near), min(NEIGHBOURS, len(near)))
    return {
        "case_id": fact.case_id,
        "subject": fact.subject,
        "prompt_template": fact.prompt_template,
        "relation": fact.relation,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "paraphrase_prompts": list(fact.paraphrase_prompts),
        "neighborhood_prompts": [n.prompt for n in neighbours],
        "neighborhood_answers": [n.target_true for n in neighbours],
        "generation_prompts": list(fact.generation_prompts),
    }


def main() -> None:
    """Asks, and writes the stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "build/methods/pararel.json")
    parser.add_argument("--edits", type=int, default=REPORTED)
    parser.add_argument("--tuning", action="store_true", help="the stream that settings are tuned on")
    parser.add_argument("--seed", type=int, default=0)
    options, console = parser.parse_args(), Console(stderr=True)
    torch.set_num_threads(1)
    editable = load_model(options.model, dtype=torch.float32)
    tuning = read_requests(DATA / "smollm2_dev.json")
    tuned = {subject_key(request) for request in tuning}
    facts = [
        fact
        for fact in read_requests(DATA / "pararel.json")
        if fact.relation in RELATIONS and subject_key(fact) not in tuned
    ]
    answers = options.output.with_name(f"answers-{editable.base_digest[:12]}.json")
    with shown(console) as progress:
        right = known(editable, facts, answers, progress)
    if options.tuning:
        reported = {record["subject"] for record in stream(facts, right, edits=REPORTED, seed=options.seed)}
        facts = [*tuning, *(f for f in facts if f.subject not in reported and f.case_id not in right)]
        right = {fact.case_id for fact in tuning}
    records = stream(facts, right, edits=options.edits, seed=options.seed)
    options.output.write_text(json.dumps(records, ensure_ascii=False, indent=0), encoding="utf-8")
    corrected = sum(bool(record["neighborhood_prompts"]) for record in records)
    console.print(
        f"{len(right)} of {len(facts)} facts are known; {corrected} are corrected, {len(records) - corrected} stay"
    )


if __name__ == "__main__":
    main()
