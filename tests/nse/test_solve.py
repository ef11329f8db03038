"""The closed form against dense algebra."""

from pathlib import Path

import pytest
import torch

from nse.errors import StatisticsError
from nse.factors import FactorStore
from nse.solve import solve_update

D_IN, D_OUT, FACTS, EARLIER = 24, 10, 5, 7


@pytest.fixture
def system() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    text = normal(D_IN, 400)
    return {
        "keys": normal(D_IN, FACTS),
        "residual": normal(D_OUT, FACTS),
        "second_moment": text @ text.T / 400,
        "previous_keys": normal(D_IN, EARLIER),
    }


def solved(system: dict[str, torch.Tensor], neurons: torch.Tensor | None = None, **settings: float) -> torch.Tensor:
    matrices = {k: v for k, v in system.items() if k not in ("keys", "residual")}
    settings = {"mom2_update_weight": 3.0} | settings
    left, right = solve_update(
        system["keys"],
        system["residual"],
        neurons=torch.arange(D_IN) if neurons is None else neurons,
        **matrices,
        **settings,
    )
    assert left.shape == (D_OUT, FACTS)
    assert right.shape == (FACTS, D_IN)
    assert left.dtype == right.dtype == torch.float64
    return left @ right


def test_the_low_rank_update_is_the_minimum_of_the_least_squares_problem(system) -> None:
    k, r, c0, p = system["keys"], system["residual"], system["second_moment"], system["previous_keys"]
    # stack lambda C0 = L L^T, K_p and K as data whose targets are 0, 0 and R, and let lstsq find the update
    data = torch.cat([torch.linalg.cholesky(3.0 * c0), p, k], dim=1)
    targets = torch.cat([torch.zeros(D_OUT, D_IN + EARLIER, dtype=torch.float64), r], dim=1)
    expected = torch.linalg.lstsq(data.T, targets.T).solution.T
    torch.testing.assert_close(solved(system), expected, rtol=1e-9, atol=1e-12)


