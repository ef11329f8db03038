"""Batches: token sequences padded on the right, so that no real token sees a pad, and halved when they do not fit in memory."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from nse.architecture import EditableModel
from nse.errors import NseError, TokenError
from nse.tokens import TokenizedPrompt

_LOG = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


TOKENS_PER_BATCH = 1024
"""Padded tokens in one forward pass: activations stay in the processor's cache, and the allocator need not ask for pages."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """The progress callback of those who do not want to see any."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids (n, t) and their attention mask (n, t), both int64, on the model's device."""

    ids: torch.Tensor
    mask: torch.Tensor


def pad(editable: EditableModel, sequences: Sequence[Sequence[int]]) -> Batch:
    """Pads sequences on the right to one length.

    Raises:
        TokenError: If one is longer than the model's positions.
    """
    longest = max(len(s) for s in sequences)
    check_fits(editable, longest)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return Batch(ids.to(editable.device), mask.to(editable.device))


def check_fits(editable: EditableModel, tokens: int) -> None:
    """Checks that a text of so many tokens is not longer than the model's positions.

    Raises:
        TokenError: If it is.
    """
    if tokens > editable.positions:
        raise TokenError(
            f"a text has {tokens} tokens, the model takes {editable.positions}: shorten the prompt or its contexts"
        )


def by_length(prompts: Sequence[TokenizedPrompt], *, tokens: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Groups the indices of `prompts` into batches of like length with at most about `tokens` padded tokens each."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    group: list[int] = []
    for index in order:
        if group and len(prompts[index].ids) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def halved(run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], *, what: str) -> list[Result]:
    """Results of the items, in order; where a batch does not fit in memory, of its halves, and theirs, down to one item.

    Args:
        run: Takes a batch, returns its results. It is called again with fewer items, so it must leave nothing behind.
        items: The batch.
        what: What the batch holds, in the plural, for messages.

    Raises:
        NseError: If one item alone does not fit.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not _out_of_memory(error):
            raise
        if len(items) == 1:
            reason = str(error).splitlines()[0]
            raise NseError(
                f"one of the {what} does not fit in memory by itself ({reason}): shorten it, or take a smaller dtype"
            ) from error
    # outside the handler, which keeps the failed batch's activations alive
    half = len(items) // 2
    _LOG.warning("%d %s do not fit in memory: halved", len(items), what)
    return [*halved(run, items[:half], what=what), *halved(run, items[half:], what=what)]


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator had no more to give; the processor's raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
