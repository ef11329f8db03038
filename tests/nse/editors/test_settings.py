"""The settings that later papers add to a round: each does what it says, and nothing at its default."""

from dataclasses import replace

import pytest
import torch

from nse.contexts import BARE
from nse.editors import get_editor
from nse.errors import HyperparameterError, StatisticsError
from nse.factors import FactorStore
from nse.hyperparameters import Hyperparameters
from nse.keys import KeyTexts, measure
from nse.patch import compose, patched
from nse.rounds import limited
from nse.spectrum import dominant, standing_directions
from nse.subjects import HeldFact
from nse.values import ValueStore, values_for
from tests.nse.conftest import CONTEXTS, fact


def of(context, **changes):
    return replace(context, hyperparameters=replace(context.hyperparameters, **changes))


def test_ends_writes_the_first_and_the_last_layer_each_to_a_z_of_its_own(precise, context, requests) -> None:
    # bare prompts alone: in several contexts it depends on C0 what the mean key leaves of the residual in the bare one
    context = replace(of(context, write_layers="ends", max_passes=1, mom2_update_weight=1e-6), contexts=BARE)
    result = get_editor("nse").edit(precise, requests[:2], context)
    names = [precise.parameter_name(layer) for layer in (1, 2)]
    assert sorted(result.delta.layers) == sorted(names)
    first = replace(context.hyperparameters, layers=(1,))
    z = values_for(precise, requests[:2], contexts=BARE, hyperparameters=first).double().T
    seen = measure(precise, requests[:2], BARE, key_layers=(1,), hidden_layer=1)
    written = result.delta.layers[names[0]].product() @ seen.keys[1]
    torch.testing.assert_close(written, z - seen.hidden, rtol=1e-3, atol=1e-4)  # all of it: C0 hardly weighs here
    assert [case.residual_after < 0.01 * case.residual_before for case in result.cases] == [True, True]


def test_ends_leaves_the_layers_between_alone_and_is_all_where_there_is_one(precise, context, moments_of) -> None:
    settings = replace(context.hyperparameters, layers=(0, 1, 2), write_layers="ends")
    assert settings.written_layers == (0, 2)
    assert replace(settings, write_layers="all").written_layers == (0, 1, 2)
    one = of(context, layers=(2,))
    ends = get_editor("nse").edit(precise, [fact(0)], of(one, write_layers="ends"))
    assert ends.delta.to_bytes() == get_editor("nse").edit(precise, [fact(0)], one).delta.to_bytes()


@pytest.mark.parametrize("method", ["nse", "memit_seq", "alphaedit"])
def test_nothing_falls_on_protected_directions_of_the_base_weight_on_either_side(precise, context, method) -> None:
    own = {"null_share": 0.5, "L2": 0.1} if method == "alphaedit" else {}
    context = of(context, protected_directions=3, own=own)
    delta = get_editor(method).edit(precise, [fact(0), fact(1)], context).delta
    for name, layer in delta.layers.items():
        u, _, vt = torch.linalg.svd(precise.base_weight(name).double())
        update = layer.product()
        assert update.norm() > 0
        assert float((u[:, :3].T @ update).norm() / update.norm()) < 1e-12
        assert float((update @ vt[:3].T).norm() / update.norm()) < 1e-12
        assert float((update @ vt[3]).norm() / update.norm()) > 1e-4
    assert delta.without({"case 0"}).case_ids == ("case 1",)


def test_a_share_of_directions_is_the_fewest_that_reach_it() -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64)).Q, torch.linalg.qr(torch.randn(4, 4).double()).Q
    weight = u @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)) @ v.T  # squares: 4 1 .25 .0625
    counts = {amount: dominant(weight, amount).left.shape[1] for amount in (0.5, 0.76, 0.95, 2.0)}
    assert counts == {0.5: 1, 0.76: 2, 0.95: 3, 2.0: 2}
    with pytest.raises(HyperparameterError, match="protects all 4 singular directions"):
        dominant(weight, 4)


