"""Directions that updates keep clear of: the top singular directions of a weight, and the directions of C0 beside its null space.

Both are properties of the base model alone. Which method respects which of them is the editors' matter.
"""

from dataclasses import dataclass

import torch

from nse.errors import HyperparameterError, StatisticsError


@dataclass(frozen=True, slots=True, eq=False)
class Dominant:
    """Top singular directions of a weight (d_out, d_in): orthonormal `left` (d_out, k) and `right` (d_in, k), float64."""

    left: torch.Tensor
    right: torch.Tensor

    def spared(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """An update left @ right less all of it that falls on one of the directions, on either side; columns stay columns.

        Args:
            left: (d_out, r) float64.
            right: (r, d_in) float64.
        """
        own, other = self.left.to(left.device), self.right.to(right.device)
        return left - own @ (own.T @ left), right - (right @ other) @ other.T


def dominant(weight: torch.Tensor, amount: float) -> Dominant:
    """The top singular directions of a weight (d_out, d_in).

    Args:
        weight: The base weight in canonical orientation.
        amount: How many; below 1, as few as reach that share of the sum of squared singular values.

    Raises:
        HyperparameterError: If nothing would be left to write on.

    References:
        REVIVE (arXiv 2601.11042): an update is put in the singular basis of the original weight, and its parts that would disturb
        the dominant subspace are dropped.
    """
    u, s, vt = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
    reached = s.square().cumsum(0) / s.square().sum()
    count = int((reached < amount).sum()) + 1 if amount < 1 else int(amount)
    if count >= len(s):
        raise HyperparameterError(
            f"protected_directions = {amount:g} protects all {len(s)} singular directions of a weight: lower it"
        )
    return Dominant(u[:, :count].contiguous(), vt[:count].T.contiguous())


def standing_directions(second_moment: torch.Tensor, *, threshold: float, free_share: float) -> torch.Tensor:
    """The eigenvectors of C0 that are no part of its null space, (d_mlp, s) float64 on the CPU.

    Args:
        second_moment: C0 (d_mlp, d_mlp), of which the lower triangle counts.
        threshold: An eigenvalue below this belongs to the null space.
        free_share: Share of all directions that belong to it instead, those with the smallest eigenvalues; 0 for the threshold.

    Raises:
        StatisticsError: If C0 is not finite.
        HyperparameterError: If no direction would be free.

    References:
        AlphaEdit (arXiv 2410.02355), section 3.2: eigenvalues below 2e-2 count as zero.
    """
    if not bool(torch.isfinite(second_moment).all()):
        raise StatisticsError("second moment is singular or not finite: run `nse stats` with more tokens")
    values, vectors = torch.linalg.eigh(second_moment.double().cpu(), UPLO="L")  # ascending
    free = round(free_share * len(values)) if free_share else int((values < threshold).sum())
    if free == 0:
        raise HyperparameterError(
            f"no eigenvalue of C0 is below nullspace_threshold = {threshold:g} (the smallest is {float(values[0]):.2g}): "
            "raise it, or set null_share"
        )
    standing: torch.Tensor = vectors[:, free:].contiguous()
    return standing


def effective_rank(moment: torch.Tensor) -> float:
    """How many directions carry a second moment (d, d): tr(C)^2 / |C|^2, between 1 and d."""
    norm = torch.linalg.vector_norm(moment, dtype=torch.float64)
    return float(moment.diagonal().double().sum() ** 2 / norm**2)


def fresh_weight(seen: torch.Tensor, fresh: torch.Tensor) -> float | None:
    """How much the keys of fresh text exceed those that a second moment was made of: mean k^T C^-1 k over fresh text, over d.

    Over the text that C was made of that mean is d, whatever the text. A solve takes lambda C for what an update may not
    disturb, so that text which C has not seen is protected as if lambda were divided by this.

    Args:
        seen: C (d, d).
        fresh: Second moment (d, d) float64 of other text.

    Returns:
        None if C is singular.
    """
    lower, failed = torch.linalg.cholesky_ex(seen.double())
    if int(failed):
        return None
    return float((torch.cholesky_inverse(lower) * fresh).sum() / len(seen))
