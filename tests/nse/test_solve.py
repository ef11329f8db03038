"""The closed form against dense algebra."""

import pytest
import torch

from nse.errors import StatisticsError
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


def test_woodbury_gives_the_same_as_the_direct_solve(system) -> None:
    k, c0 = system["keys"], 3.0 * system["second_moment"]
    u = torch.cat([system["previous_keys"], k], dim=1)
    plain = torch.linalg.solve(c0, torch.cat([k, u], dim=1))
    c_k, c_u = plain[:, :FACTS], plain[:, FACTS:]
    small = torch.eye(u.shape[1], dtype=torch.float64) + u.T @ c_u
    inverse_k = c_k - c_u @ torch.linalg.solve(small, u.T @ c_k)
    torch.testing.assert_close(solved(system), system["residual"] @ inverse_k.T, rtol=1e-9, atol=1e-12)


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
