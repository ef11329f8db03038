"""NSE: the whole round against the oracle, its identities, and what every editor must obey."""

from dataclasses import replace

import pytest
import torch

from nse.delta import Delta
from nse.editors import get_editor
from nse.editors.nse import NSE
from nse.errors import HyperparameterError, NseError, RequestError, StatisticsError, TokenError
from nse.evaluation.score import log_probabilities
from nse.keys import measure
from nse.patch import compose, patched, version_digest
from nse.request import EditRequest
from nse.rounds import _Round
from nse.statistics import SecondMoments
from nse.steps import facts_of_round
from nse.values import ValueStore, values_for
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS, digests, fact


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def second_round(editable, context):
    """A first round of two facts, and the context and facts of a second one on top of it."""
    first = NSE().edit(editable, [fact(4), fact(5)], context)
    return first.delta, replace(context, previous=(first.delta,)), [fact(i) for i in range(4)]


def oracle_round(editable, requests, context, values):
    layers, previous = context.hyperparameters.layers, context.previous
    names = {layer: editable.parameter_name(layer) for layer in layers}
    width = editable.base_weight(names[layers[0]]).shape
    return oracle.nse_round(
        editable,
        requests,
        z=values,
        contexts=context.contexts,
        hyperparameters=context.hyperparameters,
        second_moments={la: context.second_moments.of(n.removesuffix(".weight")) for la, n in names.items()},
        earlier_updates={
            la: sum((d.layers[n].left @ d.layers[n].right for d in previous), torch.zeros(width, dtype=torch.float64))
            for la, n in names.items()
        },
        previous_keys={
            la: torch.cat(
                [torch.zeros(width[1], 0, dtype=torch.float64)] + [d.layers[n].keys.double().T for d in previous], 1
            )
            for la, n in names.items()
        },
    )


@pytest.mark.parametrize("fact_token", ["subject_last", "last"])
@pytest.mark.parametrize("threshold", [1.0, 0.7], ids=["all neurons", "some neurons"])
def test_a_round_on_top_of_another_agrees_with_the_oracle(precise, context, threshold, fact_token) -> None:
    context = replace(context, hyperparameters=replace(context.hyperparameters, fact_token=fact_token))
    _, context, requests = second_round(precise, context)
    hp = replace(context.hyperparameters, neuron_threshold=threshold, previous_keys_weight=3.0)
    context = replace(context, hyperparameters=hp)
    ordered = sorted(c.residual_after for c in replace_passes(precise, requests, context, 1).cases)
    middle = (ordered[1] + ordered[2]) / 2  # two facts are done after the first pass, two go through a second
    context = replace(context, hyperparameters=replace(hp, alpha=middle))
    result = NSE().edit(precise, requests, context)
    facts = facts_of_round(precise, requests, (), context.hyperparameters)
    values = values_for(precise, facts, contexts=context.contexts, hyperparameters=context.hyperparameters)
    assert torch.equal(values[:4], result.values)
    expected = oracle_round(precise, facts, context, values)
    assert len(expected.written_per_pass) == 2
    assert len(expected.written_per_pass[0]) == len(facts)
    assert {facts[i].case_id for i in expected.written_per_pass[1]} == {
        c.case_id for c in replace_passes(precise, requests, context, 1).cases if c.residual_after > middle
    }
    own = [[i for i, fact in enumerate(facts) if fact.case_id == request.case_id] for request in requests]
    weights = compose(precise, [*context.previous, result.delta])
    for name, weight in expected.weights.items():
        base = precise.base_weight(name)
        assert relative(precise.canonical(weights[name]), weight) < 1e-7
        assert relative(precise.canonical(weights[name]) - base, weight - base) < 1e-5
        assert relative(result.delta.layers[name].keys.T, expected.keys[name]) < 1e-5
    for told, distances in (("residual_before", expected.before), ("residual_after", expected.after)):
        worst = [max(distances[i] for i in places) for places in own]
        assert [getattr(case, told) for case in result.cases] == pytest.approx(worst, rel=1e-5, abs=1e-6)


