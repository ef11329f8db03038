"""Keys: what an MLP's output projection reads where a fact is written, and the hidden state there.

Both are measured under whatever weights are in force. A key is averaged over context templates, group by group, as MEMIT does.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from nse.architecture import EditableModel
from nse.batch import by_length, halved, pad
from nse.contexts import ContextTemplates, within
from nse.request import EditRequest
from nse.steps import written_in
from nse.subjects import HeldFact
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs, capture_outputs, resumed_above, stopped_after

MOST_KEPT = 1 << 30
"""Most bytes of hidden states that are kept from one measurement to the next, in the processor's memory."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured where facts are written, facts as columns, float64.

    Attributes:
        keys: (d_mlp, n) by layer.
        hidden: (d_model, n) hidden states after the layer that was asked for, in the bare prompt.
        outputs: (d_model, n) by layer, what goes into the post norm in the bare prompt; of layers that have one.
    """

    keys: dict[int, torch.Tensor]
    hidden: torch.Tensor
    outputs: dict[int, torch.Tensor]


class KeyTexts:
    """The texts in which keys of some facts are measured: tokenised once, measured as often as weights change.

    A text that another one begins with is read there: what follows changes nothing before it.
    """

    def __init__(
        self,
        editable: EditableModel,
        facts: Sequence[EditRequest | HeldFact],
        contexts: ContextTemplates,
        *,
        subject_share: float = 0.0,
        fact_token: str = "subject_last",
        first_written: int = 0,
    ) -> None:
        """Tokenises the texts.

        Args:
            editable: The model.
            facts: n facts.
            contexts: Groups of templates; a key is the mean over groups of the mean within each.
            subject_share: Share of a key that is measured on the subject alone in each context, without its prompt.
            fact_token: Where the facts are written, as in `Hyperparameters`.
            first_written: Layers below this one have the same weights at every measurement: their output is computed once, and
                kept as far as `MOST_KEPT` goes.

        References:
            ROME (arXiv 2202.05262), equation 3: the key is the mean over k(x_j + s), a context and the subject. The published
            code puts the prompt's words before the subject in between (`subject_share` 0).

        Raises:
            TokenError: If a subject has no token.
        """
        templates = [c for group in contexts for c in group]
        weights = [1.0 / (len(contexts) * len(group)) for group in contexts for _ in group]
        shares = [w * (1 - subject_share) for w in weights] + [w * subject_share for w in weights if subject_share]
        ends: dict[tuple[int, ...], int] = {}  # each text up to where its fact is written
        wanted: list[int] = []
        for fact in facts:
            texts = [within(c, fact.prompt_template) for c in templates]
            texts += [*(templates if subject_share else []), fact.prompt_template]
            for text in texts:
                prompt = written_in(editable.tokenizer, text, fact, fact_token=fact_token)
                wanted.append(ends.setdefault(prompt.ids[: prompt.fact_token + 1], len(ends)))
        self._editable, self._first_written = editable, first_written
        self._places = torch.tensor(wanted).view(len(facts), -1)
        """(facts, texts + 1): which end each text of each fact has, its bare prompt last."""
        self._shares = torch.tensor(shares, dtype=torch.float64)
        """(texts,): what each text counts in a fact's key."""
        self._count = len(ends)
        self._read = _read_together(list(ends))
        self._below: dict[tuple[int, ...], torch.Tensor] = {}
        """What enters the first written layer, by batch."""

    def measure(self, *, key_layers: Sequence[int], hidden_layer: int) -> Measurement:
        """Measures keys, and the hidden states after `hidden_layer` in the bare prompts, under the weights in force."""
        found = self._at_the_ends(key_layers, hidden_layer)
        keys, bare = self._places[:, :-1], self._places[:, -1]
        return Measurement(
            {layer: torch.einsum("ncd,c->dn", found["key", layer][keys], self._shares) for layer in key_layers},
            found["hidden", hidden_layer][bare].T.contiguous(),
            {layer: found[name, layer][bare].T.contiguous() for name, layer in found if name == "output"},
        )

    def spread(self, *, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """How the key of each fact differs from context to context: what its mean, which is written, says nothing of.

        With S the columns given here, K K^T + S S^T is the sum over facts of the mean of k k^T over contexts, so that a solve in
        which nothing changes at S writes the key of every context instead of their mean alone.

        Returns:
            By layer (d_mlp, m) float64 on the CPU: each key less its fact's mean key, times the root of its share of that mean.
            Facts with the same keys count once.
        """
        at = torch.tensor(list(dict.fromkeys(map(tuple, self._places[:, :-1].tolist()))))
        read, found = self._at_the_ends(layers, max(layers)), {}
        for layer in layers:
            keys = read["key", layer][at]  # (facts, texts, d_mlp)
            mean = torch.einsum("ncd,c->nd", keys, self._shares)
            found[layer] = ((keys - mean[:, None]) * self._shares.sqrt()[:, None]).flatten(0, 1).T.contiguous()
        return found

    @torch.no_grad()
    def _at_the_ends(self, key_layers: Sequence[int], hidden_layer: int) -> dict[tuple[str, int], torch.Tensor]:
        """What stands at each end, (ends, d) float64 on the CPU: keys, post norms' inputs, the hidden state."""
        editable = self._editable
        inputs: dict[tuple[str, int], nn.Module] = {("key", layer): editable.projection(layer) for layer in key_layers}
        inputs |= {("output", layer): norm for layer in key_layers if (norm := editable.post_norm(layer)) is not None}
        found: dict[tuple[str, int], torch.Tensor] = {}

        def run(group: Sequence[int]) -> Sequence[int]:
            batch, below = pad(editable, [self._read[i].text for i in group]), self._below.get(tuple(group))
            at = [(row, end, last) for row, i in enumerate(group) for end, last in self._read[i].ends]
            rows, ends, last = torch.tensor(at).T
            leaving = {("hidden", hidden_layer): editable.block(hidden_layer)}
            with ExitStack() as stack:
                if below is not None:
                    stack.enter_context(
                        resumed_above(editable, self._first_written - 1, lambda: below.to(editable.device))
                    )
                elif self._first_written:
                    leaving["below", 0] = editable.block(self._first_written - 1)
                stack.enter_context(stopped_after(editable, max((hidden_layer, *key_layers))))
                seen = stack.enter_context(capture_inputs(inputs)), stack.enter_context(capture_outputs(leaving))
                editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
            states = seen[0] | seen[1]
            self._keep(tuple(group), states.pop(("below", 0), None))
            for name, state in states.items():
                own = state[rows, last].double().cpu()
                found.setdefault(name, own.new_zeros(self._count, own.shape[-1]))[ends] = own
            return group

        for group in by_length([TokenizedPrompt(read.text, len(read.text)) for read in self._read]):
            halved(run, group, what="texts")
        return found

    def _keep(self, group: tuple[int, ...], below: torch.Tensor | None) -> None:
        """Keeps what enters the first written layer for a batch, as long as there is room."""
        kept = sum(state.nbytes for state in self._below.values())
        if below is not None and kept + below.nbytes <= MOST_KEPT:
            self._below[group] = below.cpu()  # an accelerator has better uses for its memory


@dataclass(frozen=True, slots=True)
class _Read:
    """A text that the model reads, and what ends in it.

    Attributes:
        text: Its tokens.
        ends: Of each end in it, its number and the place of its last token.
    """

    text: tuple[int, ...]
    ends: list[tuple[int, int]]


def _read_together(ends: Sequence[tuple[int, ...]]) -> list[_Read]:
    """The ends that no other one begins with, each with those that it begins with."""
    read: list[_Read] = []
    for number in sorted(range(len(ends)), key=ends.__getitem__, reverse=True):  # what is longer stands before
        text = ends[number]
        if not (read and read[-1].text[: len(text)] == text):
            read.append(_Read(text, []))
        read[-1].ends.append((number, len(text) - 1))
    return read


def measure(
    editable: EditableModel,
    facts: Sequence[EditRequest | HeldFact],
    contexts: ContextTemplates,
    *,
    key_layers: Sequence[int],
    hidden_layer: int,
    subject_share: float = 0.0,
    fact_token: str = "subject_last",
) -> Measurement:
    """Measures keys and hidden states of `facts` once; the arguments are those of `KeyTexts` and `KeyTexts.measure`."""
    texts = KeyTexts(editable, facts, contexts, subject_share=subject_share, fact_token=fact_token)
    return texts.measure(key_layers=key_layers, hidden_layer=hidden_layer)
