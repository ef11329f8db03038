"""Prompt keys: what an output projection reads at the tokens of facts' own prompts where no fact is written.

An update that tells like subjects apart is large, and it acts on every token, also on those that the questions about the
subjects are made of. Kept out of its way, z says what it was made to say. Which weight they get is the settings' matter.
"""

from collections.abc import Iterable, Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import by_length, halved, pad
from nse.request import EditRequest
from nse.subjects import HeldFact, subject_key
from nse.tokens import tokenize_template
from nse.trace import capture_inputs, stopped_after


def around(
    requests: Sequence[EditRequest], earlier: Sequence[EditRequest], held: Iterable[HeldFact]
) -> list[EditRequest | HeldFact]:
    """The facts whose prompts shall stay: the corrections, those before them, and what is held of the same subjects."""
    subjects = {subject_key(r) for r in (*requests, *earlier)}
    return [*requests, *earlier, *(fact for fact in held if subject_key(fact) in subjects)]


@torch.no_grad()
def prompt_keys(
    editable: EditableModel,
    facts: Iterable[EditRequest | HeldFact],
    *,
    layers: Sequence[int],
    fact_token: str = "subject_last",
) -> dict[int, torch.Tensor]:
    """Measures the keys of `facts`' prompts without the tokens where they are written, under the weights in force.

    A held fact is written nowhere; at its subject's last token, though, it has the key of the corrections of that subject.

    Prompts stand alone, without contexts: those are text such as C0 is made of. Where several prompts begin alike, what they
    share counts once.

    Args:
        editable: The model, with the weights in force that shall be measured.
        facts: Whose prompts, up to their objects.
        layers: Layers whose keys are wanted, at least one.
        fact_token: Where corrections are written, as in `Hyperparameters`.

    Returns:
        By layer (d_mlp, m) float64 on the CPU, in the order in which the prompts say them.

    Raises:
        TokenError: If a subject has no token, or a prompt is too long.
    """
    found_in = [
        (fact, tokenize_template(editable.tokenizer, fact.prompt_template, fact.subject, fact_token=fact_token))
        for fact in facts
    ]
    prompts = list(dict.fromkeys(prompt for _, prompt in found_in))
    written = {
        prompt.ids[: prompt.fact_token + 1]
        for fact, prompt in found_in
        if fact_token == "subject_last" or not isinstance(fact, HeldFact)
    }
    first: dict[tuple[int, ...], tuple[int, int]] = {}  # a token with all that stands before it, where it is found
    for row, prompt in enumerate(prompts):
        for at in range(len(prompt.ids)):
            if (text := prompt.ids[: at + 1]) not in written:
                first.setdefault(text, (row, at))
    wanted: dict[int, list[int]] = {}
    for row, at in first.values():
        wanted.setdefault(row, []).append(at)
    found: dict[int, dict[int, torch.Tensor]] = {layer: {} for layer in layers}

    def run(group: Sequence[int]) -> Sequence[int]:
        batch = pad(editable, [prompts[row].ids for row in group])
        with (
            capture_inputs({layer: editable.projection(layer) for layer in layers}) as entering,
            stopped_after(editable, max(layers)),
        ):
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for layer, seen in entering.items():
            for place, row in enumerate(group):
                found[layer][row] = seen[place, wanted[row]].double().cpu()
        return group

    rows = list(wanted)
    for group in by_length([prompts[row] for row in rows]):
        halved(run, [rows[i] for i in group], what="prompts")
    widths = {layer: editable.base_weight(editable.parameter_name(layer)).shape[1] for layer in layers}
    none = {layer: torch.zeros(0, width, dtype=torch.float64) for layer, width in widths.items()}
    return {layer: torch.cat([none[layer], *(found[layer][row] for row in rows)]).T.contiguous() for layer in layers}
