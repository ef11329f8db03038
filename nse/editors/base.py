"""The Editor protocol: requests and a context in, a delta and a report out. The model is left as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.contexts import ContextTemplates
from nse.delta import Delta
from nse.errors import HyperparameterError
from nse.factors import FactorStore
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.statistics import SecondMoments
from nse.subjects import HeldFact
from nse.values import ValueStore

T = TypeVar("T")
Status = Literal["edited", "skipped", "unconverged"]
Need = Literal["second_moments", "values", "trained"]
"""C0 of the base model; z's, which are cached and made ahead of a round; the file that `nse train` made."""


@dataclass(frozen=True, slots=True)
class EditContext:
    """All that an edit depends on besides its requests.

    Attributes:
        hyperparameters: Settings of the method.
        second_moments: C0 of the base model.
        contexts: Context templates for values and keys.
        previous: Active deltas, in ledger order: the weights to start from, and K_p.
        earlier: Requests of the facts in `previous`, in their order, at least those of the subjects that are edited now, which
            are written again where the corrections of a subject share a z, and those of which one replaced another. The more
            are given, the more prompts are kept where `prompt_keys_weight` or `context_spread_weight` is set.
        held: Known facts of subjects, to be left in place where the method can.
        values: Cache of z's, if any.
        factors: Factors of C0 and whitened keys of `previous`, kept from round to round.
        trained: The file that `nse train` made, for methods that train before they edit.
        seed: Of whatever a method draws at random.
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
    trained: Path | None = None
    seed: int = 0
    memory: int | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class CaseReport:
    """How one request came out.

    Residuals are |z - h| before the first and after the last pass; for a method without z, the mean of -log p per token of the
    target, in nats, before and after the edit.
    """

    case_id: str
    status: Status
    residual_before: float
    residual_after: float


@dataclass(frozen=True, slots=True)
class EditResult:
    """What an edit gives: the delta of the facts that were written, z (n, d_model) of all requests, a report per request.

    A method without z gives zeros.
    """

    delta: Delta
    values: torch.Tensor
    cases: tuple[CaseReport, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoSettings:
    """The settings of a method that has none of its own."""


class Editor(Protocol):
    """A method of model editing.

    Attributes:
        name: What it is called in files and on the command line.
        settings: A frozen dataclass with defaults: the settings that only this method has (`own_settings` reads them).
        needs: What of `EditContext` it cannot do without.
    """

    name: str
    settings: type[Any]
    needs: frozenset[Need]

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """Writes `requests` on top of `context.previous` and returns the patch; `editable` is bit-identical afterwards.

        Raises:
            NseError: If a request, the settings or the second moments do not fit the model.
        """
        ...


def own_settings(kind: type[T], own: Mapping[str, Any], *, method: str) -> T:
    """The settings of one method as its dataclass `kind`, numbers and lists converted to what its defaults are.

    Raises:
        HyperparameterError: If a value has the wrong type or is out of its range.
    """
    default, values = kind(), {}
    for setting in fields(kind):  # type: ignore[arg-type]
        if setting.name not in own:
            continue
        given, usual = own[setting.name], getattr(default, setting.name)
        try:
            if isinstance(usual, bool) != isinstance(given, bool):
                raise TypeError(f"{given!r} is not {'true or false' if isinstance(usual, bool) else 'a number'}")
            values[setting.name] = given if usual is None else type(usual)(given)
        except (TypeError, ValueError) as error:
            raise HyperparameterError(f"{method}: {setting.name} = {given!r} has the wrong type ({error})") from error
    return kind(**values)
