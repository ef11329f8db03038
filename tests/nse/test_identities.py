"""The identities of NSE (docs/method.md), on whole rounds. Those of one layer's system alone are in test_solve.py."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import EditableModel
from nse.delta import Delta
from nse.editors import EditContext
from nse.editors.nse import NSE
from nse.keys import measure
from nse.neurons import select_neurons
from nse.patch import compose, patched
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS, fact


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def stream(editable: EditableModel, context: EditContext, rounds: list[list[int]]) -> tuple[list[Delta], torch.Tensor]:
    """The deltas of rounds on top of each other, and the z's of all facts."""
    deltas: list[Delta] = []
    values = []
    for facts in rounds:
        result = NSE().edit(editable, [fact(i) for i in facts], replace(context, previous=tuple(deltas)))
        deltas.append(result.delta)
        values.append(result.values)
    return deltas, torch.cat(values)


def test_rounds_of_all_neurons_and_one_pass_are_sequential_memit_with_the_same_earlier_keys(
    precise: EditableModel, context: EditContext
) -> None:
    hp = replace(context.hyperparameters, max_passes=1, neuron_threshold=1.0)
    context = replace(context, hyperparameters=hp)
    rounds = [[0, 1], [2], [3, 4]]
    deltas, z = stream(precise, context, rounds)
    names = {layer: precise.parameter_name(layer) for layer in hp.layers}
    weights = {la: precise.base_weight(name).clone() for la, name in names.items()}
    keys = {la: torch.zeros(w.shape[1], 0, dtype=torch.float64) for la, w in weights.items()}
    for number, facts in enumerate(rounds, 1):
        new = oracle.memit_round(
            precise,
            weights,
            [fact(i) for i in facts],
            z=z[facts],
            contexts=CONTEXTS,
            hyperparameters=hp,
            second_moments={la: context.second_moments.of(precise.projection_name(la)) for la in hp.layers},
            previous_keys=keys,
        )
        keys = {la: torch.cat([keys[la], new[la]], dim=1) for la in hp.layers}
        composed = compose(precise, deltas[:number])
        for layer, name in names.items():
            change = weights[layer] - precise.base_weight(name)
            assert relative(precise.canonical(composed[name]) - precise.base_weight(name), change) < 1e-6


@pytest.mark.parametrize("threshold", [1.0, 0.6], ids=["all neurons", "some neurons"])
def test_a_later_rounds_low_rank_delta_solves_the_dense_normal_equations(
    precise: EditableModel, context: EditContext, threshold: float
) -> None:
    hp = replace(context.hyperparameters, layers=(1,), max_passes=1, neuron_threshold=threshold)
    context = replace(context, hyperparameters=hp)
    (first, second), z = stream(precise, context, [[4, 5], [0, 1, 2]])
    name = precise.parameter_name(1)
    with patched(precise, compose(precise, [first])):
        seen = measure(precise, [fact(i) for i in range(3)], CONTEXTS, key_layers=(1,), hidden_layer=1)
    chosen = select_neurons(seen.keys[1], threshold=threshold)
    k, p = seen.keys[1][chosen], first.layers[name].keys.double().T[chosen]
    c0 = context.second_moments.of(precise.projection_name(1)).double()[chosen][:, chosen]
    residual = z[2:].double().T - seen.hidden
    update = second.layers[name].product()
    gradient = update[:, chosen] @ (hp.mom2_update_weight * c0 + p @ p.T + k @ k.T) - residual @ k.T
    assert float(gradient.norm() / (residual @ k.T).norm()) < 1e-9
    assert int(update.count_nonzero()) == update.shape[0] * len(chosen)
    assert (len(chosen) < update.shape[1]) == (threshold < 1)


def test_the_weights_without_a_fact_are_those_without_its_rank_one_terms_one_for_each_pass(
    precise: EditableModel, context: EditContext
) -> None:
    context = replace(context, hyperparameters=replace(context.hyperparameters, alpha=0.0))
    deltas, _ = stream(precise, context, [[0, 1], [2, 3]])
    whole = compose(precise, deltas)
    less = compose(precise, [deltas[0].without({"case 1"}), deltas[1]])
    for name, layer in deltas[0].layers.items():
        own = (layer.case_index == 1).nonzero().squeeze(1).tolist()
        assert len(own) == context.hyperparameters.max_passes
        for column in own:
            assert torch.linalg.matrix_rank(torch.outer(layer.left[:, column], layer.right[column])) == 1
        terms = sum(torch.outer(layer.left[:, c], layer.right[c]) for c in own)
        dropped = precise.canonical(whole[name]) - precise.canonical(less[name])
        torch.testing.assert_close(dropped, terms, rtol=1e-9, atol=1e-12)
        assert float(dropped.norm()) > 0


def test_the_contributions_of_single_facts_add_up_to_the_delta(editable: EditableModel, context: EditContext) -> None:
    (delta,), _ = stream(editable, context, [[0, 1, 2]])
    alone = [delta.without(set(delta.case_ids) - {name}) for name in delta.case_ids]
    for name, layer in delta.layers.items():
        parts = [part.layers[name].product() for part in alone]
        torch.testing.assert_close(sum(parts[1:], parts[0]), layer.product(), rtol=1e-9, atol=1e-12)
        assert all(float(part.norm()) > 0 for part in parts)
