"""The delta: its algebra and its file."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from nse.delta import METADATA_KEY, WHOLE_ROUND, Delta, LayerDelta, Memory
from nse.errors import DeltaError


def layer(seed: int = 0, *, columns: tuple[int, ...] = (0, 1, 2, 0, 2), facts: int = 3) -> LayerDelta:
    random = torch.Generator().manual_seed(seed)
    return LayerDelta(
        torch.randn(4, len(columns), dtype=torch.float64, generator=random),
        torch.randn(len(columns), 6, dtype=torch.float64, generator=random),
        torch.tensor(columns, dtype=torch.int32),
        torch.randn(facts, 6, generator=random),
    )


@pytest.fixture
def delta() -> Delta:
    return Delta({"b.weight": layer(1), "a.weight": layer(2)}, ("x", "y", "ж"), "base" * 16, {"method": "nse"})


def assert_equal(one: Delta, two: Delta) -> None:
    assert (one.case_ids, one.base_digest, one.metadata) == (two.case_ids, two.base_digest, two.metadata)
    assert set(one.layers) == set(two.layers)
    for name in one.layers:
        for part in ("left", "right", "case_index", "keys", "further_index"):
            a, b = getattr(one.layers[name], part), getattr(two.layers[name], part)
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_a_delta_comes_back_from_disk_as_it_was(delta, tmp_path) -> None:
    delta.save(tmp_path / "new" / "delta.safetensors")
    loaded = Delta.load(tmp_path / "new" / "delta.safetensors")
    assert_equal(loaded, delta)
    assert loaded.to_bytes() == delta.to_bytes()


def test_bytes_depend_on_neither_the_order_of_layers_nor_the_layout_in_memory(delta) -> None:
    turned = {
        n: LayerDelta(la.left.T.contiguous().T, la.right, la.case_index, la.keys)
        for n, la in reversed(delta.layers.items())
    }
    assert Delta(turned, delta.case_ids, delta.base_digest, delta.metadata).to_bytes() == delta.to_bytes()


def test_the_product_is_the_sum_of_one_outer_product_per_column(delta) -> None:
    la = delta.layers["a.weight"]
    expected = sum(torch.outer(la.left[:, c], la.right[c]) for c in range(5))
    torch.testing.assert_close(la.product(), expected)


def test_without_a_fact_its_columns_and_keys_are_gone_and_the_rest_is_renumbered(delta) -> None:
    less = delta.without(["x"])
    assert less.case_ids == ("y", "ж")
    for name, la in less.layers.items():
        old = delta.layers[name]
        assert la.case_index.tolist() == [0, 1, 1]
        assert la.case_index.dtype == torch.int32
        assert torch.equal(la.left, old.left[:, [1, 2, 4]])
        assert torch.equal(la.right, old.right[[1, 2, 4]])
        assert torch.equal(la.keys, old.keys[1:])
    assert_equal(less.without(["ж"]), delta.without(["ж", "x"]))


def test_without_nobody_it_is_the_same(delta) -> None:
    assert_equal(delta.without([]), delta)


def test_without_everybody_nothing_is_left_and_that_can_be_saved(delta, tmp_path) -> None:
    empty = delta.without(delta.case_ids)
    assert all(not la.product().any() and la.product().shape == (4, 6) for la in empty.layers.values())
    empty.save(tmp_path / "d.safetensors")
    assert_equal(Delta.load(tmp_path / "d.safetensors"), empty)


def test_dropping_a_fact_that_is_not_there_is_refused(delta) -> None:
    with pytest.raises(DeltaError, match="holds no fact 'z'"):
        delta.without(["x", "z"])


def test_a_fact_takes_its_further_keys_with_it(tmp_path) -> None:
    one = layer()
    random, further = torch.randn(4, 6), torch.tensor([2, 0, 1, 2], dtype=torch.int32)
    with_more = replace(one, keys=torch.cat([one.keys, random]), further_index=further)
    delta = Delta({"a.weight": with_more}, ("x", "y", "z"), "base", {})
    delta.save(tmp_path / "d")
    loaded = Delta.load(tmp_path / "d")
    assert_equal(loaded, delta)
    less = loaded.without(["y"]).layers["a.weight"]
    assert torch.equal(less.keys, torch.cat([one.keys[[0, 2]], random[[0, 1, 3]]]))
    assert less.further_index.tolist() == [1, 0, 1]
    for wrong in ([2, 0, 1, 3], [2, 0, 1, -1]):
        broken = replace(with_more, further_index=torch.tensor(wrong, dtype=torch.int32))
        replace(delta, layers={"a.weight": broken}).save(tmp_path / "w")
        with pytest.raises(DeltaError, match="do not fit each other"):
            Delta.load(tmp_path / "w")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DeltaError, match=r"none\.safetensors cannot be read"):
        Delta.load(tmp_path / "none.safetensors")


def test_another_safetensors_file_is_refused(tmp_path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(DeltaError, match="is not a delta"):
        Delta.load(tmp_path / "w.safetensors")


def write(path, delta: Delta, head: object | None = None, **tensors: torch.Tensor | None) -> None:
    """Writes the delta's file with some of its parts replaced, or left out where None."""
    parts = {
        f"{n}.{p}": getattr(la, p) for n, la in delta.layers.items() for p in ("left", "right", "case_index", "keys")
    }
    parts |= {name.replace("__", "."): t for name, t in tensors.items()}
    default = {"schema": 1, "base_digest": delta.base_digest, "case_ids": list(delta.case_ids), "metadata": {}}
    text = head if isinstance(head, str) else json.dumps(default if head is None else head)
    save_file({n: t.contiguous() for n, t in parts.items() if t is not None}, path, {METADATA_KEY: text})


