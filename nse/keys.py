"""Keys: what an MLP's output projection reads at a subject's last token, and the hidden state there.

Both are measured under whatever weights are in force. A key is averaged over context templates, group by group, as MEMIT does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nse.architecture import EditableModel
from nse.batch import by_length, pad
from nse.contexts import ContextTemplates, within
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt, tokenize_template
from nse.trace import capture_inputs, capture_outputs


@dataclass(frozen=True, slots=True)
class Measurement:
    """Keys by layer, each (d_mlp, n) float64 with facts as columns, and hidden states (d_model, n) float64 after `z_layer`."""

    keys: dict[int, torch.Tensor]
    hidden: torch.Tensor


@torch.no_grad()
def measure(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    contexts: ContextTemplates,
    *,
    key_layers: Sequence[int],
    hidden_layer: int,
    subject_share: float = 0.0,
) -> Measurement:
    """Measures keys and hidden states of `requests` at their subjects' last tokens.

    Args:
        editable: The model, with the weights in force that shall be measured.
        requests: n facts.
        contexts: Groups of templates; a key is the mean over groups of the mean within each.
        key_layers: Layers whose keys are wanted.
        hidden_layer: Layer after which the hidden state is taken, in the bare prompt.
        subject_share: Share of a key that is measured on the subject alone in each context, without its prompt.

    References:
        ROME (arXiv 2202.05262), equation 3: the key is the mean over k(x_j + s), a context and the subject. The published code
        puts the prompt's words before the subject in between (`subject_share` 0).

    Raises:
        TokenError: If a subject has no token.
    """
    contexts = contexts if key_layers else ()
    templates = [c for group in contexts for c in group]
    weights = [1.0 / (len(contexts) * len(group)) for group in contexts for _ in group]
    shares = [w * (1 - subject_share) for w in weights] + [w * subject_share for w in weights if subject_share]
    rows: list[TokenizedPrompt] = []
    for request in requests:
        texts = [within(c, request.prompt_template) for c in templates]
        texts += [*(templates if subject_share else []), request.prompt_template]
        rows += [tokenize_template(editable.tokenizer, text, request.subject) for text in texts]
    modules = {str(layer): editable.projection(layer) for layer in key_layers}
    keys: dict[int, torch.Tensor] = {}
    hidden = torch.zeros(0)
    for group in by_length(rows):
        batch = pad(editable, [rows[i].ids for i in group])
        at = torch.tensor([rows[i].subject_last for i in group])
        index = torch.arange(len(group))
        with capture_inputs(modules) as inputs, capture_outputs({"h": editable.block(hidden_layer)}) as outputs:
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        if hidden.numel() == 0:
            hidden = torch.zeros(len(rows), outputs["h"].shape[-1], dtype=torch.float64)
        hidden[group] = outputs["h"][index, at].double().cpu()
        for layer in key_layers:
            read = inputs[str(layer)][index, at].double().cpu()
            keys.setdefault(layer, torch.zeros(len(rows), read.shape[-1], dtype=torch.float64))[group] = read
    per_fact = len(shares) + 1
    mean = torch.tensor([*shares, 0.0], dtype=torch.float64)
    return Measurement(
        {layer: torch.einsum("ncd,c->dn", k.view(len(requests), per_fact, -1), mean) for layer, k in keys.items()},
        hidden.view(len(requests), per_fact, -1)[:, -1].T.contiguous(),
    )
