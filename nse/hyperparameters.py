"""Hyper-parameters of an edit: our own names, read from our files and from those that the field publishes.

Reads the JSON and YAML of NSE, MEMIT, AlphaEdit and EasyEdit by their own keys; says which keys it does not use.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from nse.errors import HyperparameterError, RequestError
from nse.presets import preset_or_file
from nse.request import read_text

PUBLISHED_KEYS = frozenset(("layer_selection", "max_iterations", "mom2_n_samples", "v_loss_layer", "alg_name"))
"""Keys that only published files have: a file with one of them is read by its project's meaning."""
FACT_TOKENS = ("subject_last", "last")
"""Where a fact may be written."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Settings of locate-then-edit methods, by the NSE paper's meaning.

    Attributes:
        layers: Rewrite layers in ascending order; z is taken at the last.
        fact_token: Where a fact is written: "subject_last", as in the paper, or "last": the last token of its prompt and each
            of its target but the last one, every one with a key and a z of its own (`nse.steps`). Such a z acts on no other
            text, so that `kl_factor` and `hold_factor` mean nothing.
        v_num_grad_steps: Most Adam steps for one z.
        steps_as_published: Whether `v_num_grad_steps: N` makes N - 1 updates, as the published code does: its loop ends before
            the last one.
        v_lr: Learning rate of those steps.
        v_weight_decay: Weight of |delta| / |h|^2 in the loss of z.
        clamp_norm_factor: |delta| is kept at or below this share of |h|.
        kl_factor: Weight of the divergence at "{subject} is a".
        v_loss_target: z is done when its loss is below this.
        target_ending: What z makes the model say after a target that ends with a letter or digit, such as a full stop, so that it
            does not go on ("Newcastle upon Tyne"); nothing in the paper. At the last token it means nothing.
        v_patience: z is done when every target token has been the most probable one, in every context, for more than this many
            steps on end (ENCORE); 0 is off.
        mom2_update_weight: lambda, the weight of C0 in the solve.
        previous_keys_weight: Weight of each earlier edit's key in the solve; 1 in the paper.
        prompt_keys_weight: Weight in the solve of each other token of the prompts of corrections and of held facts, where nothing
            shall change; 0 in the paper.
        context_spread_weight: Weight in the solve of how the key of each fact differs from context to context, where nothing
            shall change, so that the update acts alike in all; 0 in the paper, whose keys are means over contexts.
        known_keys_weight: Weight in the solve of the key of each held fact of another subject, where nothing shall change; 0 in
            the paper, which protects what C0 holds and no fact in particular.
        value_contexts: Contexts in which z is optimised: "all", as in the paper, or "first": those of the first group alone, a
            fraction of the work where that is the bare prompt. Keys are measured in all.
        joint_values: Whether the corrections of one subject get their z's together; no in the published code.
        hold_factor: Weight of the divergence at the known facts of a subject that are held; there are none unless given.
        subject_share: Share of a key measured on the subject alone in each context; 0 in the published code.
        neuron_threshold: Share p of the summed key activation that the chosen neurons reach; 1 keeps all.
        alpha: A fact whose |z - h| is above this goes through another pass.
        upper_bound: A fact whose |z - h| is at or above this at the start is skipped.
        max_passes: Most passes over the layers.
        write_layers: "all", or "ends": only the first and the last layer are written, each to a z of its own and with all of its
            residual (BLUE, arXiv 2502.03748); "all" in the papers of NSE and MEMIT.
        protected_directions: The top singular directions of the base weight on which no update falls, on either side (REVIVE,
            arXiv 2601.11042): their number, or, below 1, the share of the sum of squared singular values that they
            reach; 0 is off.
        z_norm_limit: A z longer than this many times the mean length of the round's z's is shortened to that when it is written
            (NAS, which takes the mean of pilot edits); 0 is off. A round of one fact knows no other, so nothing happens there.
        ridge: Weight of the identity beside C0 in the solve (ENCORE's lambda I); 0 is off.
        own: Settings that only the method has, by its own names; its editor checks them (`nse.editors.base.own_settings`).
    """

    layers: tuple[int, ...]
    fact_token: str = "subject_last"
    v_num_grad_steps: int = 25
    steps_as_published: bool = False
    v_lr: float = 0.1
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    v_loss_target: float = 0.05
    target_ending: str = ""
    v_patience: int = 0
    mom2_update_weight: float = 15000.0
    previous_keys_weight: float = 1.0
    prompt_keys_weight: float = 0.0
    context_spread_weight: float = 0.0
    known_keys_weight: float = 0.0
    value_contexts: str = "all"
    joint_values: bool = True
    hold_factor: float = 1.0
    subject_share: float = 0.0
    neuron_threshold: float = 1.0
    alpha: float = 2.5
    upper_bound: float = float("inf")
    max_passes: int = 2
    write_layers: str = "all"
    protected_directions: float = 0.0
    z_norm_limit: float = 0.0
    ridge: float = 0.0
    own: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range; the message names it.
        """
        checks = {
            "layers": bool(self.layers) and list(self.layers) == sorted(set(self.layers)),
            "fact_token": self.fact_token in FACT_TOKENS,
            "v_num_grad_steps": self.value_updates >= 1,
            "v_lr": self.v_lr > 0,
            "v_patience": self.v_patience >= 0,
            "clamp_norm_factor": self.clamp_norm_factor > 0,
            "mom2_update_weight": self.mom2_update_weight > 0,
            "previous_keys_weight": self.previous_keys_weight >= 0,
            "prompt_keys_weight": self.prompt_keys_weight >= 0,
            "context_spread_weight": self.context_spread_weight >= 0,
            "known_keys_weight": self.known_keys_weight >= 0,
            "value_contexts": self.value_contexts in ("all", "first"),
            "hold_factor": self.hold_factor >= 0,
            "subject_share": 0 <= self.subject_share <= (1 if self.fact_token == "subject_last" else 0),
            "neuron_threshold": 0 < self.neuron_threshold <= 1,
            "max_passes": self.max_passes >= 1,
            "write_layers": self.write_layers in ("all", "ends"),
            "protected_directions": 0 <= self.protected_directions < 1
            or (self.protected_directions > 0 and self.protected_directions % 1 == 0),
            "z_norm_limit": self.z_norm_limit >= 0,
            "ridge": self.ridge >= 0,
        }
        if bad := next((name for name, fine in checks.items() if not fine), None):
            raise HyperparameterError(
                f"{bad} = {getattr(self, bad)!r} is out of range: see Hyperparameters in the docs"
            )

    @property
    def z_layer(self) -> int:
        """The layer after which z is taken: the last rewrite layer."""
        return self.layers[-1]

    @property
    def value_updates(self) -> int:
        """Most updates of one delta."""
        return self.v_num_grad_steps - self.steps_as_published

    @property
    def one_z_per_subject(self) -> bool:
        """Whether the corrections of one subject share a key, and so a z."""
        return self.joint_values and self.fact_token == "subject_last"

    @property
    def written_layers(self) -> tuple[int, ...]:
        """The layers whose weights an edit changes, in ascending order."""
        return self.layers if self.write_layers == "all" else tuple(dict.fromkeys((self.layers[0], self.z_layer)))

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for reports and digests."""
        return asdict(self)

    def value_settings(self) -> dict[str, Any]:
        """The settings that z depends on: part of the key of the value cache."""
        names = (
            "v_lr",
            "v_weight_decay",
            "clamp_norm_factor",
            "kl_factor",
            "v_loss_target",
            "hold_factor",
        )
        # what is off is left out, so that the z's of before it was known are found again
        later: dict[str, Any] = {"v_patience": self.v_patience} if self.v_patience else {}
        if self.fact_token != "subject_last":
            later["fact_token"] = self.fact_token
        elif self.target_ending:
            later["target_ending"] = self.target_ending
        common = {"z_layer": self.z_layer, "v_num_grad_steps": self.value_updates}
        return common | {name: getattr(self, name) for name in names} | later


