"""The fast path in float32, as it is used, against the oracle: z, keys, deltas and weights of a stream of rounds."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import pytest
import torch

from nse.architecture import EditableModel
from nse.delta import Delta
from nse.editors import EditContext
from nse.editors.nse import NSE
from nse.hyperparameters import Hyperparameters
from nse.patch import compose
from nse.request import EditRequest
from nse.values import values_for
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS, fact


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_z_is_that_of_the_oracle(
    editable: EditableModel, requests: list[EditRequest], settings: Hyperparameters
) -> None:
    hp = replace(settings, v_num_grad_steps=20, v_weight_decay=0.5)
    fast = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=hp)
    slow = [oracle.compute_z(editable, r, contexts=CONTEXTS, hyperparameters=hp) for r in requests]
    errors = [relative(z, expected) for z, expected in zip(fast, slow, strict=True)]
    assert median(errors) < 1e-4
    assert max(errors) < 1e-2


def test_the_layout_of_the_published_code_gives_the_same_z(
    precise: EditableModel, requests: list[EditRequest], settings: Hyperparameters
) -> None:
    long = EditRequest("long", "Anna Berg", "In the north, as all the world knows, {} lives in", "Lima or Cairo")
    for request in [*requests[:2], long]:
        one_text, batch = (
            compute(precise, request, contexts=CONTEXTS, hyperparameters=settings)
            for compute in (oracle.compute_z, oracle.compute_z_as_published)
        )
        assert relative(batch, one_text) < 1e-6


def oracle_stream(
    editable: EditableModel,
    rounds: Sequence[Sequence[EditRequest]],
    z: torch.Tensor,
    context: EditContext,
) -> list[oracle.Round]:
    """The rounds one after the other, each with the keys and weights that the oracle itself left before it."""
    layers = {la: editable.parameter_name(la) for la in context.hyperparameters.layers}
    base = {la: editable.base_weight(name).double() for la, name in layers.items()}
    updates = {la: torch.zeros_like(weight) for la, weight in base.items()}
    keys = {la: torch.zeros(weight.shape[1], 0, dtype=torch.float64) for la, weight in base.items()}
    done: list[oracle.Round] = []
    start = 0
    for requests in rounds:
        result = oracle.nse_round(
            editable,
            requests,
            z=z[start : start + len(requests)],
            contexts=context.contexts,
            hyperparameters=context.hyperparameters,
            second_moments={la: context.second_moments.of(editable.projection_name(la)) for la in layers},
            earlier_updates=updates,
            previous_keys=keys,
        )
        start += len(requests)
        updates = {la: result.weights[name].double() - base[la] for la, name in layers.items()}
        keys = {la: torch.cat([keys[la], result.keys[name]], dim=1) for la, name in layers.items()}
        done.append(result)
    return done


@pytest.mark.parametrize("threshold", [1.0, 0.8], ids=["all neurons", "some neurons"])
def test_three_rounds_of_several_passes_are_those_of_the_oracle(
    editable: EditableModel, context: EditContext, threshold: float
) -> None:
    hp = replace(context.hyperparameters, neuron_threshold=threshold, max_passes=3, alpha=0.0, subject_share=0.25)
    context = replace(context, hyperparameters=hp)
    rounds = [[fact(0), fact(1)], [fact(2), fact(3)], [fact(4), fact(5)]]
    deltas: list[Delta] = []
    values = []
    for requests in rounds:
        result = NSE().edit(editable, requests, replace(context, previous=tuple(deltas)))
        deltas.append(result.delta)
        values.append(result.values)
    expected = oracle_stream(editable, rounds, torch.cat(values), context)
    for number, step in enumerate(expected, 1):
        assert [len(facts) for facts in step.written_per_pass] == [2, 2, 2]
        weights = compose(editable, deltas[:number])
        for name, weight in step.weights.items():
            base = editable.base_weight(name).double()
            total = sum((d.layers[name].product() for d in deltas[:number]), torch.zeros_like(base))
            assert relative(editable.canonical(weights[name]), weight) < 1e-5
            assert relative(total, weight.double() - base) < 1e-4
            assert relative(deltas[number - 1].layers[name].keys.T, step.keys[name]) < 1e-5
            assert relative(weight, base) > 1e-2  # there is something to agree on
