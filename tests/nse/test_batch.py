"""Padding and grouping."""

import pytest

from nse.batch import by_length, pad
from nse.errors import TokenError
from nse.tokens import TokenizedPrompt


def test_sequences_are_padded_on_the_right_and_masked(editable) -> None:
    batch = pad(editable, [[5, 6, 7], [8]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_longest_text_that_the_model_takes_is_padded_and_a_longer_one_refused(editable) -> None:
    assert pad(editable, [[5] * 96]).ids.shape == (1, 96)
    with pytest.raises(TokenError, match="a text has 97 tokens, the model takes 96: shorten"):
        pad(editable, [[5] * 97])


@pytest.mark.parametrize("budget", [1, 7, 12, 1000])
def test_groups_hold_every_prompt_once_within_the_budget(budget) -> None:
    lengths = [3, 1, 6, 2, 2, 5, 4]
    groups = list(by_length([TokenizedPrompt((0,) * n, n) for n in lengths], tokens=budget))
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget
    if budget == 1000:
        assert len(groups) == 1


def test_nothing_to_group_gives_no_group() -> None:
    assert list(by_length([])) == []
