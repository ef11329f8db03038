"""z against that of the published NSE code on a pretrained model: numbers that it gave, kept in tests/golden."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nse.architecture import load_model
from nse.hyperparameters import hyperparameters_of
from nse.objective import compute_z
from nse.request import read_requests

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("bare", 2e-4), ("contexts", 1e-2)])
def test_z_is_that_of_the_published_code(smollm2: Path, name: str, bound: float) -> None:
    with safe_open(GOLDEN / "published_z.safetensors", framework="pt") as file:
        expected, told = file.get_tensor(name), file.metadata()
    settings = hyperparameters_of(json.loads(told["settings"]) | {"steps_as_published": True}, where="golden").settings
    contexts = json.loads(told["contexts"]) if name == "contexts" else [["{}"]]
    requests = read_requests(GOLDEN / "published_z.json")[: len(expected)]
    z = compute_z(
        load_model(smollm2, dtype=torch.float32),
        requests,
        contexts=tuple(map(tuple, contexts)),
        hyperparameters=settings,
    )
    # four digits of each; one of those in contexts stops at the bound of the loss a step apart, a hundredth off
    errors = (z - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(errors.max()) < bound
    assert float(errors.median()) < 1e-4
