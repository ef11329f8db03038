"""Capability: what share of the questions of public task sets a model gets right, whatever was edited.

A task set is a file, a JSON list; the file's name without its ending is the set's. A record is a minimal pair of whole texts,
`{"good": "...", "bad": "..."}`, as in BLiMP, or one right continuation of a prompt among wrong ones, `{"prompt": "...",
"right": "...", "wrong": ["...", ...]}`; it may have other keys. A question is right if its right text has a higher probability
than each of the wrong ones: the sum of the tokens' log-probabilities, not divided by their number, as BLiMP has it and as
accuracy on LAMBADA-like sets is published. So the texts of a question should be about equally long.

A line break stands in front of every text. Under a tokenizer that puts no BOS in front, nothing else would predict a sentence's
first word, and the first token is an attention sink, whose state hardly depends on which token it is (`nse.tokens`). Behind a
BOS it says that a line begins.

References:
    BLiMP (arXiv 1912.00582), section 4: the share of pairs whose acceptable sentence is the more probable one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.errors import RequestError, TaskError
from nse.evaluation.probes import shuffled
from nse.evaluation.questions import Question, reply
from nse.fingerprint import json_digest
from nse.request import read_text
from nse.tokens import LEAD

CAPABILITY = "capability"
"""The metric: the mean of the sets' shares, whatever their sizes; `capability.<set>` is that of one."""
ADVICE = 'write {"good": ..., "bad": ...} or {"prompt": ..., "right": ..., "wrong": [...]}, each a text'


@dataclass(frozen=True, slots=True)
class Choice:
    """A question: after `prompt`, `right` should be more probable than each text of `wrong`."""

    prompt: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Questions under one name."""

    name: str
    choices: tuple[Choice, ...]

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        return math.fsum(1 / (1 + len(choice.wrong)) for choice in self.choices) / len(self.choices)

    @property
    def digest(self) -> str:
        """Digest of all that is asked."""
        return json_digest(asdict(self))

    def sample(self, most: int) -> "TaskSet":
        """At most so many of the questions, by their digests alone: always the same ones; all of them if `most` is 0."""
        by_digest = {json_digest(asdict(choice)): choice for choice in self.choices}
        return TaskSet(self.name, tuple(by_digest[d] for d in shuffled(by_digest, self.name)[: most or None]))


def read_task_sets(paths: Sequence[Path], *, most: int = 0) -> tuple[TaskSet, ...]:
    """Reads task files.

    Args:
        paths: The files.
        most: Most questions of each file that are asked; 0 asks all.

    Raises:
        TaskError: If a file is missing or malformed, or two have one name; the message says which record, and why.
    """
    sets = [_read(path).sample(most) for path in paths]
    if twice := next((s.name for i, s in enumerate(sets) if s.name in {other.name for other in sets[:i]}), None):
        raise TaskError(f"two task files are called {twice!r}: rename one, results go by the file's name")
    return tuple(sets)


def capability(editable: EditableModel, sets: Sequence[TaskSet], *, progress: Progress = silent) -> dict[str, float]:
    """Asks the weights in force.

    Returns:
        `capability.<set>`, the share of right answers of each set, and `capability`, their mean; nothing if there is no set. A
        model whose probabilities are no numbers gets nothing right.

    Raises:
        TokenError: If a text does not fit the model.
    """
    if not sets:
        return {}
    # one question each, though prompts repeat: the right text and the wrong ones share what they begin with
    questions = [
        Question(LEAD + choice.prompt, (choice.right, *choice.wrong)) for own in sets for choice in own.choices
    ]
    replies = iter(reply(editable, questions, stage="capability", progress=progress))
    shares = {}
    for own in sets:
        nats = [[score for score, _ in next(replies).scores] for _ in own.choices]
        shares[f"{CAPABILITY}.{own.name}"] = sum(all(right > w for w in wrong) for right, *wrong in nats) / len(nats)
    return {CAPABILITY: math.fsum(shares.values()) / len(shares), **shares}


def _read(path: Path) -> TaskSet:
    try:
        rows = json.loads(read_text(path))
    except RequestError as error:
        raise TaskError(str(error)) from error
    except json.JSONDecodeError as error:
        raise TaskError(f"{path} is not JSON ({error}): write a JSON list of records") from error
    if not isinstance(rows, list) or not rows:
        raise TaskError(f"{path} is no list of records, or an empty one: {ADVICE}")
    return TaskSet(path.stem, tuple(_choice(row, f"{path} record {number}") for number, row in enumerate(rows, 1)))


def _choice(row: Any, where: str) -> Choice:
    if not isinstance(row, Mapping):
        raise TaskError(f"{where} is no mapping: {ADVICE}")
    pair = "good" in row or "bad" in row
    right = row.get("good" if pair else "right")
    wrong = [row.get("bad")] if pair else row.get("wrong")
    prompt = "" if pair else row.get("prompt")
    if not _is_text(right) or not isinstance(wrong, list) or not wrong or not all(map(_is_text, wrong)):
        raise TaskError(f"{where} lacks a right or a wrong text: {ADVICE}")
    if not isinstance(prompt, str):
        raise TaskError(f"{where} has no prompt: {ADVICE}")
    if right in wrong:
        raise TaskError(f"{where}: {right!r} is right and wrong at once: change one of them")
    return Choice(prompt, right, tuple(wrong))


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())
