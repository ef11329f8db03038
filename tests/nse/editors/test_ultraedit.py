"""UltraEdit, against its formulas written out for one fact at a time on a copy of the model."""

import copy
from dataclasses import replace

import pytest
import torch

from nse.delta import Delta
from nse.editors import get_editor
from nse.errors import DeltaError, HyperparameterError
from nse.finetuning import texts_of
from nse.patch import compose, patched
from tests.nse.conftest import fact

LR = 1e-3


def edit(editable, facts, context, **own):
    settings = replace(context.hyperparameters, own={"lr": LR, **own})
    return get_editor("ultraedit").edit(editable, [fact(i) for i in facts], replace(context, hyperparameters=settings))


def rows(editable, model, facts, layer):
    """Inputs and output gradients of a projection where a target token is predicted, fact after fact."""
    seen = {}
    module = model.get_submodule(editable.projection_name(layer))

    def keep(_module, inputs, output):
        seen["in"], seen["out"] = inputs[0], output
        output.retain_grad()

    handle, keys, gradients = module.register_forward_hook(keep), [], []
    for text in texts_of(editable, [fact(i) for i in facts]):
        logits = model(torch.tensor([text.ids])).logits[0, text.prompt_length - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(text.target_ids)).backward()
        at = slice(text.prompt_length - 1, len(text.ids) - 1)
        keys.append(seen["in"].detach()[0, at])
        gradients.append(seen["out"].grad[0, at])
    handle.remove()
    return torch.cat(keys), torch.cat(gradients)


def written_out(now, before) -> torch.Tensor:
    """(H^T H + I)^-1 H^T V as (d_model, d_mlp), from this round's rows and those of all rounds."""

    def usual(part):
        every = torch.cat([part(rows_) for rows_ in (*before, now)])
        return (part(now) - every.mean(dim=0)) / every.std(dim=0)

    (keys, _), h, g = now, usual(lambda pair: pair[0]), usual(lambda pair: pair[1])
    v = -LR * h.norm(dim=1, keepdim=True) ** 2 * g
    return torch.linalg.solve(keys.T @ keys + torch.eye(keys.shape[1]).double(), keys.T @ v).T


def test_two_rounds_are_the_papers_formulas_with_statistics_over_both(precise, context) -> None:
    first = edit(precise, [0, 1, 2], context).delta
    second = edit(precise, [3, 4], replace(context, previous=(first,))).delta
    model = copy.deepcopy(precise.model).requires_grad_(True)
    with patched(precise, compose(precise, [first])):
        later = copy.deepcopy(precise.model).requires_grad_(True)
    for layer in (1, 2):
        name = precise.parameter_name(layer)
        one, two = rows(precise, model, [0, 1, 2], layer), rows(precise, later, [3, 4], layer)
        for delta, expected in ((first, written_out(one, [])), (second, written_out(two, [one]))):
            found = delta.layers[name].product()
            assert float((found - expected).norm() / expected.norm()) < 1e-4  # EPSILON stands beside the deviation


def test_each_column_is_a_facts_own_answer_position(precise, context) -> None:
    delta = edit(precise, [0, 1, 2], context).delta
    lengths = [len(text.target_ids) for text in texts_of(precise, [fact(i) for i in range(3)])]
    for layer in delta.layers.values():
        assert layer.case_index.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    name = precise.parameter_name(1)
    parts = [delta.without({f"case {i}" for i in range(3) if i != j}).layers[name].product() for j in range(3)]
    torch.testing.assert_close(sum(parts), delta.layers[name].product())


def test_a_round_goes_down_the_loss_of_its_facts(editable, context) -> None:
    cases = edit(editable, [0, 1, 2], context).cases
    assert all(case.residual_after < case.residual_before for case in cases)


def test_the_statistics_of_a_reverted_round_and_of_another_method_do_not_count(editable, context, tmp_path) -> None:
    first = edit(editable, [0, 1], context).delta
    first.save(tmp_path / "first.safetensors")
    read = Delta.load(tmp_path / "first.safetensors")
    gone = read.without(read.case_ids)
    other = replace(read, layers={}, metadata={"method": "nse"})
    plain, alone = edit(editable, [2, 3], context).delta, replace(context, previous=(gone, other))
    assert edit(editable, [2, 3], alone).delta.to_bytes() == plain.to_bytes()
    counted = edit(editable, [2, 3], replace(context, previous=(read,))).delta
    assert counted.to_bytes() == edit(editable, [2, 3], replace(context, previous=(first,))).delta.to_bytes()
    assert counted.to_bytes() != plain.to_bytes()


def test_broken_statistics_and_a_step_of_no_length_are_named(editable, context) -> None:
    first = edit(editable, [0, 1], context).delta
    held = first.metadata["moments"]
    for broken in (
        {"count": 3},
        {"count": 3, "mean": [1.0], "squares": [1.0]},
        {"count": 3, "mean": "x", "squares": []},
    ):
        damaged = replace(first, metadata={**first.metadata, "moments": dict.fromkeys(held, broken)})
        with pytest.raises(DeltaError, match=r"moments of .* are broken"):
            edit(editable, [2], replace(context, previous=(damaged,)))
    with pytest.raises(HyperparameterError, match=r"ultraedit: lr = 0\.0 is out of range"):
        edit(editable, [0], context, lr=0.0)
