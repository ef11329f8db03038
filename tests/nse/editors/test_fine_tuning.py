"""The methods that train a weight by gradient, against plain loops over a copy of the model."""

import copy
from dataclasses import replace

import pytest
import torch

from nse.editors import get_editor
from nse.editors.one_li import chosen
from nse.errors import HyperparameterError
from nse.evaluation.score import log_probabilities
from nse.finetuning import answers, texts_of
from nse.patch import compose, patched
from nse.subjects import HeldFact
from tests.nse.conftest import fact

LAYER = 1
OWN = {
    "ft": {"lr": 0.01, "num_steps": 4},
    "ft_l": {"lr": 0.01, "num_steps": 4, "norm_constraint": 0.015},
    "locft_bf": {"lr": 0.01, "epochs": 4},
    "saul": {"lr": 0.01, "epochs": 4},
    "one_li": {"lr": 0.01, "epochs": 4},
}


def of(context, method, **own):
    return replace(
        context, hyperparameters=replace(context.hyperparameters, layers=(LAYER,), own={**OWN.get(method, {}), **own})
    )


def edit(method, editable, facts, context, **own):
    return get_editor(method).edit(editable, [fact(i) for i in facts], of(context, method, **own))


def update(result) -> torch.Tensor:
    (layer,) = result.delta.layers.values()
    return layer.product()


def mean_loss(model, texts) -> torch.Tensor:
    """The mean over texts of the mean -log p per target token, one text at a time and nothing padded."""
    losses = []
    for text in texts:
        logits = model(torch.tensor([text.ids])).logits[0, text.prompt_length - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(text.target_ids)))
    return torch.stack(losses).mean()