def test_only_a_z_far_longer_than_the_mean_is_shortened_and_the_cache_has_it_whole(editable, context, tmp_path) -> None:
    values = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, -15.0]])  # lengths 3 1 1 15, mean 5
    short = limited(values, 2.0)
    assert torch.equal(short[:3], values[:3])
    torch.testing.assert_close(short[3], torch.tensor([0.0, -10.0]))
    torch.testing.assert_close(limited(values.flip(0), 2.0).flip(0), short)
    assert limited(values, 0.0) is values
    stored = replace(context, values=ValueStore(tmp_path))
    plain = get_editor("nse").edit(editable, [fact(0), fact(1), fact(2)], stored)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    tight = get_editor("nse").edit(editable, [fact(0), fact(1), fact(2)], of(stored, z_norm_limit=0.5))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert torch.equal(tight.values, plain.values)
    assert tight.delta.to_bytes() != plain.delta.to_bytes()


def test_a_ridge_stands_beside_c0_in_the_normal_equations_whatever_factor_is_kept(precise, context, requests) -> None:
    context = of(context, layers=(1,), max_passes=1, ridge=5.0)
    seen = measure(precise, requests, CONTEXTS, key_layers=(1,), hidden_layer=1)
    c0 = context.second_moments.of(precise.projection_name(1)).double()
    k = seen.keys[1]
    for factors in (FactorStore(), FactorStore(smallest_width=1)):
        result = get_editor("nse").edit(precise, requests, replace(context, factors=factors))
        residual = result.values.double().T - seen.hidden
        system = context.hyperparameters.mom2_update_weight * c0 + k @ k.T + 5.0 * torch.eye(len(k)).double()
        update = result.delta.layers[precise.parameter_name(1)].product()
        assert float((update @ system - residual @ k.T).norm() / (residual @ k.T).norm()) < 1e-9


def test_the_published_methods_do_without_what_nse_adds(editable, context) -> None:
    busy = of(
        context,
        prompt_keys_weight=5.0,
        context_spread_weight=5.0,
        known_keys_weight=5.0,
        subject_share=0.5,
        neuron_threshold=0.5,
        joint_values=True,
        upper_bound=1e-6,
        max_passes=4,
        alpha=0.0,
    )
    plain = of(context, joint_values=False, alpha=0.0)
    for method in ("memit", "memit_seq", "rome"):
        one, two = (get_editor(method).edit(editable, [fact(0), fact(6)], c).delta for c in (busy, plain))
        assert one.to_bytes() == two.to_bytes()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"L2": 0.0}, "alphaedit: L2 = 0.0 is out of range"),
        ({"null_share": 1.5}, "alphaedit: null_share = 1.5 is out of range"),
        ({"nullspace_threshold": -1}, "alphaedit: nullspace_threshold = -1.0 is out of range"),
        ({"nullspace_threshold": 1e-30}, "no eigenvalue of C0 is below nullspace_threshold = 1e-30"),
        ({"rewind": 1}, "alphaedit: rewind = 1 has the wrong type"),
    ],
)
def test_a_setting_of_alphaedit_that_cannot_be_is_named(editable, context, own, message) -> None:
    with pytest.raises(HyperparameterError, match=message):
        get_editor("alphaedit").edit(editable, [fact(0)], of(context, own=own))


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_a_second_moment_of_another_width_or_not_finite_is_refused(editable, context, method) -> None:
    own = {"null_share": 0.5} if method == "alphaedit" else {}
    context = of(context, own=own)
    wide = {n: torch.eye(len(m) + 8) for n, m in context.second_moments.moments.items()}
    broken = {n: torch.full_like(m, float("nan")) for n, m in context.second_moments.moments.items()}
    for moments, message in ((wide, "second moment is .* keys need"), (broken, "singular or not finite")):
        given = replace(context, second_moments=replace(context.second_moments, moments=moments))
        with pytest.raises(StatisticsError, match=message):
            get_editor(method).edit(editable, [fact(0)], given)


