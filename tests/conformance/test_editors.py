"""What every editor must do on every architecture."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

from nse.architecture import load_model
from nse.delta import Delta
from nse.editors import get_editor
from nse.errors import HyperparameterError, RequestError, StatisticsError
from nse.evaluation.score import log_probabilities
from nse.fingerprint import file_digest
from nse.patch import compose, patched, version_digest
from nse.statistics import SecondMoments
from tests.conformance.conftest import HALF
from tests.nse.conftest import digests


def test_the_model_is_bit_identical_after_an_edit(edited, model) -> None:
    assert edited.before == edited.after == model.tensor_digests


def test_the_edit_changes_the_projections_of_its_layers_and_nothing_else(edited, model, context) -> None:
    names = {model.parameter_name(layer) for layer in context.hyperparameters.layers}
    assert set(edited.result.delta.layers) == names
    assert set(compose(model, [edited.result.delta])) == names


def test_apply_then_revert_is_bit_exact(edited, model) -> None:
    weights = compose(model, [edited.result.delta])
    with patched(model, weights):
        inside = digests(model)
    assert digests(model) == edited.before
    assert {name for name in inside if inside[name] != edited.before[name]} == set(weights)


def test_a_patch_comes_back_from_disk_with_the_same_bytes(edited, model, tmp_path) -> None:
    paths = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    edited.result.delta.save(paths[0])
    read = Delta.load(paths[0])
    read.save(paths[1])
    assert file_digest(paths[0]) == file_digest(paths[1])
    versions = {version_digest(model, compose(model, [delta])) for delta in (edited.result.delta, read)}
    assert len(versions) == 1
    assert versions != {model.base_digest}


def test_the_same_input_gives_the_same_patch(edited, editor, model, context, facts) -> None:
    again = get_editor(editor).edit(model, facts, context)
    assert again.delta.to_bytes() == edited.result.delta.to_bytes()
    assert again.cases == edited.result.cases


def test_the_tokenizers_padding_side_makes_no_difference(edited, editor, models, family, context, facts) -> None:
    left = models(family, "left")
    assert left.tokenizer.padding_side == "left"
    other = get_editor(editor).edit(left, facts, context)
    assert other.delta.to_bytes() == edited.result.delta.to_bytes()


def test_the_order_of_the_facts_makes_no_difference(edited, editor, model, context, facts) -> None:
    turned = get_editor(editor).edit(model, facts[::-1], context)
    torch.testing.assert_close(turned.values.flip(0), edited.result.values, rtol=1e-3, atol=1e-3)
    for name, layer in edited.result.delta.layers.items():
        difference = turned.delta.layers[name].product() - layer.product()
        assert difference.norm() <= 1e-2 * layer.product().norm()


def rises(model, delta, facts) -> list[float]:
    """By how much an edit raises the targets' log-probabilities per token, for the facts that end in their subject.

    In a random model next to nothing is passed on from the subject to a later token.
    """
    pairs = [(f.prompt_template.format(f.subject), f.target_new) for f in facts if f.prompt_template.endswith("{}")]
    before = log_probabilities(model, pairs)
    with patched(model, compose(model, [delta])):
        after = log_probabilities(model, pairs)
    return [(new - old) / count for (new, count), (old, _) in zip(after, before, strict=True)]


def test_the_edited_facts_become_more_probable(edited, model, facts) -> None:
    found = rises(model, edited.result.delta, facts)
    assert len(found) == 2
    assert min(found) > 0.05
    assert mean(found) > 0.25


def test_bad_input_raises_the_typed_error_and_leaves_the_model_alone(edited, editor, model, context, facts) -> None:
    edit = get_editor(editor).edit
    settings = replace(context.hyperparameters, layers=(1, 9))
    bad = [
        (RequestError, "there is nothing to edit", [], context),
        (RequestError, "subject", [replace(facts[0], subject="")], context),
        (HyperparameterError, "layers: 9 is not in this model", facts, replace(context, hyperparameters=settings)),
        (StatisticsError, "no second moment", facts, replace(context, second_moments=SecondMoments({}, {}))),
    ]
    for kind, message, requests, given in bad:
        with pytest.raises(kind, match=message) as caught:
            edit(model, requests, given)
        assert "\n" not in str(caught.value)
    assert digests(model) == edited.before


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_edited_with_one_rounding(editor, folders, family, context, facts, dtype) -> None:
    model = load_model(folders(family), dtype=HALF[dtype])
    delta = get_editor(editor).edit(model, facts, context).delta
    assert digests(model) == model.tensor_digests
    for name, weight in compose(model, [delta]).items():
        exact = model.base_weight(name).double() + delta.layers[name].product()
        assert torch.equal(model.canonical(weight), exact.to(HALF[dtype]))
    assert mean(rises(model, delta, facts)) > 0.2
