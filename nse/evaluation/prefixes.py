"""Forward passes over texts that start where an earlier one ended, and what their hidden states say of the next token.

What has been run is kept as attention keys and values, all of them, whatever the family's own cache would drop. Rows are aligned
on the right, so that between a new token and those before it lie as many places as in its text: a sliding window sees what it
would see if the text stood alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import DynamicCache

from nse.architecture import EditableModel
from nse.batch import pad

LOGITS = 2**25
"""Logits that are held at once."""

Cell = tuple[int, int, int]
"""A hidden state: number of the pass, row, column."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What n texts have been run as.

    Attributes:
        cache: Per layer, keys and values (n, heads, slots, d_head).
        begin: Slot of each text's first token; its others follow without a gap.
        lengths: Number of tokens of each text.
    """

    cache: DynamicCache
    begin: tuple[int, ...]
    lengths: tuple[int, ...]

    def first(self, rows: Sequence[int], lengths: Sequence[int]) -> "Prefix":
        """The first `lengths` tokens of `rows`, which may repeat, aligned on the right: a copy."""
        width = max(lengths)
        ends = torch.tensor([self.begin[row] + length for row, length in zip(rows, lengths, strict=True)])
        slots = (ends[:, None] - width + torch.arange(width)).clamp_min(0)  # (n, width)
        which = torch.tensor(rows)[:, None]
        cache = DynamicCache()
        for number, (keys, values) in enumerate(_layers(self.cache)):
            i, j = which.to(keys.device), slots.to(keys.device)
            # (n, width, heads, d_head) and back
            cache.update(keys[i, :, j].transpose(1, 2), values[i, :, j].transpose(1, 2), number)
        return Prefix(cache, tuple(width - length for length in lengths), tuple(lengths))

    def select(self, rows: Sequence[int]) -> "Prefix":
        """Some of the rows; the others are gone, from this prefix too."""
        if len(rows) < len(self.lengths):
            self.cache.batch_select_indices(torch.tensor(rows, dtype=torch.long))
        return Prefix(self.cache, tuple(self.begin[r] for r in rows), tuple(self.lengths[r] for r in rows))


Row = tuple[Prefix, int, int]
"""The first tokens of a prefix's row: prefix, row, how many tokens."""


def gathered(rows: Sequence[Row]) -> Prefix:
    """Rows of several prefixes as one prefix, aligned on the right: a copy. Quicker if rows of one prefix stand together."""
    parts = []
    for _, group in groupby(rows, key=lambda row: id(row[0])):
        own = list(group)
        parts.append(own[0][0].first([row for _, row, _ in own], [length for _, _, length in own]))
    if len(parts) == 1:
        return parts[0]
    widths = [part.cache.get_seq_length() for part in parts]
    left = [max(widths) - width for width in widths]
    cache = DynamicCache()
    for number, layers in enumerate(zip(*(_layers(part.cache) for part in parts), strict=True)):
        keys, values = (
            torch.cat([torch.nn.functional.pad(part, (0, 0, more, 0)) for part, more in zip(same, left, strict=True)])
            for same in zip(*layers, strict=True)
        )
        cache.update(keys, values, number)
    return Prefix(
        cache,
        tuple(begin + more for part, more in zip(parts, left, strict=True) for begin in part.begin),
        tuple(length for part in parts for length in part.lengths),
    )


def run(
    editable: EditableModel, sequences: Sequence[Sequence[int]], *, after: Prefix | None = None, keep: bool = True
) -> tuple[torch.Tensor, Prefix]:
    """Runs token ids under the weights in force, each row after the text of its prefix, if prefixes are given.

    Args:
        editable: The model.
        sequences: Token ids of n rows.
        after: What stands before them, aligned on the right. It is used up: its cache grows.
        keep: Whether to keep keys and values; if not, the prefix that is returned holds none.

    Returns:
        Final hidden states (n, longest, d_model), meaningless after a row's end, and the prefix of all that has been run.

    Raises:
        TokenError: If a row is longer than the model's positions.
    """
    batch = pad(editable, sequences)
    n, longest = batch.ids.shape
    device = batch.ids.device
    before = after.lengths if after else (0,) * n
    lengths = [len(sequence) for sequence in sequences]
    slots = after.cache.get_seq_length() if after else 0
    begin = tuple(slots - length for length in before)
    mask = torch.arange(slots, device=device) >= torch.tensor(begin, device=device)[:, None]
    # places after a row's end would lie beyond the model's positions: they repeat its last
    offset = torch.arange(longest).minimum(torch.tensor(lengths)[:, None] - 1)
    cache = after.cache if after else DynamicCache()
    keep = keep or after is not None
    hidden: torch.Tensor = editable.model.base_model(
        input_ids=batch.ids,
        attention_mask=torch.cat([mask.to(batch.mask.dtype), batch.mask], dim=1),
        position_ids=(torch.tensor(before)[:, None] + offset).to(device),
        past_key_values=cache if keep else None,
        use_cache=keep,
    ).last_hidden_state
    return hidden, Prefix(cache, begin, tuple(b + n for b, n in zip(before, lengths, strict=True)))


def read(
    editable: EditableModel, passes: Sequence[torch.Tensor], cells: Mapping[Cell, Collection[int]]
) -> tuple[dict[tuple[Cell, int], float], dict[Cell, int]]:
    """What hidden states say of the next token.

    Args:
        editable: The model.
        passes: Final hidden states (n, t, d_model) of each pass.
        cells: The hidden states to read, each with the tokens whose log-probabilities are wanted there.

    Returns:
        log p in nats by (cell, token), and the most probable token of each cell.
    """
    logs: dict[tuple[Cell, int], float] = {}
    best: dict[Cell, int] = {}
    size = max(1, LOGITS // editable.vocabulary)
    for number, hidden in enumerate(passes):
        own = [cell for cell in cells if cell[0] == number]
        for part in (own[i : i + size] for i in range(0, len(own), size)):
            logits = editable.head(hidden[[row for _, row, _ in part], [column for _, _, column in part]])
            best.update(zip(part, logits.argmax(dim=-1).tolist(), strict=True))
            wanted = [(i, token) for i, cell in enumerate(part) for token in cells[cell]]
            at, tokens = [i for i, _ in wanted], [token for _, token in wanted]
            found = (logits[at, tokens].double() - logits.logsumexp(dim=-1)[at].double()).tolist()
            logs.update({(part[i], token): log for (i, token), log in zip(wanted, found, strict=True)})
    return logs, best


def _layers(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer."""
    return [(keys, values) for keys, values, _ in cache]