def test_the_free_share_of_directions_is_that_of_the_smallest_eigenvalues() -> None:
    c0 = torch.diag(torch.tensor([4.0, 0.1, 3.0, 0.2]))
    standing = standing_directions(c0, threshold=1e-9, free_share=0.5)
    assert torch.equal(standing.abs().sum(dim=1), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    assert standing_directions(c0, threshold=0.15, free_share=0.0).shape == (4, 3)


def test_a_later_round_of_nse_protects_what_the_other_methods_wrote(precise, context) -> None:
    for method in ("rome", "memit"):
        earlier = get_editor(method).edit(precise, [fact(0)], of(context, layers=(1,))).delta
        layer = next(iter(earlier.layers.values()))
        with patched(precise, compose(precise, [earlier])):
            seen = measure(precise, [fact(0)], CONTEXTS, key_layers=(1,), hidden_layer=1)
        torch.testing.assert_close(layer.keys.double().T, seen.keys[1], rtol=1e-6, atol=1e-6)
        later = replace(context, previous=(earlier,))

        def moved(weight: float, later=later, layer=layer) -> float:
            delta = get_editor("nse").edit(precise, [fact(1)], of(later, previous_keys_weight=weight)).delta
            return float((delta.layers[precise.parameter_name(1)].product() @ layer.keys.double().T).norm())

        assert moved(1000.0) < 0.2 * moved(0.0)


@pytest.mark.parametrize(
    ("method", "changes"),
    [("nse", {"protected_directions": 0.5}), ("alphaedit", {"own": {"null_share": 0.5, "L2": 0.1}})],
)
def test_decompositions_are_made_once_and_found_again_by_a_later_process(
    editable, context, tmp_path, monkeypatch, method, changes
) -> None:
    def edit(factors: FactorStore) -> bytes:
        context_ = of(replace(context, factors=factors), **changes)
        return get_editor(method).edit(editable, [fact(0)], context_).delta.to_bytes()

    plain, store = edit(FactorStore()), FactorStore(tmp_path)
    assert edit(store) == plain
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, None)
    assert edit(store) == edit(FactorStore(tmp_path)) == plain
    with pytest.raises(TypeError):
        edit(FactorStore())


def test_a_z_stops_so_many_steps_after_its_target_is_the_most_probable_token_everywhere(precise) -> None:
    long = Hyperparameters(
        (1,), v_num_grad_steps=20, v_lr=0.2, v_weight_decay=0.0, clamp_norm_factor=3.0, v_loss_target=0.0
    )
    facts = [
        replace(fact(i), prompt_template="The home of {}", target_new=target) for i, target in ((0, "is"), (1, "home"))
    ]

    def z(**changes) -> torch.Tensor:
        return values_for(precise, facts, contexts=CONTEXTS, hyperparameters=replace(long, **changes))

    steps = [z(v_num_grad_steps=n) for n in range(1, 17)]

    def steps_of(found: torch.Tensor, place: int) -> int:
        return next(n for n, some in enumerate(steps, 1) if torch.allclose(found[place], some[place], atol=1e-5))

    two, five = z(v_patience=2), z(v_patience=5)
    for place in range(len(facts)):
        assert 2 < steps_of(two, place) < 13
        assert steps_of(five, place) == steps_of(two, place) + 3


def test_values_of_the_first_contexts_alone_and_keys_of_all(editable, context, requests, tmp_path) -> None:
    first = of(context, value_contexts="first")
    assert first.contexts[1:], "there must be other contexts to leave out"
    shared = replace(first, values=ValueStore(tmp_path))
    result = get_editor("nse").edit(editable, requests[:2], shared)
    files = sorted(p.name for p in tmp_path.iterdir())
    bare = of(replace(context, contexts=context.contexts[:1], values=ValueStore(tmp_path)))
    alone = get_editor("nse").edit(editable, requests[:2], bare)
    assert sorted(p.name for p in tmp_path.iterdir()) == files  # the same z's
    assert torch.equal(result.values, alone.values)
    assert not torch.equal(get_editor("nse").edit(editable, requests[:2], context).values, alone.values)
    name = editable.parameter_name(context.hyperparameters.layers[0])
    assert not torch.equal(result.delta.layers[name].keys, alone.delta.layers[name].keys)


