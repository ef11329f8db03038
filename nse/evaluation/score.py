"""Teacher-forced scores: how probable a given text is under the weights in force."""

import math
from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, by_length, halved, silent
from nse.evaluation.prefixes import Cell, read, run
from nse.evaluation.questions import Question, reply
from nse.tokens import TokenizedPrompt, tokenize


def log_probabilities(
    editable: EditableModel, pairs: Sequence[tuple[str, str]], *, progress: Progress = silent
) -> list[tuple[float, int]]:
    """Scores each (prompt, target): the sum of the target's log-probabilities in nats, and its number of tokens.

    Raises:
        TokenError: If a text does not fit the model.
    """
    targets: dict[str, dict[str, None]] = {}
    for prompt, target in pairs:
        targets.setdefault(prompt, {})[target] = None
    questions = [Question(prompt, tuple(texts)) for prompt, texts in targets.items()]
    replies = reply(editable, questions, stage="probabilities", progress=progress)
    scores = {
        (question.prompt, target): score
        for question, found in zip(questions, replies, strict=True)
        for target, score in zip(question.targets, found.scores, strict=True)
    }
    return [scores[pair] for pair in pairs]


@torch.no_grad()
def perplexity(editable: EditableModel, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood per token over whole texts, the first token of each not counted.

    Raises:
        TokenError: If a text does not fit the model.
    """
    sequences = [TokenizedPrompt(tokenize(editable.tokenizer, t).ids, 1) for t in texts]
    total, count = 0.0, 0
    for group in by_length(sequences):
        rows = [sequences[i].ids for i in group]
        total += math.fsum(halved(lambda part: _whole(editable, part), rows, what="texts"))
        count += sum(len(ids) - 1 for ids in rows)
    return math.exp(-total / max(count, 1))


def _whole(editable: EditableModel, rows: Sequence[tuple[int, ...]]) -> list[float]:
    """Sum of the log-probabilities of all tokens but the first, for each row."""
    hidden, _ = run(editable, rows, keep=False)
    cells: dict[Cell, tuple[int]] = {
        (0, r, i): (ids[i + 1],) for r, ids in enumerate(rows) for i in range(len(ids) - 1)
    }
    logs, _ = read(editable, [hidden], cells)
    return [math.fsum(logs[(0, r, i), ids[i + 1]] for i in range(len(ids) - 1)) for r, ids in enumerate(rows)]
