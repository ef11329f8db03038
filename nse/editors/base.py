"""The Editor protocol: requests and a context in, a delta and a report out. The model is left as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.contexts import ContextTemplates
from nse.delta import Delta
from nse.factors import FactorStore
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.statistics import SecondMoments
from nse.subjects import HeldFact
from nse.values import ValueStore

Status = Literal["edited", "skipped", "unconverged"]


@dataclass(frozen=True, slots=True)
class EditContext:
    """All that an edit depends on besides its requests.

    Attributes:
        hyperparameters: Settings of the method.
        second_moments: C0 of the base model.
        contexts: Context templates for values and keys.
        previous: Active deltas, in ledger order: the weights to start from, and K_p.
        earlier: Requests of the facts in `previous`, in their order; those of a subject that is edited now are written again.
        held: Known facts of subjects, to be left in place where the method can.
        values: Cache of z's, if any.
        factors: Factors of C0 and whitened keys of `previous`, kept from round to round.
        memory: Most bytes of activations at a time, by estimate; by the device if not given.
        progress: Called as `progress(stage, done, total)`.
    """

    hyperparameters: Hyperparameters
    second_moments: SecondMoments
    contexts: ContextTemplates
    previous: tuple[Delta, ...] = ()
    earlier: tuple[EditRequest, ...] = ()
    held: tuple[HeldFact, ...] = ()
    values: ValueStore | None = None
    factors: FactorStore = field(default_factory=FactorStore)
    memory: int | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class CaseReport:
    """How one request came out; residuals are |z - h| before the first and after the last pass."""

    case_id: str
    status: Status
    residual_before: float
    residual_after: float


@dataclass(frozen=True, slots=True)
class EditResult:
    """What an edit gives: the delta of the facts that were written, z (n, d_model) of all requests, a report per request."""

    delta: Delta
    values: torch.Tensor
    cases: tuple[CaseReport, ...]
    seconds: dict[str, float] = field(default_factory=dict)


class Editor(Protocol):
    """A method of model editing."""

    name: str

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """Writes `requests` on top of `context.previous` and returns the patch; `editable` is bit-identical afterwards.

        Raises:
            NseError: If a request, the settings or the second moments do not fit the model.
        """
        ...
