"""A session: the model of a workspace in memory, loaded once, and the weights of any version of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flows.config import ModelParams
from flows.errors import FlowError
from flows.threads import settle
from flows.workspace import Workspace
from ledger.records import ActiveDelta, Correction
from nse.architecture import EditableModel, load_model
from nse.delta import Delta
from nse.description import Architecture, architecture_of
from nse.errors import ArchitectureError
from nse.evaluation.run import OutcomeStore
from nse.patch import compose, patched, version_digest
from nse.request import EditRequest

if TYPE_CHECKING:
    from ledger.artifacts import ArtifactStore


class Session:
    """What one process knows of a workspace's model. Weights are fetched from the store, verified, and composed."""

    def __init__(self, workspace: Workspace) -> None:
        """Loads nothing yet."""
        self.workspace = workspace
        self._deltas: dict[tuple[str, str], Delta] = {}

    @cached_property
    def store(self) -> "ArtifactStore":
        """The workspace's artifacts."""
        return self.workspace.store()

    @cached_property
    def editable(self) -> EditableModel:
        """The model with its base weights.

        Raises:
            FlowError: If it is not the model that the workspace was made for.
            ArchitectureError: If it cannot be loaded.
        """
        settle(self.workspace.params.threads)
        params = self.workspace.params.model
        editable = load_model(
            self.workspace.model_path,
            dtype=getattr(torch, params.dtype),
            architecture=described_architecture(params),
            device_map=params.device_map,
        )
        expected = params.digest
        if editable.base_digest != expected:
            problem = (
                f"{self.workspace.model_path} has digest {editable.base_digest[:12]}, params.yaml says {expected[:12]}"
            )
            raise FlowError(problem, "restore the model, or make a new workspace for this one")
        return editable

    @cached_property
    def outcomes(self) -> OutcomeStore:
        """Answers that versions have given before; deleting them costs only time."""
        return OutcomeStore(self.workspace.state / "outcomes")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, without the model."""
        path = self.workspace.model_path
        if not (path / "config.json").is_file():
            raise ArchitectureError(f"{path} is not a model directory (no config.json): see model.path in params.yaml")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        return tokenizer

    def delta(self, sha256: str, path: str) -> Delta:
        """A stored delta, its bytes checked.

        Raises:
            ArtifactError: If it cannot be had or holds other bytes than the ledger recorded.
        """
        if (sha256, path) not in self._deltas:
            self._deltas[sha256, path] = Delta.load(self.store.fetch(path, sha256))
        return self._deltas[sha256, path]

    def deltas(self, active: Sequence[ActiveDelta]) -> tuple[Delta, ...]:
        """The deltas in force, less the columns that were dropped."""
        return tuple(self.delta(a.sha256, a.path).without(a.dropped) for a in active)

    def version(self, deltas: Sequence[Delta]) -> str:
        """Digest of the model's weights with `deltas` in force."""
        return version_digest(self.editable, compose(self.editable, deltas))

    @contextmanager
    def with_deltas(self, deltas: Sequence[Delta]) -> Iterator[EditableModel]:
        """Puts the weights of `deltas` in force inside the block."""
        with patched(self.editable, compose(self.editable, deltas)):
            yield self.editable

    @contextmanager
    def at(self, active: Sequence[ActiveDelta]) -> Iterator[EditableModel]:
        """Puts the weights of a version in force inside the block."""
        with self.with_deltas(self.deltas(active)) as editable:
            yield editable


def described_architecture(params: ModelParams) -> Architecture | None:
    """The architecture that params.yaml describes, if it does."""
    described = params.architecture.model_dump() if params.architecture else None
    return architecture_of(described, where="params.yaml: model.architecture") if described else None


def request_of(correction: Correction) -> EditRequest:
    """A correction as the editor reads it; its case is named by the correction's id."""
    return EditRequest(
        case_id=correction.id,
        subject=correction.subject,
        prompt_template=correction.prompt_template,
        target_new=correction.target_new,
        target_true=correction.target_true,
        relation=correction.relation,
    )