def test_a_file_of_a_newer_schema_asks_for_an_upgrade(delta, tmp_path) -> None:
    write(tmp_path / "d", delta, {"schema": 3, "base_digest": "", "case_ids": [], "metadata": {}})
    with pytest.raises(DeltaError, match="has schema 3, this program knows 2: upgrade"):
        Delta.load(tmp_path / "d")


@pytest.mark.parametrize(
    "head",
    [
        "{",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": "x", "base_digest": "", "case_ids": [], "metadata": {}}',
        '{"schema": 1, "base_digest": "", "case_ids": 3, "metadata": {}}',
        '{"schema": 1, "base_digest": null, "case_ids": [], "metadata": {}}',
    ],
)
def test_a_broken_header_is_refused(delta, tmp_path, head) -> None:
    write(tmp_path / "d", delta, head)
    with pytest.raises(DeltaError, match="broken header"):
        Delta.load(tmp_path / "d")


def test_a_missing_tensor_is_named(delta, tmp_path) -> None:
    write(tmp_path / "d", delta, a__weight__keys=None)
    with pytest.raises(DeltaError, match=r"lacks the tensor 'a\.weight\.keys'"):
        Delta.load(tmp_path / "d")


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("left", torch.zeros(4, 4, dtype=torch.float64)),
        ("left", torch.zeros(5, dtype=torch.float64)),
        ("right", torch.zeros(4, 6, dtype=torch.float64)),
        ("case_index", torch.tensor([0, 1, 2, 0, 3], dtype=torch.int32)),
        ("case_index", torch.tensor([0, 1, 2, 0, -2], dtype=torch.int32)),
        ("case_index", torch.tensor([0, 1], dtype=torch.int32)),
        ("further_index", torch.tensor([0], dtype=torch.int32)),
        ("keys", torch.zeros(2, 6)),
        ("keys", torch.zeros(3, 7)),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(delta, tmp_path, part, tensor) -> None:
    write(tmp_path / "good", delta)
    Delta.load(tmp_path / "good")
    write(tmp_path / "d", delta, **{f"b__weight__{part}": tensor})
    with pytest.raises(DeltaError, match=r"the tensors of b\.weight do not fit each other"):
        Delta.load(tmp_path / "d")


def test_one_flipped_byte_in_the_header_is_a_typed_error_or_still_a_delta(delta, tmp_path) -> None:
    data = delta.without(["x", "y"]).to_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for place in range(header):
        broken = bytearray(data)
        broken[place] ^= 0x15
        (tmp_path / "d").write_bytes(broken)
        try:
            Delta.load(tmp_path / "d")
        except DeltaError:
            refused += 1
    assert refused > header // 2


@pytest.fixture
def remembered() -> Delta:
    entries = {"key": torch.randn(4, 3), "radius": torch.rand(4)}
    memory = Memory(
        "grace",
        entries,
        torch.tensor([0, 2, 1, 2], dtype=torch.int32),
        {"shared": torch.ones(2)},
        {"layer": 1},
        tuple("abcd"),
    )
    return Delta({}, ("x", "y", "ж"), "base" * 16, {"method": "grace"}, memory)


def test_a_memory_comes_back_from_disk_as_it_was(remembered, tmp_path) -> None:
    remembered.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert loaded.to_bytes() == remembered.to_bytes()
    assert loaded.memory is not None
    assert (loaded.memory.settings, loaded.memory.texts) == ({"layer": 1}, tuple("abcd"))
    assert torch.equal(loaded.memory.entries["key"], remembered.memory.entries["key"])


def test_a_memory_loses_the_entries_of_a_fact_that_is_left_out(remembered) -> None:
    less = remembered.without(["x"])
    assert less.memory.texts == ("b", "c", "d")
    assert less.memory.case_index.tolist() == [1, 0, 1]
    assert torch.equal(less.memory.entries["radius"], remembered.memory.entries["radius"][1:])
    assert remembered.without(remembered.case_ids).memory is None


def test_a_memory_whose_tensors_do_not_fit_is_refused(remembered, tmp_path) -> None:
    remembered.memory.entries["radius"] = torch.rand(3)
    remembered.save(tmp_path / "delta.safetensors")
    with pytest.raises(DeltaError, match="the tensors of its memory do not fit"):
        Delta.load(tmp_path / "delta.safetensors")


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_an_update_of_a_whole_round_is_exact_and_cannot_be_divided(shape, tmp_path) -> None:
    update = torch.randn(shape)
    la = LayerDelta.of_whole_round(update, torch.randn(2, shape[1]))
    assert torch.equal(la.product(), update.double())
    assert set(la.case_index.tolist()) == {WHOLE_ROUND}
    delta = Delta({"a.weight": la}, ("x", "y"), "base" * 16, {"method": "ft"})
    delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert not loaded.separable
    with pytest.raises(DeltaError, match="ft wrote the 2 facts of a round together"):
        loaded.without(["x"])
    assert loaded.without(["x", "y"]).layers["a.weight"].case_index.numel() == 0
