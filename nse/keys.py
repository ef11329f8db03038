"""Keys: what an MLP's output projection reads where a fact is written, and the hidden state there.

Both are measured under whatever weights are in force. A key is averaged over context templates, group by group, as MEMIT does.
"""

from collections.abc import Sequence
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
from nse.trace import capture_inputs, capture_outputs, stopped_after


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


@torch.no_grad()
def measure(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    contexts: ContextTemplates,
    *,
    key_layers: Sequence[int],
    hidden_layer: int,
    subject_share: float = 0.0,
    fact_token: str = "subject_last",
) -> Measurement:
    """Measures keys and hidden states of `requests` where they are written.

    Args:
        editable: The model, with the weights in force that shall be measured.
        requests: n facts.
        contexts: Groups of templates; a key is the mean over groups of the mean within each.
        key_layers: Layers whose keys are wanted.
        hidden_layer: Layer after which the hidden state is taken, in the bare prompt.
        subject_share: Share of a key that is measured on the subject alone in each context, without its prompt.
        fact_token: Where they are written, as in `Hyperparameters`.

    References:
        ROME (arXiv 2202.05262), equation 3: the key is the mean over k(x_j + s), a context and the subject. The published code
        puts the prompt's words before the subject in between (`subject_share` 0).

    Raises:
        TokenError: If a subject has no token.
    """
    texts = _texts(editable, requests, contexts, subject_share, fact_token)
    read = _at_the_end(editable, texts.distinct, key_layers, hidden_layer)
    at = texts.places
    return Measurement(
        {layer: torch.einsum("ncd,c->dn", read["key", layer][at[:, :-1]], texts.shares) for layer in key_layers},
        read["hidden", hidden_layer][at[:, -1]].T.contiguous(),
        {layer: read[name, layer][at[:, -1]].T.contiguous() for name, layer in read if name == "output"},
    )


@torch.no_grad()
def key_spread(
    editable: EditableModel,
    facts: Sequence[EditRequest | HeldFact],
    contexts: ContextTemplates,
    *,
    layers: Sequence[int],
    subject_share: float = 0.0,
    fact_token: str = "subject_last",
) -> dict[int, torch.Tensor]:
    """How the key of each fact differs from context to context: what its mean, which is written, says nothing of.

    With S the columns given here, K K^T + S S^T is the sum over facts of the mean of k k^T over contexts, so that a solve in
    which nothing changes at S writes the key of every context instead of their mean alone.

    Args:
        editable: The model, with the weights in force that shall be measured.
        facts: At least one; those with the same keys count once.
        contexts: As in `measure`.
        layers: Layers whose keys are wanted.
        subject_share: As in `measure`.
        fact_token: As in `measure`.

    Returns:
        By layer (d_mlp, m) float64 on the CPU: each key less its fact's mean key, times the root of its share of that mean.
    """
    texts = _texts(editable, facts, contexts, subject_share, fact_token)
    at = torch.tensor(list(dict.fromkeys(map(tuple, texts.places[:, :-1].tolist()))))
    read, found = _at_the_end(editable, texts.distinct, layers, max(layers)), {}
    for layer in layers:
        keys = read["key", layer][at]  # (facts, texts, d_mlp)
        mean = torch.einsum("ncd,c->nd", keys, texts.shares)
        found[layer] = ((keys - mean[:, None]) * texts.shares.sqrt()[:, None]).flatten(0, 1).T.contiguous()
    return found


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is read to measure keys.

    Attributes:
        distinct: Tokens of each text up to where its fact is written: what follows changes nothing there.
        places: (facts, texts + 1): where the texts of each fact are among `distinct`, its bare prompt last.
        shares: (texts,) float64: what each text counts in a fact's key.
    """

    distinct: list[tuple[int, ...]]
    places: torch.Tensor
    shares: torch.Tensor


def _texts(
    editable: EditableModel,
    facts: Sequence[EditRequest | HeldFact],
    contexts: ContextTemplates,
    subject_share: float,
    fact_token: str,
) -> _Texts:
    templates = [c for group in contexts for c in group]
    weights = [1.0 / (len(contexts) * len(group)) for group in contexts for _ in group]
    shares = [w * (1 - subject_share) for w in weights] + [w * subject_share for w in weights if subject_share]
    rows: dict[tuple[int, ...], int] = {}
    wanted: list[int] = []
    for fact in facts:
        texts = [within(c, fact.prompt_template) for c in templates]
        texts += [*(templates if subject_share else []), fact.prompt_template]
        for text in texts:
            prompt = written_in(editable.tokenizer, text, fact, fact_token=fact_token)
            wanted.append(rows.setdefault(prompt.ids[: prompt.fact_token + 1], len(rows)))
    places = torch.tensor(wanted).view(len(facts), -1)
    return _Texts(list(rows), places, torch.tensor(shares, dtype=torch.float64))


def _at_the_end(
    editable: EditableModel, texts: Sequence[tuple[int, ...]], key_layers: Sequence[int], hidden_layer: int
) -> dict[tuple[str, int], torch.Tensor]:
    """What stands at the last token of each text, (texts, d) float64 on the CPU: keys, post norms' inputs, the hidden state."""
    inputs: dict[tuple[str, int], nn.Module] = {("key", layer): editable.projection(layer) for layer in key_layers}
    inputs |= {("output", layer): norm for layer in key_layers if (norm := editable.post_norm(layer)) is not None}
    found: dict[tuple[str, int], torch.Tensor] = {}

    def run(group: Sequence[int]) -> list[int]:
        batch = pad(editable, [texts[i] for i in group])
        index, last = torch.arange(len(group)), torch.tensor([len(texts[i]) - 1 for i in group])
        with (
            capture_inputs(inputs) as entering,
            capture_outputs({("hidden", hidden_layer): editable.block(hidden_layer)}) as leaving,
            stopped_after(editable, max((hidden_layer, *key_layers))),
        ):
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for name, seen in (entering | leaving).items():
            own = seen[index, last].double().cpu()
            found.setdefault(name, torch.zeros(len(texts), own.shape[-1], dtype=torch.float64))[list(group)] = own
        return list(group)

    for group in by_length([TokenizedPrompt(text, len(text)) for text in texts]):
        halved(run, group, what="texts")
    return found