@dataclass(frozen=True, slots=True)
class HyperparameterFile:
    """What a file said: the settings, the keys that are not used here, and what a published file means elsewhere than here."""

    settings: Hyperparameters
    unused: tuple[str, ...]
    differences: tuple[str, ...] = ()


def read_hyperparameters(path: Path, *, method: str = "nse", own: Collection[str] = ()) -> HyperparameterFile:
    """Reads a JSON or YAML file in our layout or in one of the published ones, or the preset that `path` names.

    A file of ours may have a section for a method, a mapping under its name: what stands there holds for that method alone and
    goes before what stands outside.

    Args:
        path: The file, or the name of a preset.
        method: Whose section is read.
        own: Names of the settings that only this method has.

    Raises:
        HyperparameterError: If the file is missing or malformed, lacks `layers`, or asks for something unsupported.
    """
    path = preset_or_file(path)
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
    sections = {name: value for name, value in data.items() if isinstance(value, Mapping)}
    common = {name: value for name, value in data.items() if name not in sections}
    section = sections.get(method, {})
    known = {f.name for f in fields(Hyperparameters)} - {"own"}
    if unknown := next((name for name in section if name not in known and name not in own), None):
        raise HyperparameterError(
            f"{path}: {method}: {unknown!r} is no setting of that method: use {', '.join(sorted(own)) or 'the common ones'}"
        )
    return hyperparameters_of({**common, **section}, where=str(path), method=method, own=own)