def replace_passes(editable, requests, context, passes):
    hp = replace(context.hyperparameters, alpha=0.0, max_passes=passes)
    return NSE().edit(editable, requests, replace(context, hyperparameters=hp))


def test_with_all_neurons_and_one_pass_nse_is_sequential_memit(precise, context) -> None:
    first, context, requests = second_round(precise, context)
    hp = replace(context.hyperparameters, max_passes=1, neuron_threshold=1.0)
    result = NSE().edit(precise, requests, replace(context, hyperparameters=hp))
    z = result.values.double().T
    weights = compose(precise, [first])
    for i, layer in enumerate(hp.layers):
        name = precise.parameter_name(layer)
        with patched(precise, weights):
            seen = measure(precise, requests, CONTEXTS, key_layers=(layer,), hidden_layer=hp.z_layer)
        known = torch.cat([first.layers[name].keys.double().T, seen.keys[layer]], dim=1)
        covariance = context.second_moments.of(precise.projection_name(layer)).double()
        adjusted = torch.linalg.solve(hp.mom2_update_weight * covariance + known @ known.T, seen.keys[layer])
        update = (z - seen.hidden) / (len(hp.layers) - i) @ adjusted.T
        assert relative(result.delta.layers[name].product(), update) < 1e-6
        weights[name] = precise.canonical(precise.canonical(weights[name]).double() + update)


def test_the_delta_of_a_round_is_the_dense_solution_of_its_normal_equations(precise, context, requests) -> None:
    hp = replace(context.hyperparameters, layers=(1,), max_passes=1)
    result = NSE().edit(precise, requests, replace(context, hyperparameters=hp))
    seen = measure(precise, requests, CONTEXTS, key_layers=(1,), hidden_layer=1)
    k, r = seen.keys[1], result.values.double().T - seen.hidden
    c0 = context.second_moments.of(precise.projection_name(1)).double()
    update = result.delta.layers[precise.parameter_name(1)].product()
    gradient = update @ (hp.mom2_update_weight * c0 + k @ k.T) - r @ k.T  # of lambda |U|_C0^2 + |U K - R|^2
    assert float(gradient.norm() / (r @ k.T).norm()) < 1e-9
    assert update.count_nonzero() > 0


