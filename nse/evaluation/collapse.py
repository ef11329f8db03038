"""Vital signs: figures that move before a model collapses, so that a gate can stop the round that would be one too many.

They are measured on the weights in force, against the base weights, without a single question about a fact.

References:
    The butterfly effect of model editing (arXiv 2402.09656): perplexity of fixed sentences. Model editing at scale leads to
    gradual and catastrophic forgetting (arXiv 2401.07453): the distance of the weights jumps with a disabling edit.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch

from nse.architecture import EditableModel
from nse.batch import by_length, halved
from nse.contexts import OPENINGS
from nse.errors import SuiteError
from nse.evaluation.fluency import continued, ngram_entropy
from nse.evaluation.prefixes import run
from nse.evaluation.score import perplexity
from nse.patch import base_in_force
from nse.tokens import TokenizedPrompt, tokenize

TEXTS = 16
"""Texts whose hidden states are compared."""
TOKENS = 50
"""Tokens of a free text."""
ROWS = 256


def vital_signs(
    editable: EditableModel, texts: Sequence[str], *, base_perplexity: float | None = None, seed: int = 0
) -> dict[str, float]:
    """Measures the weights in force.

    Args:
        editable: The model.
        texts: Neutral texts, at least one; hidden states are compared on the first `TEXTS`.
        base_perplexity: That of the texts under the base weights, where it is known.
        seed: Of the free text.

    Returns:
        `perplexity` of the texts, and `perplexity_ratio`, to that of the base model;
        `delta_norm.<layer>`: |W - W0| / |W0| (Frobenius) of the weights of that layer that differ from the base, a name in
        place of the number where they are in none; `delta_norm`, the largest of them, 0 if there is none;
        `hidden_drift`: mean over tokens of |h - h0| / |h0|, and `hidden_cosine`, that of cos(h, h0), of the last layer's
        hidden states after its norm; `text_entropy`: mean n-gram entropy, in bits, of free text from neutral openings.
        Those of a model that overflows are NaN, and its text is short: gates on them fail.

    Raises:
        TokenError: If a text does not fit the model.
    """
    own = perplexity(editable, texts)
    if base_perplexity is None:
        with base_in_force(editable):
            base_perplexity = perplexity(editable, texts)
    drift, cosine = hidden_drift(editable, texts[:TEXTS])
    written = continued(editable, OPENINGS, tokens=TOKENS, seed=seed)
    return {
        "perplexity": own,
        "perplexity_ratio": own / base_perplexity,
        **norm_signs(editable),
        "hidden_drift": drift,
        "hidden_cosine": cosine,
        "text_entropy": math.fsum(ngram_entropy(text) for text in written) / len(written),
    }


def norm_signs(editable: EditableModel) -> dict[str, float]:
    """`delta_norm` and `delta_norm.<layer>`, as in `vital_signs`: these need no text."""
    norms = delta_norms(editable)
    return {
        # torch's maximum, unlike Python's, lets no NaN pass unseen: a comparison with NaN is false, and so fails its gate
        "delta_norm": float(torch.tensor([0.0, *norms.values()], dtype=torch.float64).max()),
        **{f"delta_norm.{place}": norm for place, norm in norms.items()},
    }


def check_places(editable: EditableModel, names: Sequence[str]) -> None:
    """Checks that metrics `delta_norm.<layer>` are on layers, or on weights in no layer, of the model.

    Raises:
        SuiteError: If one is not.
    """
    places = {_place(editable, name) for name in editable.base_tensors} if names else set()
    if unknown := next((name for name in names if name.removeprefix("delta_norm.") not in places), None):
        numbers = f"its layers are 0 to {editable.layers - 1}"
        raise SuiteError(f"gate {unknown} is on no layer of the model: {numbers}, a weight outside them has its name")


def delta_norms(editable: EditableModel) -> dict[str, float]:
    """|W - W0| / |W0| over the weights of each layer that are not the base's own, by the layer's number or a weight's name."""
    squares: dict[str, list[tuple[float, float]]] = {}
    for name, base in editable.base_tensors.items():
        weight = editable.model.get_parameter(name).data
        if weight.data_ptr() != base.data_ptr():
            squares.setdefault(_place(editable, name), []).append(_squares(weight, base))
    return {
        place: math.sqrt(math.fsum(d for d, _ in own) / (math.fsum(w for _, w in own) or 1.0))
        for place, own in squares.items()
    }


def _place(editable: EditableModel, name: str) -> str:
    blocks = (editable.architecture.block.format(layer) + "." for layer in range(editable.layers))
    return next((str(layer) for layer, block in enumerate(blocks) if name.startswith(block)), name)


def _squares(weight: torch.Tensor, base: torch.Tensor) -> tuple[float, float]:
    """|W - W0|^2 and |W0|^2, some rows at a time: no second float64 weight."""
    moved, whole = 0.0, 0.0
    for start in range(0, len(base), ROWS):
        rows = slice(start, start + ROWS)
        known = base[rows].double()
        moved += float((weight[rows].double() - known.to(weight.device)).square().sum())
        whole += float(known.square().sum())
    return moved, whole


@torch.no_grad()
def hidden_drift(editable: EditableModel, texts: Sequence[str]) -> tuple[float, float]:
    """Means of |h - h0| / |h0| and of cos(h, h0) over the tokens of the texts, the first token of each not counted."""
    rows = [tokenize(editable.tokenizer, text).ids for text in texts]
    found: list[tuple[float, float, int]] = []
    for group in by_length([TokenizedPrompt(ids, len(ids)) for ids in rows]):
        found += halved(partial(_compared, editable), [rows[i] for i in group], what="texts")
    count = max(sum(n for _, _, n in found), 1)
    return math.fsum(d for d, _, _ in found) / count, math.fsum(c for _, c, _ in found) / count


def _compared(editable: EditableModel, rows: Sequence[tuple[int, ...]]) -> list[tuple[float, float, int]]:
    """Sums of both over a row's tokens, and how many there are."""
    now, _ = run(editable, rows, keep=False)
    with base_in_force(editable):
        before, _ = run(editable, rows, keep=False)
    now, before = now.double(), before.double()
    drift = (now - before).norm(dim=-1) / before.norm(dim=-1)  # (n, t)
    cosine = torch.nn.functional.cosine_similarity(now, before, dim=-1)
    return [
        (float(drift[i, 1 : len(row)].sum()), float(cosine[i, 1 : len(row)].sum()), len(row) - 1)
        for i, row in enumerate(rows)
    ]
