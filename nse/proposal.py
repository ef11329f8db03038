"""Settings for a model that no one has tuned, taken from the most similar model with a preset. Measures nothing."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from nse.architecture import EditableModel
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.presets import FOLDER

SMALLEST = 50_000_000
"""Parameters of a model at least: in the small models that were trained for one world, facts lie elsewhere than in these."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A model with a preset.

    Attributes:
        preset: Name of the preset.
        family: `model_type` of its configuration.
        layers: Number of its layers.
        parameters: Number of its parameters.
        source: Who found the settings, and how.
    """

    preset: str
    family: str
    layers: int
    parameters: float
    source: str


EVIDENCE = tuple(Evidence(**row) for row in json.loads((FOLDER / "models.json").read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings, and a sentence for people about where they come from."""

    settings: Hyperparameters
    source: str

    @property
    def text(self) -> str:
        """The hyper-parameter file, YAML: what is not at its default, with its source."""
        default = Hyperparameters(self.settings.layers).to_dict()
        own = {name: value for name, value in self.settings.to_dict().items() if value != default[name]}
        body = yaml.safe_dump({"layers": list(self.settings.layers), **own}, sort_keys=False, default_flow_style=None)
        return f"# {self.source}.\n# `nse calibrate` measures better ones (docs/calibration.md).\n{body}"


def propose(editable: EditableModel) -> Proposal | None:
    """The settings of the most similar model: of the same family if there is one, then of the nearest size.

    Layers keep their relative depth, all else its value. Nothing is proposed for models of fewer than `SMALLEST` parameters.
    """
    size = sum(tensor.numel() for tensor in editable.model.parameters())
    return proposed(str(editable.model.config.model_type), editable.layers, size)


def proposed(family: str, layers: int, parameters: float) -> Proposal | None:
    """See `propose`."""
    if parameters < SMALLEST:
        return None
    near = min(EVIDENCE, key=lambda e: (e.family != family, abs(math.log(e.parameters / parameters))))
    settings = read_hyperparameters(Path(near.preset)).settings
    first, last = (round(layer * layers / near.layers) for layer in (settings.layers[0], settings.z_layer))
    return Proposal(
        replace(settings, layers=tuple(range(first, last + 1))),
        f"Proposed from preset {near.preset} ({near.family}, {near.layers} layers, {_size(near.parameters)}), {near.source},"
        f" for {family}, {layers} layers, {_size(parameters)}",
    )


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.1f}B parameters" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M parameters"
