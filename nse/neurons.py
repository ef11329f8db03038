"""Neuron selection: which inputs of an output projection an update may change (NSE, section 3.2)."""

import torch


def select_neurons(keys: torch.Tensor, *, threshold: float) -> torch.Tensor:
    """Chooses the most active neurons until their cumulative share of activation reaches `threshold`.

    Args:
        keys: (d_mlp, n) keys of the batch, facts as columns.
        threshold: Share p in (0, 1]; 1 keeps every neuron.

    Returns:
        Ascending indices (s,) int64 of the chosen neurons.

    References:
        arXiv 2410.04045, neuron-level weight editing: score q_i = sum over facts of |K[i, j]|.
    """
    if threshold >= 1.0:
        return torch.arange(keys.shape[0])
    score = keys.abs().sum(dim=1)
    order = torch.argsort(score, descending=True, stable=True)
    share = score[order].cumsum(0) / score.sum()
    count = int((share < threshold).sum()) + 1
    return order[:count].sort().values
