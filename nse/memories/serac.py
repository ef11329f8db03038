"""SERAC's memory: edits as texts. A prompt in the scope of one is answered by a counterfactual model that is told the edit.

All others are answered by the model itself. How the scope and the counterfactual model are trained is `nse.training.serac`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from nse.adapter import Factors, adapted
from nse.architecture import EditableModel
from nse.delta import Memory
from nse.errors import DeltaError
from nse.memories.route import Route
from nse.memories.states import entering
from nse.request import EditRequest
from nse.tokens import join, tokenize

KIND = "serac"
IN_SCOPE = 0.5
"""A prompt whose nearest edit is more likely than this to be what it asks for is in its scope."""


def statement(request: EditRequest) -> str:
    """The edit as the counterfactual model is told it."""
    return f"{join(request.prompt, request.target_new).rstrip('.')}."


def embeddings(editable: EditableModel, prompts: Sequence[str], layer: int, scope: torch.Tensor) -> torch.Tensor:
    """What the scope classifier compares: the base model's state at the prompt's last token, through a linear map.

    Args:
        editable: The model.
        prompts: n texts.
        layer: The block that the state enters.
        scope: (k, d_model), the trained map.

    Returns:
        (n, k) float32.

    Raises:
        TokenError: If a prompt is longer than the model's positions.
    """
    ids = [tokenize(editable.tokenizer, prompt).ids for prompt in prompts]
    return entering(editable, ids, layer, weights=editable.base_tensors) @ scope.float().T


def factors_of(editable: EditableModel, shared: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    """The counterfactual model's adapter among trained tensors, by module, on the model's device.

    Raises:
        DeltaError: If one of its modules is not in the model.
    """
    names = sorted(name.removesuffix(".up") for name in shared if name.endswith(".up"))
    known = dict(editable.model.named_modules())
    if strange := next((name for name in names if name not in known or f"{name}.down" not in shared), None):
        raise DeltaError(f"an adapter of serac does not fit the model ({strange}): load the model it was made for")
    device = editable.device
    return {name: (shared[f"{name}.up"].to(device), shared[f"{name}.down"].to(device)) for name in names}


@contextmanager
def recalled(editable: EditableModel, memories: Sequence[Memory]) -> Iterator[None]:
    """Checks the memories; nothing changes in the model itself, prompts are told apart where they are asked.

    Raises:
        DeltaError: If the memories do not fit the model or each other.
    """
    first = memories[0]
    for memory in memories[1:]:
        same = memory.shared.keys() == first.shared.keys() and dict(memory.settings) == dict(first.settings)
        if not same or any(not torch.equal(memory.shared[name], tensor) for name, tensor in first.shared.items()):
            raise DeltaError("rounds of serac were made with different trained files: replay them with one")
    factors_of(editable, first.shared)
    yield


def routed(editable: EditableModel, memories: Sequence[Memory], prompts: Sequence[str]) -> list[Route]:
    """Prompts in the scope of an edit go to the counterfactual model, behind that edit's statement; the others stay.

    A prompt is in the scope of its nearest edit if exp(-scale |e_q - e_m|^2) > 1/2. Of several edits of one prompt the latest
    counts.

    References:
        SERAC (arXiv 2206.06520), section 3, equation 1.
    """
    if not prompts:
        return [Route((), ())]
    shared, settings = memories[0].shared, memories[0].settings
    latest = {text[0]: (e, text[1]) for m in memories for e, text in zip(m.entries["embeddings"], m.texts, strict=True)}
    entries = torch.stack([embedding for embedding, _ in latest.values()])
    statements = [told for _, told in latest.values()]
    queries = embeddings(editable, prompts, int(settings["layer"]), shared["scope"])
    distances, nearest = torch.cdist(queries, entries, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    inside = ((-float(settings["scale"]) * distances**2).exp() > IN_SCOPE).tolist()
    told = tuple(i for i, known in enumerate(inside) if known)
    others = tuple(i for i, known in enumerate(inside) if not known)
    before, voice = (
        tuple(statements[int(nearest[i])] for i in told),
        partial(adapted, editable, factors_of(editable, shared)),
    )
    return [Route(told, before, voice), Route(others, ("",) * len(others))]
