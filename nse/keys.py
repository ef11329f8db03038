"""Keys: what an MLP's output projection reads where a fact is written, and the hidden state there.

Both are measured under whatever weights are in force. A key is averaged over context templates, group by group, as MEMIT does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from nse.architecture import EditableModel
from nse.batch import Batch, by_length, check_fits, halved, pad
from nse.contexts import ContextTemplates, within
from nse.request import EditRequest
from nse.rows import at_places
from nse.steps import written_in
from nse.subjects import HeldFact
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs, capture_outputs, resumed_above, stopped_after

LEAST_SHARED = 2
"""Fewest tokens that are read once for all texts that begin with them."""

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

    A text that another one begins with is read there: what follows changes nothing before it. What the texts of one context
    begin with in common is read once for all of them, as attention keys and values.
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
        context = {end: i % self._places.shape[1] for i, end in enumerate(wanted)}
        self._read, self._prefixes = _without_prefixes(_read_together(list(ends)), context)
        self._past: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Attention keys and values (prefixes, heads, t, d_head) of the prefixes, by layer, at the last measurement."""
        self._entering: dict[int, dict[tuple[int, ...], torch.Tensor]] = {}
        """What enters a written layer, by layer and batch (the prefixes are the batch without a number)."""
        self._known = self._entering
        """Of these, what is still so at the measurement that is being made."""
        self._found: dict[tuple[str, int], torch.Tensor] = {}
        """What stood at each end at the last measurement."""

    def measure(self, *, key_layers: Sequence[int], hidden_layer: int, changed: int | None = None) -> Measurement:
        """Measures keys, and the hidden states after `hidden_layer` in the bare prompts, under the weights in force.

        Args:
            key_layers: Layers whose keys are wanted.
            hidden_layer: Layer after which the hidden states are wanted.
            changed: The layer whose projection alone has changed since the last measurement, of the same layers: what stands
                below it is as it was and is not computed again.
        """
        begin = min(self._first_written if changed is None else changed, hidden_layer)
        found = self._at_the_ends(_Asked(tuple(key_layers), hidden_layer, begin))
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
        read, found = self._at_the_ends(_Asked(tuple(layers), max(layers), self._first_written)), {}
        for layer in layers:
            keys = read["key", layer][at]  # (facts, texts, d_mlp)
            mean = torch.einsum("ncd,c->nd", keys, self._shares)
            found[layer] = ((keys - mean[:, None]) * self._shares.sqrt()[:, None]).flatten(0, 1).T.contiguous()
        return found

    @torch.no_grad()
    def _at_the_ends(self, asked: "_Asked") -> dict[tuple[str, int], torch.Tensor]:
        """What stands at each end, (ends, d) float64 on the CPU: keys, post norms' inputs, the hidden state."""
        editable = self._editable
        for read in self._read:
            check_fits(editable, read.before + len(read.text))
        self._known = {layer: states for layer, states in self._entering.items() if layer <= asked.begin}
        self._entering = {layer: dict(states) for layer, states in self._known.items()}
        if self._prefixes:
            batch, cache = pad(editable, self._prefixes), DynamicCache()
            self._forward((), asked, lambda: _run(editable, batch, cache=cache))
            layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
            ran = [(own.keys, own.values) for own in layers if own.keys is not None and own.values is not None]
            self._past = self._past[: asked.stop + 1 - len(ran)] + ran  # skipped layers have none of their own

        def run(group: Sequence[int]) -> Sequence[int]:
            reads = [self._read[i] for i in group]
            batch, past = pad(editable, [read.text for read in reads]), self._past_of(reads)
            states = self._forward(tuple(group), asked, lambda: _run(editable, batch, past=past))
            at = [(row, end, last) for row, read in enumerate(reads) for end, last in read.ends]
            rows, ends, last = torch.tensor(at).T
            for name, state in states.items():
                own = state[rows, last].double().cpu()
                self._found.setdefault(name, own.new_zeros(self._count, own.shape[-1]))[ends] = own
            return group

        for group in by_length([TokenizedPrompt(read.text, len(read.text)) for read in self._read]):
            halved(run, group, what="texts")
        return self._found

    def _forward(
        self, group: tuple[int, ...], asked: "_Asked", run: Callable[[], None]
    ) -> dict[tuple[str, int], torch.Tensor]:
        """Runs a batch from the highest layer of which is known what enters it, and keeps what enters the next ones.

        Returns:
            What was seen of each token, (rows, t, d), in the layers that ran.
        """
        editable = self._editable
        start = max((layer for layer, states in self._known.items() if group in states), default=0)
        state = self._known[start][group] if start else None
        inputs: dict[tuple[str, int], nn.Module] = {}
        for layer in asked.key_layers:
            inputs["key", layer] = editable.projection(layer)
            if (norm := editable.post_norm(layer)) is not None:
                inputs["output", layer] = norm
        above = [layer for layer in asked.key_layers if layer > asked.begin]
        entered = {
            layer for layer in (self._first_written, *above[:1]) if start < layer <= asked.stop
        }  # measured from next
        leaving = {("hidden", asked.hidden_layer): editable.block(asked.hidden_layer)}
        leaving |= {("entering", layer): editable.block(layer - 1) for layer in entered}
        with ExitStack() as stack:
            if state is not None:
                stack.enter_context(resumed_above(editable, start - 1, lambda: state.to(editable.device)))
            stack.enter_context(stopped_after(editable, asked.stop))
            seen = stack.enter_context(capture_inputs(inputs)), stack.enter_context(capture_outputs(leaving))
            run()
        for layer in entered:
            self._keep(layer, group, seen[1].pop(("entering", layer)))
        return seen[0] | {name: hidden for name, hidden in seen[1].items() if name[1] >= start}

    def _past_of(self, reads: Sequence["_Read"]) -> "_Past | None":
        """The prefixes of some texts, aligned on the right: a sliding window counts places in the cache."""
        lengths = torch.tensor([read.before for read in reads])
        width = int(lengths.max())
        if not width:
            return None
        slots = torch.arange(width) - (width - lengths)[:, None]  # (rows, p) place in the prefix; negative: none
        which = torch.tensor([read.prefix for read in reads]).clamp_min(0)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._past):
            own = which.to(keys.device)
            cache.update(at_places(keys[own], slots), at_places(values[own], slots), layer)
        return _Past(cache, slots >= 0, lengths)

    def _keep(self, layer: int, group: tuple[int, ...], entering: torch.Tensor) -> None:
        """Keeps what enters a layer for a batch, as long as there is room."""
        kept = sum(state.nbytes for states in self._entering.values() for state in states.values())
        if kept + entering.nbytes <= MOST_KEPT:
            self._entering.setdefault(layer, {})[group] = (
                entering.cpu()
            )  # an accelerator has better uses for its memory


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is measured.

    Attributes:
        key_layers: Layers whose keys are wanted.
        hidden_layer: Layer after which the hidden states are wanted.
        begin: Layers below this one are as they were at the last measurement, if there was one.
    """

    key_layers: tuple[int, ...]
    hidden_layer: int
    begin: int

    @property
    def stop(self) -> int:
        """The last layer that is run."""
        return max((self.hidden_layer, *self.key_layers))


@dataclass(frozen=True, slots=True)
class _Past:
    """What stands before the texts of a batch.

    Attributes:
        cache: Its attention keys and values.
        mask: (rows, p) which of its places are real.
        lengths: (rows,) number of its tokens.
    """

    cache: DynamicCache
    mask: torch.Tensor
    lengths: torch.Tensor


def _run(
    editable: EditableModel, batch: Batch, *, past: _Past | None = None, cache: DynamicCache | None = None
) -> None:
    """A forward pass over a batch, after what stands before it, if anything does; its states may be kept in `cache`."""
    ids, mask = batch.ids, batch.mask
    if past is None:
        editable.model.base_model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        )
        return
    # places after a text's end would lie beyond the model's positions: they repeat its last
    offset = torch.arange(ids.shape[1]).minimum(mask.sum(dim=1, keepdim=True).cpu() - 1)
    editable.model.base_model(
        input_ids=ids,
        attention_mask=torch.cat([past.mask.to(mask), mask], dim=1),
        position_ids=(past.lengths[:, None] + offset).to(ids.device),
        past_key_values=past.cache,
        use_cache=True,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A text that the model reads, and what ends in it.

    Attributes:
        text: Its tokens, less those of its prefix.
        ends: Of each end in it, its number and the place of its last token.
        prefix: Number of its prefix, -1 for none.
        before: Number of tokens of its prefix.
    """

    text: tuple[int, ...]
    ends: list[tuple[int, int]]
    prefix: int = -1
    before: int = 0


