"""Steps: where each token of a target is written, its z and key, and that what is written for it is its correction's."""

from dataclasses import replace

import pytest
import torch

from nse.delta import Delta
from nse.editors import get_editor
from nse.errors import HyperparameterError
from nse.evaluation.generate import generate
from nse.keys import measure
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.rounds import _Round
from nse.steps import SURE, Step, facts_of_round, further_steps, step_of, written_in
from nse.values import ValueStore, values_for
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS, fact

LONG = EditRequest("long", "Anna Berg", "{} lives in", "the city of Ouagadougou", relation="home")


@pytest.fixture
def at_last(context):
    hp = replace(context.hyperparameters, fact_token="last", layers=(1,), max_passes=1, mom2_update_weight=1e-6)
    return replace(context, hyperparameters=hp)


def test_every_token_of_a_target_but_the_first_is_a_step_of_its_own(precise) -> None:
    ids = oracle.ids_of(precise, f"{LONG.prompt} {LONG.target_new}")
    before = len(oracle.ids_of(precise, LONG.prompt))
    steps = further_steps(precise, [LONG], 0.0)
    assert [step.step for step in steps] == list(range(1, len(ids) - before))
    assert len(steps) > 2
    for step in (LONG, *steps):
        prompt = written_in(precise.tokenizer, "{} lives in", step, fact_token="last", target=LONG.target_new)
        assert list(prompt.ids) == ids
        assert prompt.fact_token == before - 1 + step_of(step)
    assert {(s.case_id, s.subject, s.relation) for s in steps} == {("long", "Anna Berg", "home")}


