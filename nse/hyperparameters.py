"""Hyper-parameters of an edit: our own names, read from our files and from those that the field publishes.

Reads the JSON and YAML of NSE, MEMIT, AlphaEdit and EasyEdit by their own keys; says which keys it does not use.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from nse.errors import HyperparameterError, RequestError
from nse.request import read_text


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Settings of NSE, by the paper's meaning.

    Attributes:
        layers: Rewrite layers in ascending order; z is taken at the last.
        v_num_grad_steps: Most Adam steps for one z.
        v_lr: Learning rate of those steps.
        v_weight_decay: Weight of |delta| / |h|^2 in the loss of z.
        clamp_norm_factor: |delta| is kept at or below this share of |h|.
        kl_factor: Weight of the divergence at "{subject} is a".
        v_loss_target: z is done when its loss is below this.
        mom2_update_weight: lambda, the weight of C0 in the solve.
        previous_keys_weight: Weight of each earlier edit's key in the solve; 1 in the paper.
        joint_values: Whether the corrections of one subject get their z's together; no in the published code.
        hold_factor: Weight of the divergence at the known facts of a subject that are held; there are none unless given.
        subject_share: Share of a key measured on the subject alone in each context; 0 in the published code.
        neuron_threshold: Share p of the summed key activation that the chosen neurons reach; 1 keeps all.
        alpha: A fact whose |z - h| is above this goes through another pass.
        upper_bound: A fact whose |z - h| is at or above this at the start is skipped.
        max_passes: Most passes over the layers.
    """

    layers: tuple[int, ...]
    v_num_grad_steps: int = 25
    v_lr: float = 0.1
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    v_loss_target: float = 0.05
    mom2_update_weight: float = 15000.0
    previous_keys_weight: float = 1.0
    joint_values: bool = True
    hold_factor: float = 1.0
    subject_share: float = 0.0
    neuron_threshold: float = 1.0
    alpha: float = 2.5
    upper_bound: float = float("inf")
    max_passes: int = 2

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range; the message names it.
        """
        checks = {
            "layers": bool(self.layers) and list(self.layers) == sorted(set(self.layers)),
            "v_num_grad_steps": self.v_num_grad_steps >= 1,
            "v_lr": self.v_lr > 0,
            "clamp_norm_factor": self.clamp_norm_factor > 0,
            "mom2_update_weight": self.mom2_update_weight > 0,
            "previous_keys_weight": self.previous_keys_weight >= 0,
            "hold_factor": self.hold_factor >= 0,
            "subject_share": 0 <= self.subject_share <= 1,
            "neuron_threshold": 0 < self.neuron_threshold <= 1,
            "max_passes": self.max_passes >= 1,
        }
        if bad := next((name for name, fine in checks.items() if not fine), None):
            raise HyperparameterError(
                f"{bad} = {getattr(self, bad)!r} is out of range: see Hyperparameters in the docs"
            )

    @property
    def z_layer(self) -> int:
        """The layer after which z is taken: the last rewrite layer."""
        return self.layers[-1]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for reports and digests."""
        return asdict(self)

    def value_settings(self) -> dict[str, Any]:
        """The settings that z depends on: part of the key of the value cache."""
        names = (
            "v_num_grad_steps",
            "v_lr",
            "v_weight_decay",
            "clamp_norm_factor",
            "kl_factor",
            "v_loss_target",
            "hold_factor",
        )
        return {"z_layer": self.z_layer} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class HyperparameterFile:
    """What a file said: the settings, and the keys that are not used here."""

    settings: Hyperparameters
    unused: tuple[str, ...]


def read_hyperparameters(path: Path) -> HyperparameterFile:
    """Reads a JSON or YAML file in our layout or in one of the published ones.

    Raises:
        HyperparameterError: If the file is missing or malformed, lacks `layers`, or asks for something unsupported.
    """
    try:
        text = read_text(path)
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except RequestError as error:
        raise HyperparameterError(str(error)) from error
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise HyperparameterError(
            f"{path} is not valid {path.suffix or 'YAML'} ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(data, Mapping):
        raise HyperparameterError(f"{path} is not a mapping of settings: write `key: value` pairs")
    return hyperparameters_of(data, where=str(path))


def hyperparameters_of(data: Mapping[str, Any], *, where: str) -> HyperparameterFile:
    """Builds settings from a mapping by our keys or the published ones.

    Deviation: the published `max_iterations` counts one more than the passes made (the loop breaks before the last), so
    `max_iterations: 3` is `max_passes: 2` here.

    Raises:
        HyperparameterError: If `layers` is missing or a value has the wrong type or range; `where` names the file.
    """
    if "layers" not in data:
        raise HyperparameterError(f"{where} has no `layers`: name the rewrite layers")
    if data.get("fact_token", "subject_last") != "subject_last":
        raise HyperparameterError(f"{where}: fact_token {data['fact_token']!r} is not supported: use subject_last")
    known = {f.name: getattr(f.type, "__name__", str(f.type)) for f in fields(Hyperparameters)}
    values = {key: value for key, value in data.items() if key in known}
    used = set(values) | {"fact_token"}
    try:
        if "max_iterations" in data and "max_passes" not in data:
            values["max_passes"] = max(1, int(data["max_iterations"]) - 1)
            used.add("max_iterations")
        converted = {key: _converted(known[key], value) for key, value in values.items()}
        return HyperparameterFile(Hyperparameters(**converted), tuple(sorted(set(data) - used)))
    except (TypeError, ValueError) as error:
        raise HyperparameterError(
            f"{where}: a value has the wrong type ({error}): see Hyperparameters in the docs"
        ) from error
    except HyperparameterError as error:
        raise HyperparameterError(f"{where}: {error}") from error


def _converted(kind: str, value: Any) -> Any:
    """A setting as what its annotation says it is.

    Raises:
        TypeError: If it cannot be read as that.
        ValueError: Likewise.
    """
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{value!r} is neither true nor false")
        return value
    if kind.startswith("tuple"):
        if isinstance(value, str):
            raise TypeError(f"{value!r} is a text, not a list")
        return tuple(int(v) for v in value)
    return int(value) if kind == "int" else float(value)
