"""What the locate-then-edit methods share: checks, z's, the weights in force while a round writes, the columns it gathers.

How a round goes is `nse.rounds`'s, or its editor's.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from nse.architecture import EditableModel
from nse.batch import halved
from nse.delta import LayerDelta
from nse.editors.base import EditContext
from nse.errors import RequestError
from nse.objective import minimise, texts_of
from nse.patch import rewritable, rounded
from nse.request import EditRequest
from nse.subjects import by_subject
from nse.values import SUBJECTS_PER_BATCH, values_for


@dataclass
class Columns:
    """Factors gathered for one weight, a block of columns at a time, on top of the update of earlier rounds."""

    name: str
    earlier: torch.Tensor  # (d_out, d_in) float64, or 0
    left: list[torch.Tensor] = field(default_factory=list)
    right: list[torch.Tensor] = field(default_factory=list)
    case_index: list[int] = field(default_factory=list)
    _own: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def write(
        self, editable: EditableModel, left: torch.Tensor, right: torch.Tensor, case_index: Sequence[int]
    ) -> None:
        """Appends a block and puts the new weight in force, inside `in_force`, which takes it back."""
        self.left.append(left)
        self.right.append(right)
        self.case_index.extend(case_index)
        self._own = self._own + left @ right
        parameter = editable.model.get_parameter(self.name)
        parameter.data = rounded(editable, self.name, self.earlier + self._own).to(parameter.device)

    def delta(self, place: dict[int, int], keys: torch.Tensor, further: Sequence[int] = ()) -> LayerDelta:
        """The columns as the update of one weight, facts numbered anew by `place`.

        Args:
            place: New numbers of the n facts.
            keys: (n + m, d_in) after the round.
            further: The facts, by their old numbers, that the last m keys belong to.
        """
        index, more = (
            torch.tensor([place[f] for f in facts], dtype=torch.int32) for facts in (self.case_index, further)
        )
        return LayerDelta(
            torch.cat(self.left, dim=1), torch.cat(self.right, dim=0), index, keys.float().contiguous(), more
        )


def as_published(context: EditContext) -> EditContext:
    """The context without what NSE adds to the methods before it, and without what this project adds to NSE.

    One pass over all neurons of every fact, each z alone, keys with the prompt's words before the subject, nothing held or kept.
    """
    settings = replace(
        context.hyperparameters,
        joint_values=False,
        prompt_keys_weight=0.0,
        context_spread_weight=0.0,
        known_keys_weight=0.0,
        subject_share=0.0,
        neuron_threshold=1.0,
        upper_bound=float("inf"),
        max_passes=1,
    )
    return replace(context, hyperparameters=settings, held=(), earlier=())


def check_round(editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> None:
    """Checks what can be checked before anything is computed.

    Raises:
        NseError: If there is no request, one is incomplete, or a layer does not exist.
    """
    editable.check_layers(context.hyperparameters.layers)
    if not requests:
        raise RequestError("a round needs at least one request: there is nothing to edit")
    for request in requests:
        request.checked()


@contextmanager
def in_force(editable: EditableModel, context: EditContext, layers: Sequence[int]) -> Iterator[dict[int, Columns]]:
    """Puts the active deltas in force inside the block, which may write the weights of `layers` by what it is given."""
    names = {layer: editable.parameter_name(layer) for layer in layers}
    with rewritable(editable, tuple(names.values()), context.previous) as earlier:
        yield {layer: Columns(name, earlier.get(name, torch.zeros(()))) for layer, name in names.items()}


def values_of(
    editable: EditableModel, requests: Sequence[EditRequest], context: EditContext, *, rewind: bool
) -> torch.Tensor:
    """z (n, d_model) float32, under the base weights and from the cache, or under the weights in force."""
    if rewind:
        return values_for(
            editable,
            requests,
            contexts=context.contexts,
            hyperparameters=context.hyperparameters,
            held=context.held,
            store=context.values,
            memory=context.memory,
            progress=context.progress,
        )

    hp = context.hyperparameters
    groups = by_subject(requests, context.held, joint=hp.one_z_per_subject)
    texts = [texts_of(editable, requests, group, context.contexts, hp) for group in groups]
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(groups), SUBJECTS_PER_BATCH):
        part = range(len(groups))[start : start + SUBJECTS_PER_BATCH]
        computed = halved(
            lambda some: minimise(editable, [texts[i] for i in some], hp, memory=context.memory), part, what="subjects"
        )
        for i, z in zip(part, computed, strict=True):
            found |= dict(zip(groups[i].members, z, strict=True))
        context.progress("values", len(found), len(requests))
    return torch.stack([found[i] for i in range(len(requests))])


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds what the block takes to `seconds[name]`."""
    begun = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - begun
