"""Post norms: what an MLP must put out, where an RMSNorm stands between it and the residual stream.

In most families the hidden state grows by what the output projection gives, so a change r of the one is asked of the other. Where
a norm follows, the hidden state grows by norm(v) = gamma * v / rms(v): only v's direction counts, and r must be asked otherwise.
"""

import torch
from torch import nn

from nse.errors import ArchitectureError


@torch.no_grad()
def change_before_norm(output: torch.Tensor, change: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    """Returns the change of the projection's output that brings the hidden state a wanted change nearest.

    With u = (norm(v) + r) / gamma, every s * u with s > 0 is normed to the direction of norm(v) + r; the s whose s * u is nearest
    to v is taken, so that the weights change least. The length of norm(v) + r cannot be had: a norm gives all outputs one length,
    up to gamma. What is missing is measured by the next layer, or by the next pass.

    Args:
        output: v (d_model, n), what goes into the norm now, facts as columns.
        change: r (d_model, n), wanted of the hidden state.
        norm: The RMSNorm, or nothing: then r is returned.

    Returns:
        (d_model, n) float64 on the CPU.

    Raises:
        ArchitectureError: If the norm is no RMSNorm (it takes the mean away, or adds a bias).
    """
    wanted = change.double().cpu()
    if norm is None:
        return wanted
    weight = next(norm.parameters())
    probe = torch.ones(1, weight.shape[0], device=weight.device, dtype=weight.dtype)
    gamma = (
        norm(probe.double()).squeeze(0).double().cpu()[:, None]
    )  # (d_model, 1), whatever the family adds to its weight
    if not gamma.any() or norm(torch.zeros_like(probe)).any():
        raise ArchitectureError(f"post norm {type(norm).__name__} is no RMSNorm: models with it cannot be edited yet")
    v = output.double().cpu()
    normed = norm(v.T.to(weight.device)).T.double().cpu()  # (d_model, n)
    present = v / v.norm(dim=0) * v.shape[0] ** 0.5
    u = torch.where(gamma == 0, present, (normed + wanted) / gamma)
    scale = (v * u).sum(dim=0) / (u * u).sum(dim=0)
    behind = scale <= 0  # the wanted direction is more than a right angle away: keep the length
    return torch.where(behind, v.norm(dim=0) / u.norm(dim=0), scale) * u - v
