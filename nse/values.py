"""Values: the target states z of corrections under the base weights alone (weights rewinding), and their cache.

Because z depends on nothing but the base model, the subject's corrections and the settings, it is cached under the digest of
exactly those and can be computed at any time, in any order. How it is computed is `nse.objective`'s.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save

from nse.architecture import EditableModel
from nse.batch import Progress, halved, silent
from nse.contexts import ContextTemplates
from nse.fingerprint import json_digest
from nse.hyperparameters import Hyperparameters
from nse.objective import contexts_of_values, minimise, texts_of
from nse.patch import base_in_force
from nse.request import EditRequest
from nse.steps import step_of
from nse.subjects import HeldFact, SubjectFacts, by_subject

SUBJECTS_PER_BATCH = 64
"""Every step reads the weights above z's layer once for all of them: on a processor that takes as long as 20 tokens or more."""


@dataclass(frozen=True, slots=True)
class ValueStore:
    """A folder of z's, one small file each, named by the digest of every input of the computation."""

    folder: Path

    def get(self, key: str) -> torch.Tensor | None:
        """The cached z (d_model,) float32, or nothing."""
        path = self.folder / f"{key}.safetensors"
        return load(path.read_bytes())["z"] if path.is_file() else None

    def put(self, key: str, z: torch.Tensor) -> None:
        """Keeps z; a reader never sees half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{key}.{os.getpid()}"
        temporary.write_bytes(save({"z": z.contiguous()}))
        temporary.replace(self.folder / f"{key}.safetensors")


def value_keys(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    group: SubjectFacts,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
) -> list[str]:
    """Per member of a group, the digest of everything its z depends on: base weights, tokenizer, group, contexts, settings."""
    members = [requests[i] for i in group.members]
    held = group.held if hyperparameters.fact_token == "subject_last" else ()
    common = {
        "schema": 3,  # 2 had the divergence the other way round
        "base": editable.base_digest,
        "tokenizer": editable.tokenizer_digest,
        "group": [[r.subject, r.prompt_template, r.target_new, *([step_of(r)] if step_of(r) else [])] for r in members],
        "held": [[f.subject, f.prompt_template, f.object] for f in held],
        "contexts": contexts_of_values(contexts, hyperparameters),
        "settings": hyperparameters.value_settings(),
    }
    return [json_digest({**common, "member": member}) for member in range(len(group.members))]


def values_for(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
    held: Sequence[HeldFact] = (),
    store: ValueStore | None = None,
    memory: int | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """Returns z (n, d_model) float32 for `requests`, from the store where it has them; what is computed is stored.

    The base weights are put in force for it, whatever the model holds: that is the rewinding.

    Args:
        editable: The model.
        requests: n corrections; those of one subject get their z's together, unless the settings say otherwise.
        contexts: Texts in front of the prompts.
        hyperparameters: Settings.
        held: Known facts that the z's of their subjects shall leave in place.
        store: Cache of z's.
        memory: Most bytes of activations at a time, by estimate; by the device if not given.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        TokenError: If a prompt cannot be tokenised or is too long.
    """
    groups = by_subject(requests, held, joint=hyperparameters.one_z_per_subject)
    keys = [value_keys(editable, requests, group, contexts, hyperparameters) for group in groups]
    found: dict[int, torch.Tensor] = {}
    missing: list[int] = []
    for number, group in enumerate(groups):
        known = [store.get(key) for key in keys[number]] if store is not None else []
        there = [z for z in known if z is not None]
        if len(there) == len(group.members):
            found |= dict(zip(group.members, there, strict=True))
        else:
            missing.append(number)
    progress("values", len(found), len(requests))
    texts = [texts_of(editable, requests, groups[i], contexts, hyperparameters) for i in missing]
    for start in range(0, len(missing), SUBJECTS_PER_BATCH):
        part = range(len(missing))[start : start + SUBJECTS_PER_BATCH]
        with base_in_force(editable):
            computed = halved(
                lambda some: minimise(editable, [texts[i] for i in some], hyperparameters, memory=memory),
                part,
                what="subjects",
            )
        for i, z in zip(part, computed, strict=True):
            found |= dict(zip(groups[missing[i]].members, z, strict=True))
            if store is not None:
                for key, row in zip(keys[missing[i]], z, strict=True):
                    store.put(key, row)
        progress("values", len(found), len(requests))
    width = int(editable.model.config.hidden_size)
    return torch.stack([found[i] for i in range(len(requests))]) if requests else torch.zeros(0, width)
