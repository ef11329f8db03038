"""The closed-form update of one layer.

The dtype policy of the package: solves and statistics in float64, rounded once to the model's dtype by `nse.patch`.
"""

import torch

from nse.errors import StatisticsError


def solve_update(
    keys: torch.Tensor,
    residual: torch.Tensor,
    *,
    second_moment: torch.Tensor,
    previous_keys: torch.Tensor,
    neurons: torch.Tensor,
    mom2_update_weight: float,
    previous_keys_weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solves the normal equations of one layer's update on the chosen neurons.

    Delta W[:, S] = R A^T with A = (lambda C0[S, S] + w K_p[S] K_p[S]^T + K[S] K[S]^T)^-1 K[S], and zero elsewhere. It is a
    sum of one rank-1 term per fact: column j of `left` and row j of `right` are fact j's.

    Args:
        keys: K (d_mlp, n) of the facts to write.
        residual: R (d_out, n), the share of |z - h| that this layer shall add.
        second_moment: C0 (d_mlp, d_mlp) = E[k k^T] of the base model.
        previous_keys: K_p (d_mlp, m) of facts written before; m may be 0.
        neurons: S, ascending indices (s,).
        mom2_update_weight: lambda.
        previous_keys_weight: w, 1 in the paper.

    Returns:
        left (d_out, n) and right (n, d_mlp), float64.

    Raises:
        StatisticsError: If C0 has another shape than the keys ask for, or is singular (too little text) or not finite.

    References:
        arXiv 2410.04045, closed-form solution; MEMIT (arXiv 2210.07229), equation 14.
    """
    width = keys.shape[0]
    if tuple(second_moment.shape) != (width, width):
        raise StatisticsError(
            f"second moment is {tuple(second_moment.shape)}, keys need {(width, width)}: run `nse stats` for this model"
        )
    k, p = keys[neurons].double(), previous_keys[neurons].double()
    gram = mom2_update_weight * second_moment[neurons][:, neurons].double()
    gram += previous_keys_weight * (p @ p.T) + k @ k.T
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise StatisticsError("second moment is singular or not finite: run `nse stats` with more tokens")
    right = torch.zeros(keys.shape[1], keys.shape[0], dtype=torch.float64)
    right[:, neurons] = torch.cholesky_solve(k, factor).T
    return residual.double(), right
