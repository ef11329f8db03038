"""Kept factors: what is computed once, what survives on disk, and what is not believed."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nse.errors import StatisticsError
from nse.factors import FactorStore, PastKeys, cholesky, empty_symmetric

WIDTH, FACTS = 40, 3


def moment(seed: int = 0) -> torch.Tensor:
    text = torch.randn(WIDTH, 4 * WIDTH, generator=torch.Generator().manual_seed(seed))
    return (text @ text.T / (4 * WIDTH)).contiguous()


def keys_of(seed: int, count: int = FACTS) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(100 + seed))


def expected(second_moment: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    lower = torch.linalg.cholesky(second_moment.double())
    return torch.linalg.solve_triangular(lower, keys.double().T, upper=False).T


def check(past: PastKeys) -> None:
    """The whitened keys are those of an independent computation, and so is the lower triangle of their products."""
    known = past.whitened()
    rows = expected(past.second_moment, torch.cat([torch.zeros(0, WIDTH), *past.blocks]))
    torch.testing.assert_close(known.rows, rows, rtol=1e-9, atol=1e-11)
    start = 0
    for block, product in zip(past.blocks, known.products, strict=True):
        end = start + len(block)
        torch.testing.assert_close(product, (rows @ rows.T)[start:end, :end], rtol=1e-9, atol=1e-11)
        start = end


def test_the_factor_gives_the_second_moment_and_whitening_is_taken_back() -> None:
    c0 = moment()
    factor = FactorStore().past(c0, []).whitened().factor
    assert torch.equal(factor.upper, factor.upper.triu())
    torch.testing.assert_close(factor.upper.T @ factor.upper, c0.double(), rtol=1e-12, atol=1e-12)
    solved = factor.unwhiten(factor.whiten(keys_of(0).double()))
    torch.testing.assert_close(solved, torch.linalg.solve(c0.double(), keys_of(0).double().T).T, rtol=1e-8, atol=1e-9)


def test_only_the_lower_triangle_counts() -> None:
    c0 = moment()
    bent = c0.clone()
    bent[0, 1:] += 1.0
    one, other = (FactorStore().past(m, []).whitened().factor.upper for m in (c0, bent))
    assert torch.equal(one, other)


def test_a_matrix_is_factorised_in_place() -> None:
    matrix = empty_symmetric(WIDTH, torch.device("cpu")).copy_(moment())
    assert cholesky(matrix).data_ptr() == matrix.data_ptr()
    torch.testing.assert_close(matrix, torch.linalg.cholesky(moment().double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_singular_or_broken_second_moment_has_no_factor(value: float) -> None:
    past = FactorStore().past(torch.full((WIDTH, WIDTH), value), [])
    with pytest.raises(StatisticsError, match="singular or not finite: run `nse stats`"):
        past.whitened()


def test_past_keys_are_whitened_delta_by_delta_and_more_come_behind() -> None:
    store, c0 = FactorStore(), moment()
    check(store.past(c0, []))
    for count in range(1, 6):
        check(store.past(c0, [keys_of(i, count=i + 1) for i in range(count)]))


def test_what_is_known_is_not_computed_again(monkeypatch) -> None:
    store, c0 = FactorStore(), moment()
    blocks = [keys_of(i) for i in range(3)]
    store.past(c0, blocks).whitened()
    solved = []
    whole = torch.linalg.solve_triangular

    def counted(a: torch.Tensor, b: torch.Tensor, **options: bool) -> torch.Tensor:
        solved.append(b.shape[1])
        return whole(a, b, **options)

    monkeypatch.setattr(torch.linalg, "solve_triangular", counted)
    monkeypatch.setattr("nse.factors.cholesky", lambda _: pytest.fail("factorised again"))
    store.past(c0, [*blocks, keys_of(3, count=7)]).whitened()
    assert solved == [7]
    store.past(c0.clone(), [block.clone() for block in blocks]).whitened()
    assert solved == [7]


def test_a_round_that_goes_takes_the_later_ones_with_it_and_they_come_back() -> None:
    store, c0 = FactorStore(), moment()
    blocks = [keys_of(i) for i in range(4)]
    before = store.past(c0, blocks).whitened().rows.clone()
    check(store.past(c0, [blocks[0], *blocks[2:]]))
    check(store.past(c0, [blocks[3]]))
    assert torch.equal(store.past(c0, blocks).whitened().rows, before)


def test_layers_do_not_mix() -> None:
    store = FactorStore()
    first, second = store.past(moment(0), [keys_of(0)]), store.past(moment(1), [keys_of(0)])
    check(first)
    check(second)
    check(first)


def test_facts_that_are_left_out_are_not_among_the_keys() -> None:
    blocks = [keys_of(0), keys_of(1)]
    kept = torch.tensor([True, False, True, True, True, False])
    past = FactorStore().past(moment(), blocks, kept)
    assert torch.equal(past.keys(), torch.cat(blocks)[kept].double().T)
    assert FactorStore().past(moment(), []).keys().shape == (WIDTH, 0)


def test_it_pays_for_wide_layers_and_few_facts() -> None:
    c0 = torch.zeros(1, 1).expand(14336, 14336)

    def pays(past: int, new: int, width: int = 14336) -> bool:
        blocks = [torch.zeros(1, 1).expand(past, width)]
        return FactorStore().past(c0[:width, :width], blocks).pays(0, new)

    assert pays(0, 1)
    assert pays(2000, 100)
    assert not pays(20_000, 100)  # more facts than neurons
    assert not pays(2000, 9000)
    assert not pays(100, 20, width=2048)  # so small that it does not matter


def test_a_later_process_reads_what_an_earlier_one_kept(tmp_path: Path, monkeypatch) -> None:
    blocks = [keys_of(0), keys_of(1)]
    first = FactorStore(tmp_path).past(moment(), blocks).whitened()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 3
    monkeypatch.setattr("nse.factors.cholesky", lambda _: pytest.fail("factorised again"))
    monkeypatch.setattr(torch.linalg, "solve_triangular", lambda *_, **__: pytest.fail("whitened again"))
    again = FactorStore(tmp_path).past(moment(), blocks).whitened()
    assert torch.equal(again.factor.upper, first.factor.upper)
    assert torch.equal(again.rows, first.rows)
    assert all(torch.equal(a, b) for a, b in zip(again.products, first.products, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == files


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def narrowed(path: Path) -> None:
    save_file({name: t.float() for name, t in load_file(path).items()}, path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flipped, shortened, narrowed, emptied])
def test_a_damaged_file_is_made_again(damage, tmp_path: Path, caplog) -> None:
    blocks = [keys_of(0), keys_of(1)]
    before = FactorStore(tmp_path).past(moment(), blocks).whitened().rows.clone()
    bytes_before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for path in list(tmp_path.iterdir()):
        damage(path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(FactorStore(tmp_path).past(moment(), blocks).whitened().rows, before)
    assert caplog.text.count("it is made again") == 3
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == bytes_before


def test_a_file_of_another_layer_is_not_taken_for_this_one(tmp_path: Path) -> None:
    check(FactorStore(tmp_path).past(moment(0), [keys_of(0)]))
    check(FactorStore(tmp_path).past(moment(1), [keys_of(0)]))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        check(FactorStore(tmp_path / "file").past(moment(), [keys_of(0)]))
    assert "it will be made again" in caplog.text
