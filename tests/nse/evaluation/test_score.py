"""Teacher-forced scores against one prompt at a time."""

import math

import pytest
import torch

from nse.errors import TokenError
from nse.evaluation.score import log_probabilities, perplexity
from nse.patch import patched
from tests.nse import oracle

PAIRS = [
    ("Anna Berg lives in", "Oslo"),
    ("The home of Эмма Жук is", "Санкт-Петербург"),
    ("Boris", "the United Kingdom of Great Britain"),
    ("A long way from here, as all the world knows, Femke Groot lives in", "Riga"),
    ("Anna Berg lives in", "Rome"),
]


@torch.no_grad()
def test_scores_are_those_of_one_prompt_at_a_time(precise) -> None:
    scores = log_probabilities(precise, PAIRS)
    for (score, tokens), (prompt, target) in zip(scores, PAIRS, strict=True):
        expected, count = oracle.target_score(precise, prompt, target)
        assert score == pytest.approx(float(expected), rel=1e-5)
        assert tokens == count
    assert len({round(s, 6) for s, _ in scores}) == len(PAIRS)


@torch.no_grad()
def test_padding_and_company_do_not_matter(editable) -> None:
    together = log_probabilities(editable, PAIRS)
    alone = [log_probabilities(editable, [pair])[0] for pair in PAIRS]
    assert [s for s, _ in together] == pytest.approx([s for s, _ in alone], rel=1e-4)


@torch.no_grad()
def test_perplexity_is_over_all_tokens_but_the_first_of_each_text(precise) -> None:
    texts = ["Anna Berg lives in Oslo.", "Boris Cole speaks the language of Rome, and well."]
    total, count = 0.0, 0
    for text in texts:
        ids = oracle.ids_of(precise, text)
        logs = oracle.log_probabilities(precise.model, ids)
        total += sum(float(logs[i - 1, ids[i]]) for i in range(1, len(ids)))
        count += len(ids) - 1
    assert perplexity(precise, texts) == pytest.approx(math.exp(-total / count), rel=1e-5)


def test_the_weights_in_force_are_scored(editable) -> None:
    base = log_probabilities(editable, PAIRS)
    name = editable.parameter_name(1)
    with patched(editable, {name: editable.base_tensors[name] * 2}):
        assert log_probabilities(editable, PAIRS) != base
    assert log_probabilities(editable, PAIRS) == base


def test_a_text_longer_than_the_model_is_refused(editable) -> None:
    with pytest.raises(TokenError, match="the model takes 96"):
        log_probabilities(editable, [("so and " * 60, "Oslo")])
    with pytest.raises(TokenError, match="the model takes 96"):
        perplexity(editable, ["so and " * 60])
