"""What the locate-then-edit methods are to each other, on whole rounds in float64: one is the other under a condition."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import EditableModel
from nse.delta import Delta
from nse.editors import EditContext, EditResult, get_editor
from nse.keys import measure
from nse.patch import compose, patched
from nse.values import values_for
from tests.nse.conftest import CONTEXTS, fact


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def of(context: EditContext, **changes) -> EditContext:
    return replace(context, hyperparameters=replace(context.hyperparameters, **changes))


def edited(method: str, editable: EditableModel, facts: list[int], context: EditContext) -> EditResult:
    return get_editor(method).edit(editable, [fact(i) for i in facts], context)


@pytest.fixture
def first(precise: EditableModel, context: EditContext) -> Delta:
    """An earlier round."""
    return edited("nse", precise, [4, 5], context).delta


def assert_the_same(one: EditResult, other: EditResult, tolerance: float = 1e-9) -> None:
    assert set(one.delta.layers) == set(other.delta.layers)
    torch.testing.assert_close(one.values, other.values, rtol=1e-9, atol=1e-12)
    for name, layer in one.delta.layers.items():
        assert relative(layer.product(), other.delta.layers[name].product()) < tolerance


@pytest.mark.parametrize("rewind", [True, False])
def test_nse_of_all_neurons_one_pass_and_single_zs_is_sequential_memit(precise, context, first, rewind) -> None:
    context = replace(of(context, own={"rewind": rewind}), previous=(first,))
    plain = of(context, neuron_threshold=1.0, max_passes=1, joint_values=False)
    assert_the_same(edited("nse", precise, [0, 1], plain), edited("memit_seq", precise, [0, 1], context))


def test_memit_is_sequential_memit_in_a_first_round_and_not_in_a_second(precise, context, first) -> None:
    assert_the_same(edited("memit", precise, [0, 1], context), edited("memit_seq", precise, [0, 1], context))
    later = replace(context, previous=(first,))
    name = precise.parameter_name(1)
    one, two = (edited(method, precise, [0, 1], later).delta.layers[name] for method in ("memit", "memit_seq"))
    assert relative(one.product(), two.product()) > 1e-3


def test_sequential_memit_without_weight_on_earlier_keys_is_memit(precise, context, first) -> None:
    later = of(replace(context, previous=(first,)), previous_keys_weight=0.0)
    assert_the_same(edited("memit", precise, [0, 1], later), edited("memit_seq", precise, [0, 1], later))


def test_z_is_found_under_the_weights_in_force_unless_it_is_rewound(precise, context, first) -> None:
    later = replace(context, previous=(first,))
    rewound = of(later, own={"rewind": True})
    base = values_for(precise, [fact(0)], contexts=CONTEXTS, hyperparameters=context.hyperparameters)
    assert torch.equal(edited("memit", precise, [0], rewound).values, base)
    with patched(precise, compose(precise, [first])):
        hidden = measure(precise, [fact(0)], CONTEXTS, key_layers=(2,), hidden_layer=2).hidden
    found = edited("memit", precise, [0], later)
    assert relative(found.values, base) > 1e-3
    shift = found.values.double().T - hidden  # z = h + delta with the h of the weights in force
    assert float(shift.norm() / hidden.norm()) <= context.hyperparameters.clamp_norm_factor + 1e-6


def test_rome_is_the_limit_of_memit_for_one_fact_and_layer_as_c0_loses_its_weight(precise, context) -> None:
    one = of(context, layers=(1,))
    rome = edited("rome", precise, [0], one)
    errors = [
        relative(
            edited("memit", precise, [0], of(one, mom2_update_weight=weight)).delta.layers[name].product(),
            rome.delta.layers[name].product(),
        )
        for name in rome.delta.layers
        for weight in (1.0, 1e-3, 1e-6)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-5


def test_rome_meets_the_key_exactly_and_no_other_such_update_disturbs_c0_less(precise, context) -> None:
    result = edited("rome", precise, [0], of(context, layers=(1,)))
    (layer,) = result.delta.layers.values()
    seen = measure(precise, [fact(0)], CONTEXTS, key_layers=(1,), hidden_layer=1)
    residual = result.values.double().T - seen.hidden
    update = layer.product()
    assert relative(update @ seen.keys[1], residual) < 1e-9
    assert torch.linalg.matrix_rank(update) == 1
    c0 = context.second_moments.of(precise.projection_name(1)).double()
    # stationary under all that keeps the key's image: the gradient has no part beside the key's direction
    gradient, key = update @ c0, seen.keys[1] / seen.keys[1].norm()
    assert float((gradient - gradient @ key @ key.T).norm() / gradient.norm()) < 1e-6


def test_rome_writes_each_request_on_the_weights_that_the_one_before_left(precise, context) -> None:
    context = of(context, layers=(1,))
    together = edited("rome", precise, [0, 1], context)
    one = edited("rome", precise, [0], context)
    two = edited("rome", precise, [1], replace(context, previous=(one.delta,)))
    (name,) = together.delta.layers
    summed = one.delta.layers[name].product() + two.delta.layers[name].product()
    assert relative(together.delta.layers[name].product(), summed) < 1e-6
    alone = edited("rome", precise, [1], context).delta.layers[name].product()
    assert relative(alone, two.delta.layers[name].product()) > 1e-3


def test_alphaedit_with_every_direction_free_is_the_ridge_solve_with_earlier_keys(precise, context, first) -> None:
    own = {"nullspace_threshold": 1e9, "L2": 3.0}
    result = edited("alphaedit", precise, [0, 1], replace(of(context, layers=(1,), own=own), previous=(first,)))
    (name,) = result.delta.layers
    with patched(precise, compose(precise, [first])):
        seen = measure(precise, [fact(0), fact(1)], CONTEXTS, key_layers=(1,), hidden_layer=1)
    k, p = seen.keys[1], first.layers[name].keys.double().T
    residual = result.values.double().T - seen.hidden
    update = result.delta.layers[name].product()
    system = p @ p.T + k @ k.T + 3.0 * torch.eye(len(k), dtype=torch.float64)
    assert relative(update @ system, residual @ k.T) < 1e-9


def test_alphaedit_is_its_published_formula_and_changes_nothing_at_the_directions_that_stand(
    precise, context, first
) -> None:
    c0 = context.second_moments.of(precise.projection_name(1)).double()
    values, vectors = torch.linalg.eigh(c0)
    threshold = float((values[20] + values[21]) / 2)
    own = {"nullspace_threshold": threshold, "L2": 0.5}
    result = edited("alphaedit", precise, [0, 1], replace(of(context, layers=(1,), own=own), previous=(first,)))
    (name,) = result.delta.layers
    with patched(precise, compose(precise, [first])):
        seen = measure(precise, [fact(0), fact(1)], CONTEXTS, key_layers=(1,), hidden_layer=1)
    k, kp = seen.keys[1], first.layers[name].keys.double().T
    p = vectors[:, :21] @ vectors[:, :21].T
    residual = result.values.double().T - seen.hidden
    system = kp @ kp.T @ p + k @ k.T @ p + 0.5 * torch.eye(len(k), dtype=torch.float64)
    update = result.delta.layers[name].product()
    assert relative(update, residual @ k.T @ p @ torch.linalg.inv(system)) < 1e-9
    assert float((update @ vectors[:, 21:]).norm() / update.norm()) < 1e-9
    share = of(context, layers=(1,), own={"null_share": 21 / len(values), "L2": 0.5})
    assert_the_same(result, edited("alphaedit", precise, [0, 1], replace(share, previous=(first,))))
