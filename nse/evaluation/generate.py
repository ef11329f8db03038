"""Greedy free generation, and the rule by which a generated text is taken for an answer."""

import re
from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.errors import TokenError
from nse.tokens import tokenize

END_OF_ANSWER = re.compile(r"[.,;:!?\n]")
ROWS = 128


@torch.no_grad()
def generate(
    editable: EditableModel, prompts: Sequence[str], *, max_new_tokens: int = 20, progress: Progress = silent
) -> list[str]:
    """Continues each prompt greedily; prompts of one token length share a batch, so no padding is ever seen.

    Returns:
        The generated texts without their prompts, up to an EOS.

    Raises:
        TokenError: If a prompt has no token or leaves no room for the answer.
    """
    encoded = [list(tokenize(editable.tokenizer, p).ids) for p in prompts]
    positions = editable.positions
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(encoded):
        if not ids or len(ids) + max_new_tokens > positions:
            raise TokenError(
                f"prompt {prompts[i]!r} has {len(ids)} tokens; with the answer the model takes {positions}"
            )
        by_length.setdefault(len(ids), []).append(i)
    texts, done = [""] * len(prompts), 0
    for group in by_length.values():
        for start in range(0, len(group), ROWS):
            part = group[start : start + ROWS]
            batch = torch.tensor([encoded[i] for i in part], device=editable.device)
            for i, new in zip(part, _continue(editable, batch, max_new_tokens), strict=True):
                texts[i] = editable.decode(new)
            done += len(part)
            progress("free generation", done, len(prompts))
    return texts


def _continue(editable: EditableModel, ids: torch.Tensor, count: int) -> list[list[int]]:
    """Greedy continuation of (n, t) ids, each row cut at its first EOS; a row that has ended an answer is not followed."""
    out = editable.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    eos = editable.tokenizer.eos_token_id
    rows: list[list[int]] = [[] for _ in range(ids.shape[0])]
    open_ = [True] * ids.shape[0]
    length = ids.shape[1]
    for _ in range(count):
        step = out.logits[:, -1].argmax(dim=-1)
        for row, token in enumerate(step.tolist()):
            if open_[row]:
                open_[row] = token != eos
                if open_[row]:
                    rows[row].append(token)
                    open_[row] = not END_OF_ANSWER.search(editable.decode([token]))
        if not any(open_) or len(rows[0]) == count:
            break
        length += 1
        mask = torch.ones(ids.shape[0], length, dtype=ids.dtype, device=ids.device)
        out = editable.model(
            input_ids=step[:, None], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True
        )
    return rows


def answer(text: str) -> str:
    """The answer in a generated text: what stands before the first sign that ends a clause."""
    return END_OF_ANSWER.split(text.strip(), maxsplit=1)[0].strip()


def same_answer(generated: str, expected: str) -> bool:
    """Whether a generated text answers `expected`: equal after case, spaces and punctuation are made one."""
    return _normal(answer(generated)) == _normal(answer(expected) or expected)


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


@torch.no_grad()
def next_tokens(editable: EditableModel, prompt: str, *, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable next tokens of a prompt, with their probabilities."""
    ids = torch.tensor([tokenize(editable.tokenizer, prompt).ids], device=editable.device)
    logits = editable.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()
    top = logits.softmax(-1).topk(k)
    return [(editable.decode([int(t)]), float(p)) for p, t in zip(top.values, top.indices, strict=True)]