def test_one_facts_contribution_is_its_columns(editable, context, requests) -> None:
    hp = replace(context.hyperparameters, alpha=0.0)
    delta = NSE().edit(editable, requests, replace(context, hyperparameters=hp)).delta
    less = delta.without({"case 2"})
    assert less.case_ids == ("case 0", "case 1", "case 3")
    for name, layer in delta.layers.items():
        own = (layer.case_index == 2).nonzero().squeeze(1).tolist()
        assert len(own) == hp.max_passes
        outer = sum(torch.outer(layer.left[:, c], layer.right[c]) for c in own)
        torch.testing.assert_close(less.layers[name].product(), layer.product() - outer, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(less.layers[name].product(), layer.product())
        assert torch.equal(less.layers[name].keys, layer.keys[[0, 1, 3]])


def test_a_subset_of_neurons_leaves_the_other_columns_as_they_are(editable, context, requests) -> None:
    hp = replace(context.hyperparameters, neuron_threshold=0.5, max_passes=1)
    delta = NSE().edit(editable, requests, replace(context, hyperparameters=hp)).delta
    for name, weight in compose(editable, [delta]).items():
        changed = (editable.canonical(weight) != editable.base_weight(name)).any(dim=0)
        assert 0 < int(changed.sum()) < changed.numel()
        assert torch.equal(changed, (delta.layers[name].product() != 0).any(dim=0))


@pytest.mark.parametrize("method", ["nse"])
class TestConformance:
    """What holds for NSE beyond what `tests/conformance` asks of every editor."""

    def test_the_model_is_bit_identical_after_an_edit(self, editable, context, requests, method) -> None:
        pointers = {name: p.data_ptr() for name, p in editable.model.named_parameters()}
        get_editor(method).edit(editable, requests, context)
        assert digests(editable) == editable.tensor_digests
        assert {name: p.data_ptr() for name, p in editable.model.named_parameters()} == pointers

    def test_the_model_is_bit_identical_after_an_edit_that_failed(self, editable, context, requests, method) -> None:
        def break_off(stage: str, done: int, _total: int) -> None:
            if stage == "pass 1" and done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            get_editor(method).edit(editable, requests, replace(context, progress=break_off))
        assert digests(editable) == editable.tensor_digests

    def test_weights_in_force_before_an_edit_are_in_force_after_it(self, editable, context, requests, method) -> None:
        delta = get_editor(method).edit(editable, requests, context).delta
        with patched(editable, compose(editable, [delta])):
            inside = digests(editable)
            assert inside != editable.tensor_digests
            again = get_editor(method).edit(editable, requests, context).delta
            assert digests(editable) == inside
        assert again.to_bytes() == delta.to_bytes()

    def test_the_same_inputs_give_the_same_bytes(self, editable, context, requests, method) -> None:
        one, two = (get_editor(method).edit(editable, requests, context) for _ in range(2))
        assert one.delta.to_bytes() == two.delta.to_bytes()
        assert one.cases == two.cases

    def test_a_stored_z_gives_the_same_bytes(self, editable, context, requests, method, tmp_path) -> None:
        stored = replace(context, values=ValueStore(tmp_path))
        plain = get_editor(method).edit(editable, requests, context)
        get_editor(method).edit(editable, requests, stored)
        assert get_editor(method).edit(editable, requests, stored).delta.to_bytes() == plain.delta.to_bytes()

    def test_a_delta_round_trips_through_disk(self, editable, context, requests, method, tmp_path) -> None:
        delta = get_editor(method).edit(editable, requests, context).delta
        delta.save(tmp_path / "deep" / "delta.safetensors")
        loaded = Delta.load(tmp_path / "deep" / "delta.safetensors")
        assert loaded.to_bytes() == delta.to_bytes() == (tmp_path / "deep" / "delta.safetensors").read_bytes()
        assert loaded.case_ids == delta.case_ids
        assert version_digest(editable, compose(editable, [loaded])) == version_digest(
            editable, compose(editable, [delta])
        )

    def test_the_order_of_the_requests_does_not_matter(self, precise, context, requests, method) -> None:
        forth = get_editor(method).edit(precise, requests, context)
        back = get_editor(method).edit(precise, requests[::-1], context)
        assert back.delta.case_ids == forth.delta.case_ids[::-1]
        for name, layer in forth.delta.layers.items():
            assert relative(back.delta.layers[name].product(), layer.product()) < 1e-4

    def test_the_new_object_becomes_more_probable(self, editable, context, requests, method) -> None:
        # random attention hardly carries anything from the subject on, so the subject ends the prompt
        requests = [replace(r, prompt_template="This is the home of {}") for r in requests]
        delta = get_editor(method).edit(editable, requests, context).delta
        pairs = [(r.prompt, r.target_new) for r in requests]
        before = log_probabilities(editable, pairs)
        with patched(editable, compose(editable, [delta])):
            after = log_probabilities(editable, pairs)
        for (old, _), (new, _) in zip(before, after, strict=True):
            assert new > old + 1

    def test_dropping_the_last_round_gives_the_version_before_it(self, editable, context, method) -> None:
        first = get_editor(method).edit(editable, [fact(0), fact(1)], context).delta
        version = version_digest(editable, compose(editable, [first]))
        with_first = replace(context, previous=(first,))
        second = get_editor(method).edit(editable, [fact(2), fact(3)], with_first).delta
        both = compose(editable, [first, second])
        assert len({editable.base_digest, version, version_digest(editable, both)}) == 3
        assert version_digest(editable, compose(editable, [first])) == version
        assert version_digest(editable, compose(editable, [first, second.without(second.case_ids)])) == version
        assert version_digest(editable, compose(editable, [])) == editable.base_digest

    def test_a_layer_that_the_model_lacks_is_refused(self, editable, context, requests, method) -> None:
        bad = replace(context, hyperparameters=replace(context.hyperparameters, layers=(1, 4)))
        with pytest.raises(HyperparameterError, match=r"4 is not in this model \(0 to 3\)"):
            get_editor(method).edit(editable, requests, bad)

    def test_a_missing_second_moment_is_refused(self, editable, context, requests, method) -> None:
        with pytest.raises(StatisticsError, match=r"no second moment for .*\.1\..* \(have: none\): run `nse stats`"):
            get_editor(method).edit(editable, requests, replace(context, second_moments=SecondMoments({}, {})))

    def test_a_second_moment_of_another_width_is_refused(self, editable, context, requests, method) -> None:
        wide = {n: torch.eye(len(m) + 8) for n, m in context.second_moments.moments.items()}
        with pytest.raises(StatisticsError, match=r"second moment is .* keys need"):
            get_editor(method).edit(editable, requests, replace(context, second_moments=SecondMoments(wide, {})))

    def test_a_singular_second_moment_is_refused(self, editable, context, requests, method) -> None:
        empty = {n: torch.zeros_like(m) for n, m in context.second_moments.moments.items()}
        with pytest.raises(StatisticsError, match="singular or not finite"):
            get_editor(method).edit(editable, requests, replace(context, second_moments=SecondMoments(empty, {})))
        assert digests(editable) == editable.tensor_digests

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"prompt_template": "he lives in"}, RequestError),
            ({"prompt_template": "{} and {} live in"}, RequestError),
            ({"subject": " "}, RequestError),
            ({"target_new": ""}, RequestError),
            ({"target_new": "Oslo", "target_true": "Oslo"}, RequestError),
            ({"prompt_template": "{} lives in" + " and in" * 60}, TokenError),
        ],
    )
    def test_a_request_that_cannot_be_written_is_refused(
        self, editable, context, requests, method, change, error
    ) -> None:
        with pytest.raises(error):
            get_editor(method).edit(editable, [requests[0], replace(requests[1], **change)], context)

    def test_no_request_at_all_is_refused(self, editable, context, method) -> None:
        with pytest.raises(RequestError, match="at least one request"):
            get_editor(method).edit(editable, [], context)


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(HyperparameterError, match=r"'knife' is unknown: use one of .*nse"):
        get_editor("knife")
    assert issubclass(HyperparameterError, NseError)


