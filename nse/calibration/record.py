"""What a calibration leaves: the hyper-parameter file with its evidence, and the JSON of all probes and trials."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nse.calibration.finals import Found
from nse.calibration.trial import PARTS
from nse.hyperparameters import Hyperparameters

SCHEMA = 1
WRITTEN = (
    *(
        "layers",
        "fact_token",
        "v_num_grad_steps",
        "v_lr",
        "v_weight_decay",
        "clamp_norm_factor",
        "kl_factor",
        "v_loss_target",
        "target_ending",
        "value_contexts",
    ),
    *("mom2_update_weight", "subject_share", "known_keys_weight", "neuron_threshold", "alpha", "max_passes"),
)
"""Settings in the file: those that were searched, and those that the result would change with. The others keep their defaults."""


def evidence(found: Found, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says about where its settings come from.

    Args:
        found: The search.
        given: What it ran on: digests, seed, budget, the facts used.
    """
    chosen = found.chosen
    parts = {name: found.of_chosen(name) for name in PARTS}
    missing = [n for n in ("generalization", "specificity") if getattr(chosen.scores, n) is None]
    return {
        "schema": SCHEMA,
        **{name: {"facts": t.facts, **t.scores.to_dict()} if t else None for name, t in parts.items()},
        "left_out": missing,
        "probes": len(found.probes),
        "trials": {name: sum(t.part == name for t in found.trials) for name in PARTS},
        **given,
    }


def write_settings(path: Path, settings: Hyperparameters, calibration: Mapping[str, Any]) -> None:
    """Writes the hyper-parameter file, JSON by its ending or else YAML; nobody ever reads half of it."""
    plain = {name: value for name, value in settings.to_dict().items() if name in WRITTEN}
    plain["layers"] = list(settings.layers)
    data = {**plain, "calibration": dict(calibration)}
    if path.suffix == ".json":
        write_whole(path, json.dumps(data, indent=1) + "\n")
        return
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_whole(
        path, f"# Found by `nse calibrate` (docs/calibration.md). `calibration` is its evidence, not a setting.\n{body}"
    )


def write_trials(path: Path, found: Found, calibration: Mapping[str, Any]) -> None:
    """Writes all probes and trials as JSON."""
    data = {
        "calibration": dict(calibration),
        "chosen": found.chosen.number,
        "probes": [p.to_dict() for p in found.probes],
        "trials": [t.to_dict() for t in found.trials],
    }
    write_whole(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a text beside `path` and moves it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