def by_hand(editable, rounds, *, lr, steps, radius=None, end=False) -> torch.Tensor:
    """The weight after rounds of Adam on all texts at once, a new optimiser each."""
    model = copy.deepcopy(editable.model)
    weight = model.get_parameter(editable.parameter_name(LAYER)).requires_grad_(True)
    for facts in rounds:
        texts, start = texts_of(editable, [fact(i) for i in facts], end=end), weight.detach().clone()
        optimizer = torch.optim.Adam([weight], lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            mean_loss(model, texts).backward()
            optimizer.step()
            if radius is not None:
                weight.data = start + (weight.data - start).clamp(-radius, radius)
    return weight.detach()


@pytest.mark.parametrize(("method", "given"), [("ft", {}), ("ft_l", {"radius": 0.015}), ("locft_bf", {"end": True})])
def test_rounds_of_training_are_adam_on_the_mean_loss_of_target_tokens(precise, context, method, given) -> None:
    first = edit(method, precise, [0, 1, 2], context)
    second = edit(method, precise, [3, 4], replace(context, previous=(first.delta,)))
    (weight,) = compose(precise, [first.delta, second.delta]).values()
    expected = by_hand(precise, [[0, 1, 2], [3, 4]], lr=0.01, steps=4, **given)
    moved = (expected - precise.base_tensors[precise.parameter_name(LAYER)]).norm()
    assert float((weight - expected).norm() / moved) < 1e-6


def test_the_delta_is_the_difference_to_the_bit_also_in_float32(editable, context) -> None:
    result = edit("ft", editable, [0, 1], context)
    (weight,) = compose(editable, [result.delta]).values()
    base = editable.base_weight(editable.parameter_name(LAYER))
    assert torch.equal(editable.canonical(weight), (base.double() + update(result)).float())
    with patched(editable, compose(editable, [result.delta])):
        pairs = [(fact(i).prompt, fact(i).target_new) for i in (0, 1)]
        for case, (score, tokens) in zip(result.cases, log_probabilities(editable, pairs), strict=True):
            assert case.residual_after == pytest.approx(-score / tokens, abs=1e-4)
            assert case.residual_after < case.residual_before


def test_steps_too_small_for_a_half_precision_weight_add_up(loaded, family, editable, context) -> None:
    model = loaded(family, torch.bfloat16)
    result = edit("ft", model, [0, 1], context, lr=1e-5, num_steps=5)
    spacing = float(model.base_weight(model.parameter_name(LAYER)).abs().mean()) * 2**-8
    assert 4e-5 < float(update(result).abs().max()) < spacing


def test_the_parts_that_memory_allows_give_the_gradient_of_the_whole(precise, context) -> None:
    whole = edit("ft", precise, [0, 1, 2], context)
    parts = edit("ft", precise, [0, 1, 2], replace(context, memory=1))
    torch.testing.assert_close(update(parts), update(whole), rtol=0, atol=1e-8)


def test_the_seed_decides_the_mini_batches_and_nothing_else_does(editable, context) -> None:
    one, again, other = (
        edit("locft_bf", editable, [0, 1, 2], replace(context, seed=seed), batch_size=1).delta.to_bytes()
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_training_stops_at_its_loss_and_a_fact_that_is_known_moves_nothing(editable, context) -> None:
    long, longer = (edit("ft", editable, [0], context, lr=0.03, num_steps=n, loss_target=2.5) for n in (40, 45))
    assert long.cases[0].residual_after < 2.5 < long.cases[0].residual_before
    assert long.delta.to_bytes() == longer.delta.to_bytes()
    known = edit("ft", editable, [0], replace(context, previous=(long.delta,)), loss_target=2.5)
    assert float(update(known).abs().max()) == 0


def test_no_entry_leaves_the_ball_of_ft_l(editable, context) -> None:
    bounded = float(update(edit("ft_l", editable, [0, 1], context)).abs().max())
    assert bounded == pytest.approx(0.015, rel=1e-6)
    assert float(update(edit("ft", editable, [0, 1], context)).abs().max()) > 0.02


def test_locft_bf_teaches_the_model_to_stop_after_a_target(editable, context) -> None:
    stops = {}
    for append in (True, False):
        delta = edit("locft_bf", editable, [0], context, lr=0.05, epochs=12, append_eos=append).delta
        with patched(editable, compose(editable, [delta])):
            ((_, stops[append]),) = answers(editable, texts_of(editable, [fact(0)], end=True))
    assert stops == {True: True, False: False}


def test_saul_keeps_a_true_fact_likely_after_a_target_and_does_not_learn_what_it_corrects(editable, context) -> None:
    true, corrected = HeldFact("Clara", "{} likes", "tea", "taste"), HeldFact(fact(0).subject, "{} is", "x", "home")
    asked = [(f"{fact(0).prompt} {fact(0).target_new}.", "Clara likes tea")]
    made = {
        name: edit("saul", editable, [0], replace(context, held=held)).delta
        for name, held in {"true": (true,), "corrected": (corrected,), "none": ()}.items()
    }
    scores = {}
    for name, delta in made.items():
        with patched(editable, compose(editable, [delta])):
            scores[name] = log_probabilities(editable, asked)[0][0]
    assert scores["true"] > scores["none"] + 1.0
    assert made["corrected"].to_bytes() == made["none"].to_bytes()


def test_the_line_of_1_li_ends_in_the_old_weights_and_in_the_trained_ones(editable, context) -> None:
    trained = update(edit("ft", editable, [0, 1], context))
    for share in (0.0, 0.25, 1.0):
        result = edit("one_li", editable, [0, 1], context, alpha_share=share)
        assert torch.equal(update(result), trained * share)
        assert result.delta.metadata["alpha_share"] == share
    (weight,) = compose(editable, [edit("one_li", editable, [0], context, alpha_share=0.0).delta]).values()
    assert torch.equal(weight, editable.base_tensors[editable.parameter_name(LAYER)])


def test_1_li_weighs_the_edits_against_the_held_facts_that_the_model_knew(editable, context) -> None:
    first = edit("ft", editable, [0], context, lr=0.05, num_steps=12).delta
    known = HeldFact("someone else", fact(0).prompt, fact(0).target_new)  # the same words: one of the two has to go
    unknown = HeldFact("nobody", "Nothing but", fact(0).target_new)
    context = replace(of(context, "one_li", lr=0.05, epochs=12), previous=(first,), held=(known, unknown))
    again = [replace(fact(0), target_new=fact(3).target_new), fact(1)]
    result = get_editor("one_li").edit(editable, again, context)
    curve, share = result.delta.metadata["curve"], result.delta.metadata["alpha_share"]
    assert [a for a, _, _ in curve] == [step / 10 for step in range(11)]
    assert curve[0][1:] == [0.0, 1.0]  # what the old weights do not answer is not asked
    assert curve[-1][1:] == [1.0, 0.0]
    assert share == chosen(curve)
    answered = sum(case.status == "edited" for case in result.cases) / 2
    assert answered == next(accuracy for a, accuracy, _ in curve if a == share)


def test_the_share_is_the_least_of_the_highest_harmonic_mean() -> None:
    curve = [(0.0, 0.0, 1.0), (0.25, 0.5, 1.0), (0.5, 1.0, 0.8), (0.75, 1.0, 0.8), (1.0, 1.0, 0.1)]
    assert chosen(curve) == 0.5
    assert chosen([(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)]) == 0.0


@pytest.mark.parametrize(
    ("method", "own", "message"),
    [
        ("ft", {"lr": 0.0}, "lr = 0.0 is out of range"),
        ("ft", {"num_steps": 0}, "num_steps = 0 is out of range"),
        ("ft_l", {"norm_constraint": -1.0}, "norm_constraint = -1.0 is out of range"),
        ("locft_bf", {"batch_size": 0}, "batch_size = 0 is out of range"),
        ("locft_bf", {"append_eos": 1}, "append_eos = 1 has the wrong type"),
        ("saul", {"facts_per_edit": 0}, "facts_per_edit = 0 is out of range"),
        ("one_li", {"alpha_share": 1.5}, "alpha_share is at most 1"),
        ("ft", {"lr": 3e37}, "the loss is no number any more: lower lr"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_the_model_is_left_alone(editable, context, method, own, message) -> None:
    with pytest.raises(HyperparameterError, match=message) as caught:
        edit(method, editable, [0], context, **own)
    assert "\n" not in str(caught.value)
    assert not any(parameter.requires_grad for parameter in editable.model.parameters())
