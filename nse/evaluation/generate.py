"""Greedy free generation, and what a model would say next."""

from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.evaluation.probes import Rule
from nse.evaluation.questions import Question, reply
from nse.memories import routed
from nse.tokens import join, tokenize

ANSWER_TOKENS = 20
"""Most tokens of an answer."""
CHAT_TOKENS = 40
"""Most tokens of an answer in the chat format, where it is a sentence that mostly repeats the question."""


def generate(
    editable: EditableModel,
    prompts: Sequence[str],
    *,
    expected: Sequence[str] = (),
    rule: Rule = "equals",
    max_new_tokens: int = ANSWER_TOKENS,
    progress: Progress = silent,
) -> list[str]:
    """Continues each prompt greedily.

    Args:
        editable: The model.
        prompts: What to continue; equal ones are continued once.
        expected: Of each prompt the text that its answer will be compared with, if there is any.
        rule: How it will be compared.
        max_new_tokens: Most tokens of a text.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        The generated texts without their prompts, up to a token that ends all (`end_tokens`) or the first one that ends a clause;
        past that only where the expected text or the rule needs it (`nse.evaluation.answers`).

    Raises:
        TokenError: If a prompt has no token or leaves no room for the answer.
    """
    pairs = list(zip(prompts, expected or [""] * len(prompts), strict=True))
    wanted: dict[str, dict[tuple[str, Rule], None]] = {}
    for prompt, text in pairs:
        wanted.setdefault(prompt, {})[text, rule] = None
    questions = [Question(prompt, expected=tuple(texts)) for prompt, texts in wanted.items()]
    replies = reply(editable, questions, max_new_tokens=max_new_tokens, stage="free generation", progress=progress)
    found = {question.prompt: said for question, said in zip(questions, replies, strict=True)}
    return [found[prompt].judged_by(text, rule) for prompt, text in pairs]


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