def test_chosen_neurons_get_the_solution_of_their_own_system_and_the_others_nothing(system) -> None:
    chosen = torch.tensor([1, 4, 5, 9, 20])
    others = [i for i in range(D_IN) if i not in chosen.tolist()]
    k, p, c0 = system["keys"][chosen], system["previous_keys"][chosen], system["second_moment"][chosen][:, chosen]
    update = solved(system, neurons=chosen)
    expected = system["residual"] @ torch.linalg.solve(3.0 * c0 + p @ p.T + k @ k.T, k).T
    torch.testing.assert_close(update[:, chosen], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(update[:, others], torch.zeros(D_OUT, len(others), dtype=torch.float64))


def test_two_columns_of_one_fact_are_as_strong_as_its_key_is_heavy(system) -> None:
    doubled = {**system, "previous_keys": torch.cat([system["previous_keys"]] * 4, dim=1)}
    torch.testing.assert_close(solved(system, previous_keys_weight=4.0), solved(doubled))


def test_the_weight_of_zero_forgets_the_earlier_keys(system) -> None:
    alone = {**system, "previous_keys": torch.zeros(D_IN, 0, dtype=torch.float64)}
    torch.testing.assert_close(solved(system, previous_keys_weight=0.0), solved(alone))
    assert not torch.allclose(solved(system), solved(alone))


def test_a_key_that_is_kept_counts_as_an_earlier_one_of_its_weight(system) -> None:
    alone = {**system, "previous_keys": torch.zeros(D_IN, 0, dtype=torch.float64)}
    kept = solved({**alone, "kept": 2.0 * system["previous_keys"]})
    torch.testing.assert_close(kept, solved(system, previous_keys_weight=4.0))
    beside = solved({**system, "kept": 2.0 * system["previous_keys"]}, previous_keys_weight=0.0)
    torch.testing.assert_close(beside, kept)


def test_the_larger_lambda_is_the_smaller_the_update(system) -> None:
    norms = [float(solved(system, mom2_update_weight=w).norm()) for w in (0.01, 1.0, 100.0)]
    assert norms[0] > norms[1] > norms[2]


def test_with_no_protection_to_speak_of_the_residual_is_written_whole(system) -> None:
    alone = {**system, "previous_keys": torch.zeros(D_IN, 0, dtype=torch.float64)}
    reached = solved(alone, mom2_update_weight=1e-9) @ system["keys"]
    torch.testing.assert_close(reached, system["residual"], rtol=1e-5, atol=1e-6)


def test_accumulated_keys_make_rounds_equal_to_one_shot_when_residuals_are_what_is_left(system) -> None:
    # arXiv 2605.26670: writing the remaining residual with all earlier keys is the one-shot solution, round by round
    k, r, none = system["keys"], system["residual"], torch.zeros(D_IN, 0, dtype=torch.float64)
    once = solved({**system, "previous_keys": none})
    first_k, first_r = k[:, :2], r[:, :2]
    common = {"second_moment": system["second_moment"], "neurons": torch.arange(D_IN), "mom2_update_weight": 3.0}
    left, right = solve_update(first_k, first_r, previous_keys=none, **common)
    second_k, second_r = k[:, 2:], r[:, 2:] - (left @ right) @ k[:, 2:]
    more_left, more_right = solve_update(second_k, second_r, previous_keys=first_k, **common)
    torch.testing.assert_close(left @ right + more_left @ more_right, once, rtol=1e-9, atol=1e-12)


def test_a_second_moment_of_another_shape_is_refused(system) -> None:
    with pytest.raises(StatisticsError, match=r"second moment is \(25, 25\), keys need \(24, 24\)"):
        solved({**system, "second_moment": torch.eye(25)})


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_singular_or_broken_second_moment_is_refused(system, value) -> None:
    with pytest.raises(StatisticsError, match="singular or not finite"):
        solved({**system, "second_moment": torch.full((D_IN, D_IN), value)})


def conditioned(width: int, exponent: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A second moment whose eigenvalues fall by 10^exponent, and half of it: half @ half.T."""
    random = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=random))
    half = turn * torch.logspace(2, 2 - exponent, width, dtype=torch.float64).sqrt()
    return half @ half.T, half


class Case:
    """A stream in the middle: past facts by delta, facts of the round that are done, and new ones, all drawn from C0."""

    def __init__(self, exponent: int, *, width: int = 120, deltas: int = 4, new: int = 6) -> None:
        self.second_moment, half = conditioned(width, exponent)
        random = torch.Generator().manual_seed(2)

        def keys(count: int) -> torch.Tensor:
            return half @ torch.randn(width, count, dtype=torch.float64, generator=random)

        self.blocks = [keys(i + 1).T.float().contiguous() for i in range(deltas)]
        self.settled, self.keys = keys(2), keys(new)
        self.residual = torch.randn(D_OUT, new, dtype=torch.float64, generator=random)
        self.neurons = torch.arange(width)
        self.kept: torch.Tensor | None = None

    def dense(self, kept: torch.Tensor | None = None, **settings: float) -> torch.Tensor:
        past = torch.cat(self.blocks).double()
        past = past if kept is None else past[kept]
        return self._solve(torch.cat([past.T, self.settled], dim=1), None, settings)

    def fast(self, store: FactorStore, kept: torch.Tensor | None = None, **settings: float) -> torch.Tensor:
        return self._solve(self.settled, store.past(self.second_moment, self.blocks, kept), settings)

    def _solve(self, previous: torch.Tensor, past, settings: dict[str, float]) -> torch.Tensor:
        left, right = solve_update(
            self.keys,
            self.residual,
            second_moment=self.second_moment,
            previous_keys=previous,
            neurons=self.neurons,
            kept=self.kept,
            past=past,
            **{"mom2_update_weight": 15000.0} | settings,
        )
        assert torch.equal(left, self.residual)
        assert right.shape == (self.keys.shape[1], len(self.second_moment))
        return right


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture
def no_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense way fails the test."""
    monkeypatch.setattr("nse.solve._dense", lambda *_: pytest.fail("the dense way was taken"))


@pytest.mark.parametrize(("exponent", "limit"), [(4, 1e-8), (6, 1e-8), (9, 1e-6)])
@pytest.mark.parametrize("settings", [{}, {"mom2_update_weight": 0.5}, {"previous_keys_weight": 30.0}])
def test_woodbury_with_a_kept_factor_is_the_dense_solution(exponent, limit, settings, request) -> None:
    case = Case(exponent)
    expected = case.dense(**settings)
    request.getfixturevalue("no_dense")
    assert 0 < relative(case.fast(FactorStore(smallest_width=1), **settings), expected) < limit


def test_a_key_that_is_kept_counts_with_a_kept_factor_too(request) -> None:
    case = Case(4)
    case.kept = 3.0 * case.settled.flip(0)
    expected = case.dense(previous_keys_weight=5.0)
    request.getfixturevalue("no_dense")
    found = case.fast(FactorStore(smallest_width=1), previous_keys_weight=5.0)
    assert relative(found, expected) < 1e-8
    case.kept = None
    assert relative(found, case.fast(FactorStore(smallest_width=1), previous_keys_weight=5.0)) > 1e-5


def test_facts_that_are_written_anew_do_not_count_as_earlier_ones(request) -> None:
    case = Case(4)
    kept = torch.tensor([False, True, True, False, False, False, True, True, True, False])
    expected, everything = case.dense(kept), case.dense()
    request.getfixturevalue("no_dense")
    found = case.fast(FactorStore(smallest_width=1), kept)
    assert relative(found, expected) < 1e-8
    assert relative(found, everything) > 1e-5


def test_the_weight_of_zero_forgets_the_earlier_keys_there_too(no_dense) -> None:
    case = Case(4)
    alone = case.fast(FactorStore(smallest_width=1), previous_keys_weight=0.0)
    case.blocks, case.settled = [], case.settled[:, :0]
    assert relative(alone, case.fast(FactorStore(smallest_width=1))) < 1e-10


def test_rounds_of_a_stream_share_a_store_and_the_same_round_gives_the_same_bytes(tmp_path: Path, no_dense) -> None:
    case, store = Case(6), FactorStore(tmp_path, smallest_width=1)
    blocks, case.blocks = case.blocks, case.blocks[:2]
    first = case.fast(store)
    case.blocks = blocks
    grown = case.fast(store)
    assert torch.equal(case.fast(FactorStore(tmp_path, smallest_width=1)), grown)  # read from disk
    assert torch.equal(case.fast(FactorStore(tmp_path / "other", smallest_width=1)), grown)  # made at once
    case.blocks = blocks[:2]
    assert torch.equal(case.fast(store), first)


def test_neuron_subsets_narrow_layers_and_many_facts_are_solved_densely(monkeypatch) -> None:
    monkeypatch.setattr("nse.solve._woodbury", lambda *_: pytest.fail("the kept factor was taken"))
    case = Case(4)
    assert relative(case.fast(FactorStore()), case.dense()) < 1e-12  # 120 neurons: narrow
    many = Case(4, width=60, deltas=11)  # 66 past facts, 60 neurons
    assert relative(many.fast(FactorStore(smallest_width=1)), many.dense()) < 1e-12
    case.neurons = torch.arange(0, 120, 2)
    found = case.fast(FactorStore(smallest_width=1))
    assert relative(found, case.dense()) < 1e-12
    assert found.count_nonzero() == found.numel() // 2


def test_a_factor_that_does_not_fit_is_found_out_and_the_dense_solution_given(caplog) -> None:
    case, store = Case(4), FactorStore(smallest_width=1)
    right = case.fast(store)
    case.second_moment[60:, 60:] *= 1.01  # behind the store's back
    with caplog.at_level("WARNING"):
        found = case.fast(store)
    assert "the dense solve is taken" in caplog.text
    assert relative(found, case.dense()) < 1e-12
    assert relative(found, right) > 1e-4


def test_a_second_moment_that_is_symmetric_to_rounding_only_gives_both_ways_the_same_equations(
    no_dense, request
) -> None:
    case = Case(9)
    expected = case.fast(FactorStore(smallest_width=1))
    case.second_moment = case.second_moment + 1e-7 * torch.ones(120, 120, dtype=torch.float64).triu(1)
    assert torch.equal(case.fast(FactorStore(smallest_width=1)), expected)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_singular_or_broken_second_moment_is_refused_with_a_store_too(value) -> None:
    case = Case(4)
    case.second_moment = torch.full((120, 120), value)
    with pytest.raises(StatisticsError, match="singular or not finite"):
        case.fast(FactorStore(smallest_width=1))