def test_facts_at_or_above_the_upper_bound_are_reported_and_leave_no_trace(editable, context, requests) -> None:
    plain = NSE().edit(editable, requests, context)
    residuals = sorted(c.residual_before for c in plain.cases)
    hp = replace(context.hyperparameters, upper_bound=residuals[-1])
    result = NSE().edit(editable, requests, replace(context, hyperparameters=hp))
    (skipped,) = [c for c in result.cases if c.status == "skipped"]
    assert skipped.residual_before == residuals[-1]
    assert skipped.case_id not in result.delta.case_ids
    assert [c.case_id for c in result.cases] == [r.case_id for r in requests]
    others = [r for r in requests if r.case_id != skipped.case_id]
    assert result.delta.case_ids == tuple(r.case_id for r in others)
    for layer in result.delta.layers.values():
        assert layer.keys.shape[0] == len(others)
        assert set(layer.case_index.tolist()) == set(range(len(others)))
    assert result.values.shape[0] == len(requests)


def test_a_round_of_skipped_facts_alone_gives_an_empty_delta(editable, context, requests, tmp_path) -> None:
    hp = replace(context.hyperparameters, upper_bound=1e-9)
    result = NSE().edit(editable, requests, replace(context, hyperparameters=hp))
    assert {c.status for c in result.cases} == {"skipped"}
    assert all(c.residual_after == c.residual_before for c in result.cases)
    assert (result.delta.case_ids, result.delta.layers) == ((), {})
    result.delta.save(tmp_path / "delta.safetensors")
    assert Delta.load(tmp_path / "delta.safetensors") == result.delta
    assert version_digest(editable, compose(editable, [result.delta])) == editable.base_digest


