"""The closed-form update of one layer, by dense algebra or, with a kept factor of C0, by algebra as small as there are facts.

C0 is a penalty (MEMIT, NSE), or its null space a bound (AlphaEdit).

The dtype policy of the package: solves and statistics in float64, rounded once to the model's dtype by `nse.patch`.
"""

import logging

import torch

from nse.errors import StatisticsError
from nse.factors import PastKeys, cholesky, empty_symmetric, solved

TOLERANCE = 1e-8
"""Largest relative residual of the fast solve; a larger one means that the factor does not fit, and the dense solve is taken."""

CHECKED_ROWS, CHECKED_SUMS = 64, 4

logger = logging.getLogger(__name__)


def solve_update(
    keys: torch.Tensor,
    residual: torch.Tensor,
    *,
    second_moment: torch.Tensor,
    previous_keys: torch.Tensor,
    neurons: torch.Tensor,
    mom2_update_weight: float,
    previous_keys_weight: float = 1.0,
    ridge: float = 0.0,
    kept: torch.Tensor | None = None,
    past: PastKeys | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solves the normal equations of one layer's update on the chosen neurons.

    Delta W[:, S] = R A^T with A = (lambda C0[S, S] + ridge I + w K_p[S] K_p[S]^T + K[S] K[S]^T)^-1 K[S], and zero elsewhere.
    It is a sum of one rank-1 term per fact: column j of `left` and row j of `right` are fact j's. Columns of `kept` stand
    beside K_p.

    Where `past` is given, all neurons are chosen, there is no ridge and it pays, C0's kept factor is used: no (d_mlp, d_mlp)
    matrix but that factor is then touched. Of C0 the lower triangle counts, on both ways.

    Args:
        keys: K (d_mlp, n) of the facts to write.
        residual: R (d_out, n), the share of |z - h| that this layer shall add.
        second_moment: C0 (d_mlp, d_mlp) = E[k k^T] of the base model, on the device of the keys.
        previous_keys: K_p (d_mlp, m) of facts written before, those of `past` not among them; m may be 0.
        neurons: S, ascending indices (s,).
        mom2_update_weight: lambda.
        previous_keys_weight: w, 1 in the paper.
        ridge: Weight of the identity, 0 in the paper. The kept factor is of C0 alone, so the dense way is taken with it.
        kept: Further keys (d_mlp, s) where nothing shall change, each times the root of its weight; none in the paper.
        past: Further columns of K_p that a `FactorStore` of this C0 keeps in whitened coordinates.

    Returns:
        left (d_out, n) and right (n, d_mlp), float64, on the device of the keys.

    Raises:
        StatisticsError: If C0 has another shape than the keys ask for, or is singular (too little text) or not finite.

    References:
        arXiv 2410.04045, closed-form solution; MEMIT (arXiv 2210.07229), equation 14; the ridge is ENCORE's.
    """
    width = keys.shape[0]
    if tuple(second_moment.shape) != (width, width):
        raise StatisticsError(
            f"second moment is {tuple(second_moment.shape)}, keys need {(width, width)}: run `nse stats` for this model"
        )
    k, weights = keys.double(), (mom2_update_weight, previous_keys_weight)
    p = previous_keys.double() * previous_keys_weight**0.5
    if kept is not None:
        p = torch.cat([p, kept.to(p.device, torch.float64)], dim=1)
    if past is not None and not ridge and len(neurons) == width and past.pays(p.shape[1], k.shape[1]):
        found = _checked(k, p, past, weights)
        if found is not None:
            return residual.double(), found
    if past is not None:
        p = torch.cat([past.keys().to(p.device) * previous_keys_weight**0.5, p], dim=1)
    right = torch.zeros(k.shape[1], width, dtype=torch.float64, device=k.device)
    right[:, neurons] = _dense(k[neurons], p[neurons], second_moment, neurons, (mom2_update_weight, ridge)).T
    return residual.double(), right


def solve_in_null_space(
    keys: torch.Tensor, earlier: torch.Tensor, standing: torch.Tensor, *, ridge: float
) -> torch.Tensor:
    """A^T (n, d_mlp) of AlphaEdit's update Delta W = R A^T, which changes nothing at the directions that stand.

    Published: A^T = K^T P (K_p K_p^T P + K K^T P + ridge I)^-1 with P the projector beside the standing directions. As P is a
    projector, this is the ridge regression on the projected keys; by the push-through identity, with U = P [K_p, K], it is the
    last n rows of (ridge I + U^T U)^-1 U^T: a system with as many rows as there are facts, one row of the result a fact.

    Args:
        keys: K (d_mlp, n) of the facts to write.
        earlier: K_p (d_mlp, m) of facts written before, times the root of their weight; m may be 0.
        standing: Orthonormal (d_mlp, s), what P takes away; s may be 0, and P is the identity.
        ridge: L2, above 0.

    Returns:
        float64, on the device of the keys.

    References:
        AlphaEdit (arXiv 2410.02355), section 3.3.
    """
    known = torch.cat([earlier.to(keys.device), keys], dim=1).double()
    basis = standing.to(keys.device, torch.float64)
    free = known - basis @ (basis.T @ known)
    system = empty_symmetric(free.shape[1], free.device).copy_(free.T @ free)
    system.diagonal().add_(ridge)
    unit = torch.zeros(free.shape[1], keys.shape[1], dtype=torch.float64, device=free.device)
    unit[earlier.shape[1] :].fill_diagonal_(1)
    return (free @ solved(cholesky(system), unit)).T.contiguous()


def _dense(
    k: torch.Tensor,
    p: torch.Tensor,
    second_moment: torch.Tensor,
    neurons: torch.Tensor,
    weights: tuple[float, float],
) -> torch.Tensor:
    """A (s, n) by a factorisation of the whole system of the chosen neurons; weights are C0's and the identity's."""
    chosen = second_moment if len(neurons) == len(second_moment) else second_moment[neurons][:, neurons]
    system = empty_symmetric(len(neurons), k.device).copy_(chosen)
    system.mul_(weights[0]).addmm_(p, p.T).addmm_(k, k.T)
    if weights[1]:
        system.diagonal().add_(weights[1])
    return solved(cholesky(system), k)


def _checked(k: torch.Tensor, p: torch.Tensor, past: PastKeys, weights: tuple[float, float]) -> torch.Tensor | None:
    """A^T (n, d_mlp) by Woodbury, or nothing where it cannot be had or does not solve the equations that were asked."""
    try:
        right = _woodbury(k, p, past, weights)
    except StatisticsError:
        return None  # C0 alone is singular: the dense way says so, unless the keys make up for it
    if (error := _error(right, k, p, past, weights)) <= TOLERANCE:
        return right
    logger.warning("the kept factor leaves a relative residual of %.1e: the dense solve is taken", error)
    return None


def _woodbury(k: torch.Tensor, p: torch.Tensor, past: PastKeys, weights: tuple[float, float]) -> torch.Tensor:
    """A^T (n, d_mlp) by a factorisation as large as there are facts, earlier ones and new.

    With U = [sqrt(w) K_p, K] and V = U^T R^-1 / sqrt(lambda), facts as rows, the push-through identity gives
    U^T (lambda C0 + U U^T)^-1 = (I + V V^T)^-1 V R^-T / sqrt(lambda): nothing is subtracted, so nothing cancels. A fact that
    shall not be protected has the weight 0 there, and its rows stay where they are.
    """
    known = past.whitened()
    old, count = len(known.rows), len(known.rows) + p.shape[1] + k.shape[1]
    fresh = known.factor.whiten(torch.cat([p, k], dim=1).T.to(known.rows.device))  # (m' + n, d_mlp)
    scale = torch.full((count,), 1 / weights[0], dtype=torch.float64, device=fresh.device)
    scale[:old] = past.kept.to(scale.device) * (weights[1] / weights[0])
    scale.sqrt_()
    system = empty_symmetric(count, fresh.device).zero_()
    start = 0
    for product in known.products:
        system[start : start + len(product), : product.shape[1]] = product
        start += len(product)
    system[old:, :old] = fresh @ known.rows.T
    system[old:, old:] = fresh @ fresh.T
    system.mul_(scale[:, None]).mul_(scale).diagonal().add_(1)
    lower = cholesky(system)
    unit = torch.zeros(count, k.shape[1], dtype=torch.float64, device=fresh.device)
    unit[count - k.shape[1] :].fill_diagonal_(1)
    shares = (solved(lower, unit) * scale[:, None]).T  # (n, m + m' + n)
    rows = (shares[:, :old] @ known.rows).addmm_(shares[:, old:], fresh)
    return known.factor.unwhiten(rows).div_(weights[0] ** 0.5).to(k.device)


def _error(
    right: torch.Tensor, k: torch.Tensor, p: torch.Tensor, past: PastKeys, weights: tuple[float, float]
) -> float:
    """Relative residual of the normal equations, from C0 and keys as they were given: some rows of some sums of columns."""
    c0, device = past.second_moment, k.device
    rows = torch.linspace(0, len(k) - 1, min(CHECKED_ROWS, len(k)), device=device).long()
    sums = torch.arange(k.shape[1], device=device)[:, None] % CHECKED_SUMS == torch.arange(CHECKED_SUMS, device=device)
    some, wanted = right.T @ sums.double(), k[rows] @ sums.double()  # (d_mlp, 4), (rows, 4)
    row = [torch.cat([c0[i, : i + 1], c0[i + 1 :, i]]) for i in rows.tolist()]
    left = weights[0] * (torch.stack(row).to(device, torch.float64) @ some)
    left += p[rows] @ (p.T @ some) + k[rows] @ (k.T @ some)
    start = 0
    for block in past.blocks:
        kept = past.kept[start : start + len(block)]
        start += len(block)
        old = block.to(device, torch.float64)[kept.to(device)]
        left += weights[1] * (old[:, rows].T @ (old @ some))
    return float((left - wanted).norm() / wanted.norm().clamp_min(torch.finfo(torch.float64).tiny))
