"""Public task sets for capability, made of what is fetched: nothing of them is shipped. Prints their files.

    python -m benchmarks.tasks

- `blimp`: minimal pairs of BLiMP (arXiv 1912.00582; CC BY 4.0), where ../shared holds them.
- `analogies`: the analogy questions of word2vec (arXiv 1301.3781; Apache-2.0), out of the package that holds the Wikipedia text.
  "big is to bigger as small is to" wants "smaller", against three other answers of its category; as published, the words of the
  question are no candidates. The categories of facts (capitals, currencies, cities) are left out: edits are about such facts.
- `cloze`: the last word of a sentence of the held-out Wikipedia text (CC BY-SA), against three words of what follows it in its
  paragraph: our own, after LAMBADA (arXiv 1606.06031), which asks for the word itself.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.table import HERE
from demo.fetch import fetched_file
from demo.wikipedia import texts
from nse.evaluation.probes import shuffled

BLIMP = HERE.parent / "shared/data/blimp.json"
OF_WORDS = ("gram", "family")
"""How the categories of analogies begin that ask for no fact."""
OTHERS = 3
SENTENCE = re.compile(r"([A-Z].{60,200}?) ([a-z]{4,})\. (?=[A-Z])(.*)")
"""The first sentence of a paragraph up to its last word, this word, and what follows."""
WORD = re.compile(r"\b[a-z]{4,}\b")


def task_files() -> tuple[Path, ...]:
    """The task files, made where they are not there yet; BLiMP's only if it is there.

    Raises:
        FetchFailed: If what they are made of cannot be fetched.
    """
    questions, held_out = fetched_file("analogies"), texts()[1]
    analogies_file, cloze_file = questions.with_name("analogies.json"), held_out.with_name("cloze.json")
    _write(analogies_file, list(analogies(questions.read_text(encoding="utf-8"))))
    _write(cloze_file, list(cloze(held_out.read_text(encoding="utf-8"))))
    return (*([BLIMP] if BLIMP.is_file() else []), analogies_file, cloze_file)


def analogies(text: str) -> Iterator[dict[str, Any]]:
    """The analogy questions of the file's own layout (": category", then four words a line) as records of a task file."""
    categories: dict[str, list[tuple[str, ...]]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            rows = categories.setdefault(line.removeprefix(":").strip(), [])
        elif line.strip():
            rows.append(tuple(line.split()))
    for category, rows in categories.items():
        if category.startswith(OF_WORDS):
            answers = {row[3] for row in rows}
            for first, second, third, fourth in rows:
                question = f"{first} is to {second} as {third} is to"
                wrong = shuffled(answers - {first, second, third, fourth}, question)[:OTHERS]
                yield {"prompt": question, "right": fourth, "wrong": wrong, "category": category}


def cloze(text: str) -> Iterator[dict[str, Any]]:
    """A record of a task file for each paragraph, a line of `text`, whose first sentence ends with a plain word."""
    for line in text.splitlines():
        if found := SENTENCE.match(line):
            prompt, right, rest = found.groups()
            wrong = shuffled((word for word in WORD.findall(rest) if word != right), prompt)[:OTHERS]
            if len(wrong) == OTHERS:
                yield {"prompt": prompt, "right": right, "wrong": wrong}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=0) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # of an earlier version of this file
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def main() -> None:
    """Makes the files and prints where they are."""
    print(*task_files(), sep="\n")


if __name__ == "__main__":
    main()