def test_what_the_base_model_says_by_itself_is_no_step(precise) -> None:
    ids = oracle.ids_of(precise, f"{LONG.prompt} {LONG.target_new}")
    before = len(oracle.ids_of(precise, LONG.prompt))
    logs = oracle.log_probabilities(precise.model, ids)
    losses = [-float(logs[i - 1, ids[i]]) for i in range(before, len(ids))]
    middle = sorted(losses[1:])[len(losses) // 2]
    wanted = [step for step, loss in enumerate(losses) if step and loss >= middle]
    assert 0 < len(wanted) < len(losses) - 1
    other = fact(0)
    name = precise.parameter_name(1)
    with patched(precise, {name: precise.base_tensors[name] * 5}):  # whatever is in force
        found = further_steps(precise, [other, LONG, other], (middle - 1e-6) / SURE)
    assert [step.step for step in found if step.case_id == "long"] == wanted


def test_a_round_at_subjects_has_no_steps(precise, context) -> None:
    assert not any(isinstance(f, Step) for f in facts_of_round(precise, [LONG], [fact(0)], context.hyperparameters))


def test_z_and_key_of_each_step_agree_with_the_oracle(precise, at_last) -> None:
    hp = at_last.hyperparameters
    facts = facts_of_round(precise, [LONG, fact(0)], (), hp)
    fast = values_for(precise, facts, contexts=CONTEXTS, hyperparameters=hp)
    seen = measure(precise, facts, CONTEXTS, key_layers=(1,), hidden_layer=1, fact_token="last")
    for place, each in enumerate(facts):
        slow = oracle.compute_z_of_step(precise, each, contexts=CONTEXTS, hyperparameters=hp)
        assert float((fast[place].double() - slow.double()).norm() / slow.double().norm()) < 1e-4
        key = oracle.key_of(precise, precise.model, each, CONTEXTS, 1, fact_token="last")
        torch.testing.assert_close(seen.keys[1][:, place], key, rtol=1e-9, atol=1e-10)


def test_each_step_has_a_place_of_its_own_in_the_store(precise, at_last, tmp_path) -> None:
    facts = facts_of_round(precise, [LONG], (), at_last.hyperparameters)
    store = ValueStore(tmp_path)
    first = values_for(precise, facts, contexts=CONTEXTS, hyperparameters=at_last.hyperparameters, store=store)
    assert len(list(tmp_path.iterdir())) == len(facts)
    again = values_for(precise, facts, contexts=CONTEXTS, hyperparameters=at_last.hyperparameters, store=store)
    assert torch.equal(first, again)


def test_a_target_of_many_tokens_is_said_whole_and_left_out_whole(precise, at_last) -> None:
    quick = replace(at_last.hyperparameters, v_num_grad_steps=60, v_lr=0.5, v_weight_decay=0.0, clamp_norm_factor=20.0)
    bare = replace(at_last, contexts=CONTEXTS[:1], hyperparameters=quick)
    other = fact(3)
    delta = get_editor("nse").edit(precise, [LONG, other], bare).delta
    assert delta.case_ids == ("long", other.case_id)
    layer = delta.layers[precise.parameter_name(1)]
    assert set(layer.case_index.tolist()) == {0, 1}
    tokens = [len(further_steps(precise, [r], 0.0)) + 1 for r in (LONG, other)]
    assert layer.further_index.tolist() == [0] * (tokens[0] - 1) + [1] * (tokens[1] - 1)
    assert torch.bincount(layer.case_index).tolist() == tokens
    with patched(precise, compose(precise, [delta])):
        said = generate(precise, [LONG.prompt], max_new_tokens=tokens[0])[0]
    assert said.strip() == LONG.target_new
    without = delta.without({"long"}).layers[precise.parameter_name(1)]
    assert without.left.shape[1] == len(without.keys) == tokens[1]


def test_the_steps_of_what_stands_are_earlier_keys_too(precise, at_last) -> None:
    name, third = precise.parameter_name(1), fact(2)
    first = get_editor("nse").edit(precise, [third, LONG], at_last).delta
    steps = further_steps(precise, [LONG], 0.0)
    with patched(precise, compose(precise, [first])):
        keys = measure(precise, steps, CONTEXTS, key_layers=(1,), hidden_layer=1, fact_token="last").keys[1]
    own = first.without({third.case_id}).layers[name]
    torch.testing.assert_close(own.keys[1:].T.double(), keys, rtol=1e-5, atol=1e-6)

    def moved(previous: Delta, earlier: tuple[EditRequest, ...], new: EditRequest, method: str = "nse") -> float:
        hp = replace(at_last.hyperparameters, previous_keys_weight=1e6)
        later = replace(at_last, previous=(previous,), earlier=earlier, hyperparameters=hp)
        update = get_editor(method).edit(precise, [new], later).delta.layers[name]
        return float((update.product().double() @ keys).norm())

    other, again = fact(3), replace(LONG, case_id="again", target_new="the city of Quito")
    told = replace(again, case_id="told")
    unprotected = moved(first.without({"long"}), (third,), other)
    for method in ("nse", "memit_seq"):
        assert moved(first, (third, LONG), other, method) < 0.1 * unprotected
    # what is corrected again may change, and may go on to when another correction of the same fact stands
    kept = moved(first, (third, LONG), other)
    assert moved(first, (third, LONG), again) > 10 * kept
    assert moved(first, (third, LONG, told), other) > 10 * kept


def test_a_case_is_as_far_from_its_aim_as_the_furthest_of_its_tokens(precise, at_last, monkeypatch) -> None:
    facts = facts_of_round(precise, [LONG, fact(0)], (), at_last.hyperparameters)
    told = torch.arange(1.0, len(facts) + 1)
    monkeypatch.setattr(_Round, "_distances", lambda self, state: told)
    bound = replace(at_last.hyperparameters, upper_bound=float(told.max()))
    reports = get_editor("nse").edit(precise, [LONG, fact(0)], at_last).cases
    own = [max(float(told[i]) for i, f in enumerate(facts) if f.case_id == r.case_id) for r in (LONG, fact(0))]
    assert [report.residual_before for report in reports] == own
    skipped = get_editor("nse").edit(precise, [LONG, fact(0)], replace(at_last, hyperparameters=bound))
    assert [c.status == "skipped" for c in skipped.cases] == [mine == max(own) for mine in own]
    assert len(skipped.delta.case_ids) == 1


def test_rome_writes_at_the_subject_alone(precise, at_last) -> None:
    with pytest.raises(HyperparameterError, match="rome writes at the subject's last token: leave fact_token out"):
        get_editor("rome").edit(precise, [LONG], at_last)