def test_the_spread_is_what_the_mean_key_lacks_of_the_keys_of_all_contexts(precise) -> None:
    facts, contexts = [fact(0), fact(1), fact(0)], CONTEXTS
    spread = KeyTexts(precise, facts, contexts, subject_share=0.25).spread(layers=(1, 2))
    for layer in (1, 2):
        alone = [measure(precise, facts[:2], ((c,),), key_layers=(1, 2), hidden_layer=2) for g in contexts for c in g]
        subject = [
            measure(precise, facts[:2], ((c,),), key_layers=(1, 2), hidden_layer=2, subject_share=1.0)
            for g in contexts
            for c in g
        ]
        shares = [w * part for part in (0.75, 0.25) for w in (0.5, 0.25, 0.25)]
        outer = sum(
            share * seen.keys[layer] @ seen.keys[layer].T
            for share, seen in zip(shares, [*alone, *subject], strict=True)
        )
        mean = measure(precise, facts[:2], contexts, key_layers=(1, 2), hidden_layer=2, subject_share=0.25).keys[layer]
        assert spread[layer].shape[1] == 2 * len(shares)  # the third fact has the keys of the first
        torch.testing.assert_close(mean @ mean.T + spread[layer] @ spread[layer].T, outer)


def test_with_the_spread_in_its_way_an_update_acts_alike_in_every_context(precise, context) -> None:
    def unlike(weight: float) -> float:
        own = of(context, layers=(1,), max_passes=1, context_spread_weight=weight)
        layer = get_editor("nse").edit(precise, [fact(0), fact(1)], own).delta.layers[precise.parameter_name(1)]
        spread = KeyTexts(precise, [fact(0), fact(1)], context.contexts).spread(layers=(1,))[1]
        update = layer.product().double()
        return float((update @ spread).norm() / (update @ layer.keys.double().T).norm())

    assert unlike(10.0) < 0.3 * unlike(0.0)


def test_what_is_known_of_other_subjects_is_out_of_an_updates_way(precise, context) -> None:
    known = tuple(HeldFact(fact(i).subject, fact(i).prompt_template, "Rome") for i in (0, 2, 3, 4))

    def moved(weight: float, held: HeldFact) -> float:
        own = replace(of(context, layers=(1,), max_passes=1, known_keys_weight=weight), held=known)
        layer = get_editor("nse").edit(precise, [fact(0), fact(1)], own).delta.layers[precise.parameter_name(1)]
        seen = measure(precise, [held], (("{}",),), key_layers=(1,), hidden_layer=1).keys[1]
        return float((layer.product().double() @ seen).norm())

    for held in known[1:]:
        assert moved(100.0, held) < 0.2 * moved(0.0, held)
    assert moved(100.0, known[0]) > 0.5 * moved(
        0.0, known[0]
    )  # its subject is corrected: that is where the edit is written


def test_at_the_last_token_each_fact_of_a_subject_has_a_key_and_a_z_of_its_own(precise, context) -> None:
    context = of(context, fact_token="last", layers=(1,), max_passes=1, mom2_update_weight=1e-6)
    lives, works = fact(0), replace(fact(0), case_id="work", prompt_template="{} works in", relation="work")
    together = get_editor("nse").edit(precise, [lives, works], context)
    first = get_editor("nse").edit(precise, [lives], context)
    assert torch.equal(together.values[0], first.values[0])
    later = replace(context, previous=(first.delta,), earlier=(lives,))
    second = get_editor("nse").edit(precise, [works], later)
    assert second.delta.case_ids == ("work",)
    with patched(precise, compose(precise, [first.delta, second.delta])):
        seen = measure(precise, [lives, works], CONTEXTS, key_layers=(1,), hidden_layer=1, fact_token="last")
    aims = torch.stack([first.values[0], second.values[0]]).double().T
    base = measure(precise, [lives, works], CONTEXTS, key_layers=(1,), hidden_layer=1, fact_token="last").hidden
    left_over = (aims - seen.hidden).norm(dim=0) / (aims - base).norm(dim=0)
    assert float(left_over.max()) < 0.5


def test_at_the_last_token_a_fact_corrected_again_is_free_of_its_earlier_key(precise, context) -> None:
    context = of(
        context, fact_token="last", layers=(1,), max_passes=1, mom2_update_weight=1e-6, previous_keys_weight=1e6
    )
    first = get_editor("nse").edit(precise, [fact(0)], context).delta
    again = replace(fact(0), case_id="again", target_new=fact(3).target_new)

    def moved(earlier) -> float:
        later = replace(context, previous=(first,), earlier=earlier)
        layer = get_editor("nse").edit(precise, [again], later).delta.layers[precise.parameter_name(1)]
        return float((layer.product().double() @ first.layers[precise.parameter_name(1)].keys.double().T).norm())

    assert moved((fact(0),)) > 10 * moved(())