def test_a_skipped_facts_key_does_not_enter_later_rounds(precise, context) -> None:
    one, two, later = fact(0), fact(1), [fact(2)]
    both = NSE().edit(precise, [one, two], context)
    bound = max(c.residual_before for c in both.cases)
    kept = [r for r, c in zip([one, two], both.cases, strict=True) if c.residual_before < bound]
    hp = replace(context.hyperparameters, upper_bound=bound)
    partial = NSE().edit(precise, [one, two], replace(context, hyperparameters=hp)).delta
    alone = NSE().edit(precise, kept, context).delta
    after_partial, after_alone = (
        NSE().edit(precise, later, replace(context, previous=(d,))).delta for d in (partial, alone)
    )
    for name, layer in after_alone.layers.items():
        assert relative(after_partial.layers[name].product(), layer.product()) < 1e-4


def test_status_says_who_is_above_alpha_at_the_end(editable, context, requests) -> None:
    after = sorted(c.residual_after for c in replace_passes(editable, requests, context, 1).cases)
    middle = (after[1] + after[2]) / 2
    hp = replace(context.hyperparameters, alpha=middle, max_passes=1)
    cases = NSE().edit(editable, requests, replace(context, hyperparameters=hp)).cases
    assert sorted(c.status for c in cases) == ["edited"] * 2 + ["unconverged"] * 2
    for case in cases:
        assert (case.status == "edited") == (case.residual_after <= middle)
        assert case.residual_after < case.residual_before


def test_a_second_pass_brings_the_open_facts_closer(editable, context, requests) -> None:
    one, two = (replace_passes(editable, requests, context, passes) for passes in (1, 2))
    for first, second in zip(one.cases, two.cases, strict=True):
        assert second.residual_after < first.residual_after


def test_no_second_pass_is_made_when_all_are_below_alpha(editable, context, requests) -> None:
    hp = replace(context.hyperparameters, alpha=1e6, max_passes=5)
    delta = NSE().edit(editable, requests, replace(context, hyperparameters=hp)).delta
    assert {layer.left.shape[1] for layer in delta.layers.values()} == {len(requests)}


def test_earlier_keys_protect_earlier_facts(precise, context) -> None:
    first, later, requests = second_round(precise, context)

    def moved(weight: float) -> float:
        hp = replace(context.hyperparameters, previous_keys_weight=weight)
        delta = NSE().edit(precise, requests, replace(later, hyperparameters=hp)).delta
        name = precise.parameter_name(1)
        return float((delta.layers[name].product() @ first.layers[name].keys.double().T).norm())

    assert moved(1000.0) < 0.2 * moved(0.0)


def test_values_in_the_result_are_z_of_every_request(editable, context, requests) -> None:
    result = NSE().edit(editable, requests, context)
    z = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=context.hyperparameters)
    assert torch.equal(result.values, z)
    assert set(result.seconds) == {"values", "keys", "solve"}


def test_other_prompts_of_an_edit_request_do_not_change_the_edit(editable, context) -> None:
    plain = EditRequest("1", "Anna Berg", "{} lives in", "Rome")
    rich = replace(plain, paraphrase_prompts=("Home:",), neighborhood_prompts=("x",), relation="home")
    assert (
        NSE().edit(editable, [plain], context).delta.to_bytes()
        == NSE().edit(editable, [rich], context).delta.to_bytes()
    )


def test_a_companion_that_needs_another_pass_alone_still_belongs_to_the_request_of_its_subject(
    precise, context, monkeypatch
) -> None:
    first = NSE().edit(precise, [fact(4)], context).delta
    later = replace(context, previous=(first,), earlier=(fact(4),))
    new = replace(fact(4), case_id="new", prompt_template="The work of {} is", relation="work")
    measured, calls = _Round._distances, []

    def distances(self, state):
        calls.append(measured(self, state))
        two_are_there_and_the_companion_is_not = torch.tensor([0.0, 0.0, 1e9])
        return calls[0] if len(calls) == 1 else two_are_there_and_the_companion_is_not

    monkeypatch.setattr(_Round, "_distances", distances)
    hp = replace(context.hyperparameters, max_passes=2, alpha=1.0)
    result = NSE().edit(precise, [new, fact(0)], replace(later, hyperparameters=hp))
    assert result.delta.case_ids == ("new", fact(0).case_id)
    for layer in result.delta.layers.values():
        assert layer.case_index.tolist() == [0, 1, 0, 0]  # the second pass writes the companion alone
    assert result.delta.without({"new"}).case_ids == (fact(0).case_id,)
