"""Padding token sequences into batches, on the right, so that no real token sees a pad."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nse.architecture import EditableModel
from nse.errors import TokenError
from nse.tokens import TokenizedPrompt

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
    positions = getattr(editable.model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise TokenError(
            f"a text has {longest} tokens, the model takes {positions}: shorten the prompt or its contexts"
        )
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return Batch(ids.to(editable.device), mask.to(editable.device))


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