def _read_together(ends: Sequence[tuple[int, ...]]) -> list[_Read]:
    """The ends that no other one begins with, each with those that it begins with."""
    read: list[_Read] = []
    for number in sorted(range(len(ends)), key=ends.__getitem__, reverse=True):  # what is longer stands before
        text = ends[number]
        if not (read and read[-1].text[: len(text)] == text):
            read.append(_Read(text, []))
        read[-1].ends.append((number, len(text) - 1))
    return read


def _without_prefixes(reads: Sequence[_Read], context: Mapping[int, int]) -> tuple[list[_Read], list[tuple[int, ...]]]:
    """The texts less what those of one context begin with in common, and these prefixes.

    Args:
        reads: Whole texts.
        context: Of each end, the number of its context.
    """
    together: dict[int, list[_Read]] = {}
    for read in reads:
        together.setdefault(context[read.ends[0][0]], []).append(read)
    found: list[_Read] = []
    prefixes: list[tuple[int, ...]] = []
    for own in together.values():
        one, other = min(read.text for read in own), max(read.text for read in own)  # all others stand between
        apart = (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
        before = one[: next(apart, len(one))] if len(own) > 1 else ()
        before = before[: min(last for read in own for _, last in read.ends)]  # what is measured is in the rest
        if len(before) < LEAST_SHARED:
            found += own
            continue
        n = len(before)
        found += [_Read(read.text[n:], [(end, last - n) for end, last in read.ends], len(prefixes), n) for read in own]
        prefixes.append(before)
    return found, prefixes


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
