"""Rows: texts from where a fact is written on. What stands before does not depend on delta and is run once.

Only its attention keys and values are kept. Which texts these are, and what is asked of them, is `nse.objective`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from nse.architecture import EditableModel
from nse.batch import pad
from nse.tokens import TokenizedPrompt
from nse.trace import capture_outputs, resumed_above


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a subject's objective.

    Attributes:
        prompt: Its tokens.
        scored: Positions whose next token counts, at least one.
        weight: What each of them counts in the subject's loss.
        kept: Whether the distribution there shall stay (a divergence); if not, the token that follows shall become likely.
        member: Place of the correction among the subject's, -1 for texts of none.
    """

    prompt: TokenizedPrompt
    scored: range
    weight: float
    kept: bool
    member: int = -1

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that are run: nothing is asked after the last scored position."""
        return self.prompt.ids[: self.scored[-1] + 1]

    @property
    def after(self) -> int:
        """How many tokens depend on delta."""
        return len(self.ids) - self.prompt.fact_token


def read_together(texts: Sequence[Text]) -> list[list[int]]:
    """Places of one subject's `texts`, in groups that one row reads: those that the longest of a group begins with.

    They share the token where the fact is written, so delta acts in them alike: "{subject} is a" up to the subject is in
    most cases the beginning of a prompt.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(texts)), key=lambda i: (texts[i].prompt.fact_token, texts[i].ids), reverse=True):
        text, longest = texts[place], texts[groups[-1][0]] if groups else None  # what is longer stands before
        if (
            longest is not None
            and longest.prompt.fact_token == text.prompt.fact_token
            and longest.ids[: len(text.ids)] == text.ids
        ):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


@dataclass(frozen=True, slots=True)
class Rows:
    """Some texts as one batch; p tokens stand before the one where the fact is written, aligned to the right, s from it on.

    Attributes:
        ids: (rows, s) token ids, the one where the fact is written first.
        mask: (rows, p + s) which tokens are real.
        positions: (rows, s) places of the tokens in their texts.
        states: (rows, s, d_model) hidden states after z's layer, without delta.
        past: Per layer, attention keys and values (rows, heads, p, d_head) of the tokens before.
        subject: (rows,) subject of each row.
        row: (m,) row of each scored position.
        column: (m,) its place in the row.
        token: (m,) the token that shall follow.
        weight: (m,) float32, what it counts.
        kept: (m,) whether the distribution shall stay.
        reference: (m kept, vocabulary) log-probabilities without delta where it shall stay.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    past: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    subject: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    token: torch.Tensor
    weight: torch.Tensor
    kept: torch.Tensor
    reference: torch.Tensor

    def of(self, subjects: torch.Tensor) -> "Rows":
        """The rows of the subjects for which `subjects` (n,) is true; itself if those are all."""
        chosen = subjects[self.subject]
        if bool(chosen.all()):
            return self
        scored = chosen[self.row]
        return Rows(
            self.ids[chosen],
            self.mask[chosen],
            self.positions[chosen],
            self.states[chosen],
            tuple((keys[chosen.to(keys.device)], values[chosen.to(values.device)]) for keys, values in self.past),
            self.subject[chosen],
            (torch.cumsum(chosen, 0) - 1)[self.row[scored]],
            self.column[scored],
            self.token[scored],
            self.weight[scored],
            self.kept[scored],
            self.reference[scored[self.kept]],
        )

    def logits(self, editable: EditableModel, delta: torch.Tensor, z_layer: int) -> torch.Tensor:
        """Logits (m, vocabulary) float32 at the scored positions, with delta (subjects, d_model) in place."""
        # a product, as the gradient of an index is summed by several threads in any order, and two runs would differ
        own = torch.nn.functional.one_hot(self.subject, len(delta)).to(delta.dtype) @ delta
        first = self.states[:, 0] + own.to(self.states.dtype)
        given = torch.cat([first[:, None], self.states[:, 1:]], dim=1)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.past):
            cache.update(keys, values, layer)
        with resumed_above(editable, z_layer, lambda: given):
            out = editable.model.base_model(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return editable.head(out[self.row.to(out.device), self.column.to(out.device)]).to(self.row.device)


@torch.no_grad()
def rows_of(editable: EditableModel, together: Sequence[Sequence[Text]], subjects: Sequence[int], z_layer: int) -> Rows:
    """Runs what stands before the tokens where facts are written and keeps what the rest needs.

    Args:
        editable: The model with the weights under which z is wanted.
        together: The texts of each row, the longest first, which begins with the others (`read_together`).
        subjects: Subject of each row.
        z_layer: Layer after which delta is added.
    """
    texts = [own[0] for own in together]
    batch, device = pad(editable, [t.ids for t in texts]), editable.device
    cache = DynamicCache()  # without the model's configuration: layers with a window keep every position too
    with capture_outputs({"h": editable.block(z_layer)}) as seen:
        editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=True)
    start = torch.tensor([t.prompt.fact_token for t in texts], device=device)
    before = int(start.max())
    # aligned to the right: a sliding window counts places in the cache, so no gap may stand between a row's past and its rest
    slots = (
        torch.arange(before, device=device) - (before - start)[:, None]
    )  # (rows, p) place in the text; negative: none
    positions = start[:, None] + torch.arange(max(t.after for t in texts), device=device)
    places = positions.clamp_max(batch.ids.shape[1] - 1)
    states = seen["h"].to(device)
    scored = [(row, text, at) for row, own in enumerate(together) for text in own for at in text.scored]
    following = [text.prompt.ids[at + 1] if at + 1 < len(text.prompt.ids) else 0 for _, text, at in scored]
    found = Rows(
        ids=batch.ids.gather(1, places),
        mask=torch.cat([slots >= 0, positions < batch.mask.sum(dim=1, keepdim=True)], dim=1).long(),
        positions=places,
        states=states.gather(1, places[:, :, None].expand(-1, -1, states.shape[-1])),
        past=tuple((at_places(keys, slots), at_places(values, slots)) for keys, values in _kept(cache)),
        subject=torch.tensor(subjects, device=device),
        row=torch.tensor([row for row, _, _ in scored], device=device),
        column=torch.tensor([at - text.prompt.fact_token for _, text, at in scored], device=device),
        token=torch.tensor(following, device=device),
        weight=torch.tensor([text.weight for _, text, _ in scored], device=device),
        kept=torch.tensor([text.kept for _, text, _ in scored], device=device),
        reference=torch.zeros(0, editable.vocabulary, device=device),
    )
    if bool(found.kept.any()):
        nothing = torch.zeros(max(subjects) + 1, states.shape[-1], device=device)
        reference = found.logits(editable, nothing, z_layer)[found.kept].log_softmax(dim=-1)
        found = replace(found, reference=reference)
    return found


def _kept(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (rows, heads, t, d) of every layer of a cache that a forward pass has filled."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found


def at_places(cached: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Keys or values (rows, heads, t, d) at the places (rows, p) of the text; masked where there is none."""
    at = slots.clamp_min(0)[:, None, :, None].to(cached.device)
    return cached.gather(2, at.expand(-1, cached.shape[1], -1, cached.shape[3]))
