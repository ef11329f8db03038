"""Context templates: texts put in front of a prompt so that an edit does not depend on what stands before it.

They are an explicit input of an edit and part of its digest: a JSON list of lists of templates with one `{}` each.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from nse.architecture import EditableModel
from nse.chat import chat_context
from nse.errors import RequestError
from nse.request import read_text
from nse.tokens import tokenize

ContextTemplates = tuple[tuple[str, ...], ...]
BARE: ContextTemplates = (("{}",),)
OPENINGS = ("The", "Therefore", "Because", "I", "You")


def within(context: str, prompt_template: str) -> str:
    """The prompt template (its `{}` kept for the subject) inside a context."""
    before, _, after = context.partition("{}")
    return before + prompt_template + after


def read_contexts(path: Path) -> ContextTemplates:
    """Reads a JSON list of lists of templates.

    Raises:
        RequestError: If the file is not such a list, or a template does not hold exactly one `{}`.
    """
    try:
        groups = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is not JSON (line {error.lineno}: {error.msg}): mend it there") from error
    if not isinstance(groups, list) or not groups or not all(isinstance(g, list) and g for g in groups):
        raise RequestError(
            f'{path} is not a list of non-empty lists of templates: write e.g. [["{{}}"], ["Today {{}}"]]'
        )
    for text in (t for g in groups for t in g):
        if not isinstance(text, str) or text.count("{}") != 1:
            raise RequestError(f"{path}: context {text!r} must be a text with exactly one '{{}}'")
    return tuple(tuple(g) for g in groups)


@torch.no_grad()
def sample_contexts(
    editable: EditableModel, *, seed: int, length: int = 10, openings: Sequence[str] = OPENINGS
) -> ContextTemplates:
    """Samples one context of `length` tokens for each opening from the model itself, as ROME and MEMIT do, but seeded.

    Returns:
        A group of the bare context and of the chat format, where the tokenizer has one: people ask an instruct model in it, so z
        is optimised there even with `value_contexts: first`; and a group with a sampled context `"<text>. {}"` per opening.
    """
    generator = torch.Generator().manual_seed(seed)
    sampled = []
    for opening in openings:
        ids = torch.tensor([tokenize(editable.tokenizer, opening).ids], device=editable.device)
        for _ in range(length):
            logits = editable.model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float().cpu()
            top = logits.topk(min(5, len(logits)))
            choice = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, top.indices[choice].to(editable.device)[None]], dim=1)
        text = editable.decode(ids[0].tolist()).replace("{", " ").replace("}", " ")
        sampled.append(" ".join(text.split()).rstrip(".") + ". {}")
    chat = chat_context(editable.tokenizer)
    return ((*BARE[0], *([chat] if chat is not None else [])), tuple(sampled))
