"""States: what enters a layer at the last token of a text. Memories beside the weights tell prompts apart by them."""

from collections.abc import Mapping, Sequence

import torch
from torch.func import functional_call

from nse.architecture import EditableModel
from nse.batch import by_length, halved, pad
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs, stopped_after


@torch.no_grad()
def entering(
    editable: EditableModel,
    texts: Sequence[tuple[int, ...]],
    layer: int,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The hidden states that enter the block `layer` at the last token of each text.

    Args:
        editable: The model.
        texts: Token ids of n texts.
        layer: Number of the block.
        weights: Weights to read under, whatever is in force; those in force if not given.

    Returns:
        (n, d_model) float32 on the CPU.

    Raises:
        TokenError: If a text is longer than the model's positions.
    """
    states = torch.zeros(len(texts), int(editable.model.config.hidden_size))

    def run(group: Sequence[int]) -> list[int]:
        batch = pad(editable, [texts[i] for i in group])
        last = torch.tensor([len(texts[i]) - 1 for i in group])
        given = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False, "logits_to_keep": 1}
        with capture_inputs({"h": editable.block(layer)}) as seen, stopped_after(editable, layer):
            functional_call(editable.model, dict(weights or {}), (), given)
        states[list(group)] = seen["h"][torch.arange(len(group)), last].float().cpu()
        return list(group)

    for group in by_length([TokenizedPrompt(text, len(text)) for text in texts]):
        halved(run, group, what="texts")
    return states
