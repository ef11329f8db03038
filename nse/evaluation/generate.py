"""Greedy free generation, and the rule by which a generated text is taken for an answer."""

import re
from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.evaluation.probes import Rule
from nse.evaluation.questions import END_OF_ANSWER, Question, reply
from nse.memories import routed
from nse.tokens import join, tokenize

ANSWER_TOKENS = 20
"""Most tokens of an answer."""


def generate(
    editable: EditableModel, prompts: Sequence[str], *, max_new_tokens: int = ANSWER_TOKENS, progress: Progress = silent
) -> list[str]:
    """Continues each prompt greedily.

    Returns:
        The generated texts without their prompts, up to an EOS or the first token that ends a clause.

    Raises:
        TokenError: If a prompt has no token or leaves no room for the answer.
    """
    questions = [Question(prompt) for prompt in dict.fromkeys(prompts)]
    replies = reply(editable, questions, max_new_tokens=max_new_tokens, stage="free generation", progress=progress)
    texts = {question.prompt: found.generated for question, found in zip(questions, replies, strict=True)}
    return [texts[prompt] for prompt in prompts]


def answer(text: str) -> str:
    """The answer in a generated text: what stands before the first sign that ends a clause."""
    return END_OF_ANSWER.split(text.strip(), maxsplit=1)[0].strip()


def same_answer(generated: str, expected: str) -> bool:
    """Whether a generated text answers `expected`: equal after case, spaces and punctuation are made one."""
    return _normal(answer(generated)) == _normal(answer(expected) or expected)


def satisfies(generated: str, expected: str, *, rule: Rule) -> bool:
    """Whether a generated text is, contains or lacks `expected`; whole words count, up to where the answer ends."""
    if rule == "equals":
        return same_answer(generated, expected)
    contains = f" {_normal(expected)} " in f" {_normal(generated)} "
    return contains == (rule == "contains")


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


@torch.no_grad()
def next_tokens(editable: EditableModel, prompt: str, *, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable next tokens of a prompt, with their probabilities."""
    route = next(route for route in routed(editable, [prompt]) if route.places)
    text = join(route.before[0], prompt) if route.before[0] else prompt
    ids = torch.tensor([tokenize(editable.tokenizer, text).ids], device=editable.device)
    with route.voice():
        logits = editable.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()
    top = logits.softmax(-1).topk(k)
    return [(editable.decode([int(t)]), float(p)) for p, t in zip(top.values, top.indices, strict=True)]
