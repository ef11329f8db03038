"""Vital signs against sums by hand: none on the base, all of them on a damaged model."""

import pytest
import torch

from nse.contexts import OPENINGS
from nse.evaluation.collapse import TOKENS, delta_norms, hidden_drift, vital_signs
from nse.evaluation.fluency import continued, ngram_entropy
from nse.evaluation.gates import gate_results, read_gates
from nse.evaluation.run import Evaluation
from nse.evaluation.score import perplexity
from nse.patch import patched

TEXTS = ("Anna Berg lives in Oslo.", "The home of Boris Cole is Rome, and number 8 is no secret.", "Эмма Жук")


def damaged(editable, share: float, layers=(1, 2)) -> dict[str, torch.Tensor]:
    """The projections of some layers, each moved by `share` of its norm."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in layers:
        name = editable.parameter_name(layer)
        base = editable.base_tensors[name]
        noise = torch.randn(base.shape, generator=generator)
        weights[name] = base + share * noise / noise.norm() * base.norm()
    return weights


def test_the_base_shows_no_sign(editable) -> None:
    signs = vital_signs(editable, TEXTS)
    assert (signs["delta_norm"], signs["hidden_drift"], signs["perplexity_ratio"]) == (0.0, 0.0, 1.0)
    assert signs["hidden_cosine"] == pytest.approx(1.0)
    assert signs["perplexity"] == perplexity(editable, TEXTS)
    assert signs["text_entropy"] > 0
    assert not any(name.startswith("delta_norm.") for name in signs)


def test_the_norm_of_a_layer_is_that_of_what_moved_against_that_of_its_base(editable) -> None:
    weights = damaged(editable, 0.3, layers=(1,)) | damaged(editable, 0.7, layers=(2,))
    with patched(editable, weights):
        assert delta_norms(editable) == pytest.approx({"1": 0.3, "2": 0.7}, rel=1e-5)
        signs = vital_signs(editable, TEXTS)
    assert (signs["delta_norm.1"], signs["delta_norm.2"]) == pytest.approx((0.3, 0.7), rel=1e-5)
    assert signs["delta_norm"] == signs["delta_norm.2"]
    assert delta_norms(editable) == {}


@torch.no_grad()
def test_drift_is_the_mean_over_tokens_of_how_far_the_last_hidden_state_moved(editable) -> None:
    def states(text: str) -> torch.Tensor:
        ids = torch.tensor([editable.tokenizer(text)["input_ids"]])
        return editable.model.base_model(ids, use_cache=False).last_hidden_state[0, 1:].double()

    before = torch.cat([states(text) for text in TEXTS])
    with patched(editable, damaged(editable, 0.5)):
        after = torch.cat([states(text) for text in TEXTS])
        drift, cosine = hidden_drift(editable, TEXTS)
    assert drift == pytest.approx(float(((after - before).norm(dim=1) / before.norm(dim=1)).mean()), rel=1e-4)
    assert cosine == pytest.approx(float(torch.cosine_similarity(after, before, dim=1).mean()), rel=1e-4)


def test_the_more_a_model_is_damaged_the_further_it_drifts(editable) -> None:
    found = []
    for share in (0.01, 0.1, 1.0):
        with patched(editable, damaged(editable, share)):
            found.append(hidden_drift(editable, TEXTS))
    drifts, cosines = zip(*found, strict=True)
    assert list(drifts) == sorted(drifts)
    assert list(cosines) == sorted(cosines, reverse=True)


def test_the_entropy_is_that_of_the_free_text_of_the_weights_in_force(editable) -> None:
    def entropy() -> float:
        return sum(ngram_entropy(text) for text in continued(editable, OPENINGS, tokens=TOKENS, seed=3)) / len(OPENINGS)

    base = entropy()
    with patched(editable, damaged(editable, 1.0)):
        signs = vital_signs(editable, TEXTS, seed=3)
        assert signs["text_entropy"] == pytest.approx(entropy()) != base


def test_a_model_whose_states_are_no_numbers_fails_the_gates_on_every_sign(editable) -> None:
    bounds = {
        "perplexity_ratio": "<= 1000000",
        "delta_norm": "<= 1000000",
        "hidden_drift": "<= 1000000",
        "text_entropy": ">= 1",
    }
    gates = tuple(gate for name, bound in bounds.items() for gate in read_gates(name, bound, "suite.yaml"))
    ruined = editable.parameter_name(2)
    weights = {**damaged(editable, 0.3, layers=(1,)), ruined: torch.full_like(editable.base_tensors[ruined], torch.nan)}
    with patched(editable, weights):
        results = gate_results(gates, Evaluation(vital_signs(editable, TEXTS), ()), None)
    assert [(result.name, result.passed) for result in results] == [(name, False) for name in bounds]