def hyperparameters_of(
    data: Mapping[str, Any], *, where: str, method: str = "nse", own: Collection[str] = ()
) -> HyperparameterFile:
    """Builds settings of `method` from a mapping by our keys or the published ones; `own` are names that it alone knows.

    Deviation: the published `max_iterations` counts one more than the passes made (the loop breaks before the last), so
    `max_iterations: 3` is `max_passes: 2` here. A published file without it (MEMIT, AlphaEdit) is of a method that makes one
    pass, whatever remains.

    Raises:
        HyperparameterError: If `layers` is missing or a value has the wrong type or range; `where` names the file.
    """
    if "layers" not in data:
        raise HyperparameterError(f"{where} has no `layers`: name the rewrite layers")
    known = {f.name: getattr(f.type, "__name__", str(f.type)) for f in fields(Hyperparameters) if f.name != "own"}
    values = {key: value for key, value in data.items() if key in known}
    special = {key: value for key, value in data.items() if key in own and key not in known}
    used = set(values) | set(special)
    try:
        if "max_iterations" in data and "max_passes" not in data:
            values["max_passes"] = max(1, int(data["max_iterations"]) - 1)
            used.add("max_iterations")
        elif PUBLISHED_KEYS & set(data):
            values = {"max_passes": 1, "alpha": float("inf")} | values
        converted = {key: _converted(known[key], value) for key, value in values.items()}
        settings = Hyperparameters(**converted, own=special)
        return HyperparameterFile(settings, tuple(sorted(set(data) - used)), _differences(data, settings, method))
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
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a text")
        return value
    if kind.startswith("tuple"):
        if isinstance(value, str):
            raise TypeError(f"{value!r} is a text, not a list")
        return tuple(int(v) for v in value)
    return int(value) if kind == "int" else float(value)


def _differences(data: Mapping[str, Any], settings: Hyperparameters, method: str) -> tuple[str, ...]:
    """Where a published file does not mean here what it means in its own project; nothing for a file of ours."""
    if not PUBLISHED_KEYS & set(data):
        return ()
    told = []
    theirs = str(data.get("alg_name", "AlphaEdit" if "nullspace_threshold" in data else "NSE"))
    if theirs.casefold() != method.removesuffix("_seq"):
        told.append(f"the file is of {theirs}: its settings are used, the method is the one that --method names")
    if not settings.steps_as_published:
        told.append(
            f"v_num_grad_steps {settings.v_num_grad_steps}: that many steps of Adam here, one fewer there "
            "(steps_as_published: true makes one fewer)"
        )
    if method == "nse":
        told += _differences_of_nse(data, settings)
    if "v_loss_layer" in data:
        told.append(f"v_loss_layer {data['v_loss_layer']}: the loss is always taken at the model's last layer here")
    if str(data.get("mom2_dataset", "")):
        told.append(
            "mom2_*: C0 comes from the second-moment file that is given here, there from that many texts of that dataset"
        )
    return tuple(told)


def _differences_of_nse(data: Mapping[str, Any], settings: Hyperparameters) -> list[str]:
    """Those that concern what NSE has and the methods of one pass over whole layers do not."""
    told = []
    if "max_passes" not in data and "max_iterations" in data:
        told.append(
            f"max_iterations {data['max_iterations']} counts one more than the passes made: max_passes {settings.max_passes}"
        )
    elif "max_passes" not in data:
        told.append("no max_iterations: one pass, as in MEMIT")
    if "alpha" in data:
        told.append("alpha: the first pass writes every fact here, there only those whose |z - h| is above alpha")
    if "upper_bound" in data:
        told.append(
            "upper_bound: compared before the first pass here, before every pass there; a skipped key enters K_p only there"
        )
    if settings.neuron_threshold < 1:
        told.append(
            "neuron_threshold: the chosen neurons reach that share here, there they stop short of it by one neuron"
        )
    if settings.fact_token == "last":
        told.append(
            "fact_token last: every token of a target is written where it is said here, there one vector for all"
        )
    if settings.one_z_per_subject:
        told.append("joint_values: the corrections of one subject get their z's together here, there one by one")
    return told
