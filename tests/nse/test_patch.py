"""Weights in force."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import load_model
from nse.delta import Delta, LayerDelta
from nse.errors import DeltaError
from nse.patch import BLOCK, SnapshotStore, base_in_force, compose, patched, summed, version_digest
from tests.nse.conftest import digests


def delta_of(editable, seed: int, layer: int = 1, *, scale: float = 0.1, facts: int = 2) -> Delta:
    name = editable.parameter_name(layer)
    out, inner = editable.base_weight(name).shape
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(out, facts, dtype=torch.float64, generator=random) * scale
    right = torch.randn(facts, inner, dtype=torch.float64, generator=random)
    layers = {name: LayerDelta(left, right, torch.arange(facts, dtype=torch.int32), torch.zeros(facts, inner))}
    return Delta(layers, tuple(f"{seed} {fact}" for fact in range(facts)), editable.base_digest)


def test_composed_weights_are_base_plus_deltas_rounded_once(editable) -> None:
    deltas = [delta_of(editable, 1), delta_of(editable, 2), delta_of(editable, 3, layer=2)]
    weights = compose(editable, deltas)
    assert set(weights) == {editable.parameter_name(1), editable.parameter_name(2)}
    name = editable.parameter_name(1)
    total = editable.base_weight(name).double() + sum(d.layers[name].product() for d in deltas[:2])
    assert torch.equal(editable.canonical(weights[name]), total.float())
    assert weights[name].dtype == editable.base_tensors[name].dtype
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


def stream(editable, rounds: int) -> list[Delta]:
    """Rounds of unlike sizes on two layers, some with more columns than a block, one of which nothing is left."""
    sizes = (BLOCK // 3, 1, BLOCK + 5, BLOCK // 2)
    deltas = [delta_of(editable, i, 1 + (i % 5 == 4), facts=sizes[i % 4], scale=0.01) for i in range(rounds)]
    deltas[3] = deltas[3].without(deltas[3].case_ids)
    return deltas


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_sum_is_that_of_all_columns(editable) -> None:
    deltas = stream(editable, 11)
    for layer in (1, 2):
        name = editable.parameter_name(layer)
        expected = sum(d.layers[name].product() for d in deltas if name in d.layers)
        torch.testing.assert_close(summed(name, deltas), expected, rtol=1e-12, atol=1e-13)
    assert summed(editable.parameter_name(3), deltas) is None


def test_the_order_of_the_deltas_is_part_of_the_sum(editable) -> None:
    deltas = stream(editable, 11)
    name = editable.parameter_name(1)
    forward, backward = summed(name, deltas), summed(name, deltas[::-1])
    assert not torch.equal(forward, backward)
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-12)


def test_the_last_round_is_taken_back_to_the_bit_wherever_it_ended(editable) -> None:
    deltas, versions = stream(editable, 11), []
    for count in range(len(deltas) + 1):
        versions.append(version_digest(editable, compose(editable, deltas[:count])))
    assert versions[3] == versions[4]  # the round of which nothing is left
    assert len(set(versions)) == len(versions) - 1
    for count in range(len(deltas)):
        shortened = [*deltas[:count], deltas[count].without(deltas[count].case_ids)]
        assert version_digest(editable, compose(editable, shortened)) == versions[count]


def test_deltas_are_read_from_disk_and_from_any_iterable(editable, tmp_path) -> None:
    deltas = stream(editable, 6)
    for number, delta in enumerate(deltas):
        delta.save(tmp_path / f"{number}.safetensors")
    stored = (Delta.load(tmp_path / f"{number}.safetensors") for number in range(6))
    assert same(compose(editable, stored), compose(editable, deltas))


def test_with_snapshots_every_version_is_the_same_to_the_bit(editable, tmp_path) -> None:
    deltas, identities = stream(editable, 12), [f"delta {i}" for i in range(12)]
    plain = [compose(editable, deltas[:count]) for count in range(13)]
    store = SnapshotStore(tmp_path, every=2)
    for count in (12, 5, 12, *range(13), 11):
        found = compose(editable, deltas[:count], identities=identities[:count], snapshots=store)
        assert same(found, plain[count])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_later_version_starts_from_a_snapshot_and_reads_nothing_before_it(editable, tmp_path) -> None:
    deltas, store = [delta_of(editable, i, facts=BLOCK) for i in range(9)], SnapshotStore(tmp_path, every=4)
    identities = [f"delta {i}" for i in range(9)]
    expected = compose(editable, deltas)
    compose(editable, deltas, identities=identities, snapshots=store)
    assert len(list(tmp_path.iterdir())) == 2  # after 4 and after 8
    name = editable.parameter_name(1)
    lost = [
        replace(d, layers={name: replace(d.layers[name], left=d.layers[name].left * torch.nan)}) for d in deltas[:8]
    ]
    steps = []
    found = compose(
        editable,
        [*lost, deltas[8]],
        identities=identities,
        snapshots=store,
        progress=lambda stage, done, total: steps.append((stage, done, total)),
    )
    assert same(found, expected)
    assert steps == [(f"compose {name}", 9, 9)]


def test_a_snapshot_stands_for_its_list_of_deltas_and_no_other(editable, tmp_path) -> None:
    deltas, store = [delta_of(editable, i, facts=BLOCK) for i in range(5)], SnapshotStore(tmp_path, every=2)
    compose(editable, deltas, identities=list("abcde"), snapshots=store)
    other = [deltas[0].without(deltas[0].case_ids[:1]), *deltas[1:]]
    found = compose(editable, other, identities=["a less one", *"bcde"], snapshots=store)
    assert same(found, compose(editable, other))
    with pytest.raises(DeltaError, match="5 deltas have 4 identities"):
        compose(editable, deltas, identities=list("abcd"), snapshots=store)


@pytest.mark.parametrize("damage", ["flipped", "shortened", "of another shape"])
def test_a_damaged_snapshot_is_left_aside_and_made_again(damage, editable, tmp_path, caplog) -> None:
    deltas, store = [delta_of(editable, i, facts=BLOCK) for i in range(3)], SnapshotStore(tmp_path, every=2)
    expected = compose(editable, deltas, identities=list("abc"), snapshots=store)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "of another shape":
        store.put(path.stem, torch.ones(2, 2, dtype=torch.float64))
    else:
        path.write_bytes(whole[:-8] if damage == "shortened" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with caplog.at_level("WARNING"):
        assert same(compose(editable, deltas, identities=list("abc"), snapshots=store), expected)
    assert "it is made again" in caplog.text
    assert path.read_bytes() == whole


def test_snapshots_that_cannot_be_kept_cost_only_time(editable, tmp_path, caplog) -> None:
    deltas = [delta_of(editable, i, facts=BLOCK) for i in range(3)]
    (tmp_path / "file").write_text("no folder")
    store = SnapshotStore(tmp_path / "file", every=2)
    with caplog.at_level("WARNING"):
        assert same(compose(editable, deltas, identities=list("abc"), snapshots=store), compose(editable, deltas))
    assert "it will be made again" in caplog.text


def test_a_sum_that_is_known_is_not_made_again(editable) -> None:
    deltas, name = stream(editable, 6), editable.parameter_name(1)
    assert same(compose(editable, deltas, known={name: summed(name, deltas)}), compose(editable, deltas))
    shape = tuple(editable.base_weight(name).shape)
    weights = compose(editable, deltas, known={name: torch.zeros(shape, dtype=torch.float64)})
    assert torch.equal(weights[name], editable.base_tensors[name])
