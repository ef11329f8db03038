"""Neuron selection."""

import pytest
import torch

from nse.neurons import select_neurons

KEYS = torch.tensor([[1.0, -1.0], [3.0, 2.0], [0.0, 0.0], [-2.0, 1.0]])  # scores 2, 5, 0, 3 of 10


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.4, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.81, [0, 1, 3]), (0.999, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_the_most_active_neurons_are_taken_until_their_share_is_reached(threshold, expected) -> None:
    assert select_neurons(KEYS, threshold=threshold).tolist() == expected


def test_equal_scores_are_taken_in_order() -> None:
    assert select_neurons(torch.ones(8, 3), threshold=0.5).tolist() == [0, 1, 2, 3]


def test_a_batch_without_any_activation_keeps_at_least_one_neuron() -> None:
    assert len(select_neurons(torch.zeros(4, 2), threshold=0.5)) >= 1
