"""Teacher-forced scores: how probable a given text is under the weights in force."""

import math
from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, by_length, halved, silent
from nse.evaluation.prefixes import Cell, read, run
from nse.evaluation.questions import Question, reply
from nse.memories import routed
from nse.tokens import TokenizedPrompt, tokenize

MOST_NATS = 700
"""exp of more does not fit a float."""


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
    total, count = 0.0, 0
    for route in routed(editable, texts):
        sequences = [_tokens(editable, texts[i], before) for i, before in zip(route.places, route.before, strict=True)]
        with route.voice():
            for group in by_length(sequences):
                rows = [sequences[i] for i in group]
                total += math.fsum(halved(lambda part: _whole(editable, part), rows, what="texts"))
                count += sum(len(row.ids) - row.prompt_length for row in rows)
    nats = -total / max(count, 1)
    return math.inf if nats > MOST_NATS else math.exp(nats)


def _tokens(editable: EditableModel, text: str, before: str) -> TokenizedPrompt:
    """A text in tokens, all but its first one the target, behind what is said before it."""
    if not before:
        return TokenizedPrompt(tokenize(editable.tokenizer, text).ids, 1)
    whole = tokenize(editable.tokenizer, before, target=text)
    return TokenizedPrompt(whole.ids, whole.prompt_length + 1)


def _whole(editable: EditableModel, rows: Sequence[TokenizedPrompt]) -> list[float]:
    """Sum of the log-probabilities of the target of each row."""
    hidden, _ = run(editable, [row.ids for row in rows], keep=False)
    scored = [
        [((0, r, i - 1), row.ids[i]) for i in range(row.prompt_length, len(row.ids))] for r, row in enumerate(rows)
    ]
    cells: dict[Cell, tuple[int]] = {cell: (token,) for own in scored for cell, token in own}
    logs, _ = read(editable, [hidden], cells)
    return [math.fsum(logs[pair] for pair in own) for own in scored]
