"""Weights in force."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import load_model
from nse.delta import Delta, LayerDelta
from nse.errors import DeltaError
from nse.patch import base_in_force, compose, patched, version_digest
from tests.nse.conftest import digests


def delta_of(editable, seed: int, layer: int = 1, *, scale: float = 0.1) -> Delta:
    name = editable.parameter_name(layer)
    out, inner = editable.base_weight(name).shape
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(out, 2, dtype=torch.float64, generator=random) * scale
    right = torch.randn(2, inner, dtype=torch.float64, generator=random)
    layers = {name: LayerDelta(left, right, torch.tensor([0, 1], dtype=torch.int32), torch.zeros(2, inner))}
    return Delta(layers, (f"{seed} a", f"{seed} b"), editable.base_digest)


def test_composed_weights_are_base_plus_deltas_rounded_once(editable) -> None:
    deltas = [delta_of(editable, 1), delta_of(editable, 2), delta_of(editable, 3, layer=2)]
    weights = compose(editable, deltas)
    assert set(weights) == {editable.parameter_name(1), editable.parameter_name(2)}
    name = editable.parameter_name(1)
    total = editable.base_weight(name).double() + sum(d.layers[name].product() for d in deltas[:2])
    assert torch.equal(editable.canonical(weights[name]), total.float())
    assert weights[name].shape == editable.base_tensors[name].shape
    assert weights[name].is_contiguous()


def test_in_bfloat16_it_is_rounded_once_too_and_taken_back_to_the_bit(folder) -> None:
    model = load_model(folder, dtype=torch.bfloat16)
    name = model.parameter_name(1)
    deltas = [delta_of(model, seed, scale=1e-3) for seed in range(8)]
    weight = model.canonical(compose(model, deltas)[name])
    exact = model.base_weight(name).double() + sum(d.layers[name].product() for d in deltas)
    assert torch.equal(weight, exact.bfloat16())
    step_by_step = model.base_weight(name)
    for d in deltas:
        step_by_step = (step_by_step.double() + d.layers[name].product()).bfloat16()
    assert not torch.equal(weight, step_by_step)
    with patched(model, compose(model, deltas)):
        assert digests(model) != model.tensor_digests
    assert digests(model) == model.tensor_digests


def test_no_delta_is_the_base(editable) -> None:
    assert compose(editable, []) == {}
    assert version_digest(editable, {}) == editable.base_digest
    assert version_digest(editable, editable.base_tensors) == editable.base_digest


def test_the_version_is_the_digest_that_the_saved_model_has_as_a_base(editable, tmp_path) -> None:
    weights = compose(editable, [delta_of(editable, 1)])
    with patched(editable, weights):
        editable.model.save_pretrained(tmp_path)
    editable.tokenizer.save_pretrained(tmp_path)
    saved = load_model(tmp_path)
    assert saved.base_digest == version_digest(editable, weights) != editable.base_digest


def test_a_delta_whose_facts_are_all_dropped_is_the_base_even_where_a_weight_is_minus_zero(folder) -> None:
    model = load_model(folder)
    name = model.parameter_name(1)
    model.base_tensors[name][:, :2] = -0.0
    delta = delta_of(model, 1)
    assert version_digest(model, compose(model, [delta.without(delta.case_ids)])) == model.base_digest
    assert version_digest(model, compose(model, [delta])) != model.base_digest


def test_inside_the_weights_are_in_force_and_afterwards_the_old_tensors_are_back(editable) -> None:
    weights = compose(editable, [delta_of(editable, 1)])
    name = editable.parameter_name(1)
    pointer = editable.model.get_parameter(name).data_ptr()
    with patched(editable, weights):
        assert torch.equal(editable.model.get_parameter(name).data, weights[name])
        assert digests(editable) != editable.tensor_digests
    assert editable.model.get_parameter(name).data_ptr() == pointer
    assert digests(editable) == editable.tensor_digests


def test_they_are_back_after_an_exception_too(editable) -> None:
    def fail() -> None:
        editable.model.get_parameter(editable.parameter_name(1)).data = torch.zeros(1)  # as an editor sets one
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"), patched(editable, compose(editable, [delta_of(editable, 1)])):
        fail()
    assert digests(editable) == editable.tensor_digests


def test_an_unknown_weight_changes_nothing(editable) -> None:
    weights = {**compose(editable, [delta_of(editable, 1)]), "no.such.weight": torch.zeros(1)}
    with pytest.raises(AttributeError), patched(editable, weights):
        pytest.fail("weights that do not exist were put in force")
    assert digests(editable) == editable.tensor_digests


def test_the_base_can_be_put_in_force_inside_other_weights(editable) -> None:
    with patched(editable, compose(editable, [delta_of(editable, 1)])):
        inside = digests(editable)
        with base_in_force(editable):
            assert digests(editable) == editable.tensor_digests
        assert digests(editable) == inside != editable.tensor_digests


def test_what_is_in_force_does_not_change_what_is_composed(editable) -> None:
    one, two = delta_of(editable, 1), delta_of(editable, 2)
    outside = compose(editable, [two])
    with patched(editable, compose(editable, [one])):
        inside = compose(editable, [two])
        assert version_digest(editable, {}) == editable.base_digest
    assert all(torch.equal(outside[n], inside[n]) for n in outside)


def test_a_delta_for_another_base_is_refused(editable) -> None:
    with pytest.raises(DeltaError, match="delta was made for base 0000000000"):
        compose(editable, [replace(delta_of(editable, 1), base_digest="0" * 64)])


def test_a_delta_for_a_weight_that_does_not_exist_is_refused(editable) -> None:
    delta = delta_of(editable, 1)
    (layer,) = delta.layers.values()
    with pytest.raises(DeltaError, match=r"changes no\.such\.weight, which this model does not have"):
        compose(editable, [replace(delta, layers={"no.such.weight": layer})])


def test_a_delta_of_another_shape_is_refused(editable) -> None:
    delta = delta_of(editable, 1)
    name, layer = next(iter(delta.layers.items()))
    with pytest.raises(DeltaError, match="is for another shape than"):
        compose(editable, [replace(delta, layers={name: replace(layer, left=layer.left[1:])})])
