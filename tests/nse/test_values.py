"""The target state z: agreement with the oracle, rewinding, independence of the batch, the store."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import EditableModel
from nse.errors import TokenError
from nse.hyperparameters import Hyperparameters
from nse.objective import compute_z, texts_of
from nse.patch import patched
from nse.request import EditRequest
from nse.subjects import SubjectFacts, by_subject
from nse.trace import capture_outputs
from nse.values import ValueStore, value_keys, values_for
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS, digests


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def value_key(editable, request, contexts, settings, held=()) -> str:
    return value_keys(editable, [request], SubjectFacts((0,), tuple(held)), contexts, settings)[0]


def test_compute_z_agrees_with_the_one_fact_at_a_time_oracle(precise, requests, settings) -> None:
    fast = compute_z(precise, requests, contexts=CONTEXTS, hyperparameters=settings)
    for z, request in zip(fast, requests, strict=True):
        slow = oracle.compute_z(precise, request, contexts=CONTEXTS, hyperparameters=settings)
        assert relative(z, slow) < 1e-4


def test_compute_z_agrees_with_the_oracle_when_facts_stop_at_different_steps(precise, requests, settings) -> None:
    losses = [
        -float(oracle.target_score(precise, r.prompt, r.target_new)[0])
        / oracle.target_score(precise, r.prompt, r.target_new)[1]
        for r in requests
    ]
    early = replace(settings, v_loss_target=sorted(losses)[1], v_weight_decay=0.0)
    fast = compute_z(precise, requests, contexts=CONTEXTS[:1], hyperparameters=early)
    moved = []
    for z, request in zip(fast, requests, strict=True):
        slow = oracle.compute_z(precise, request, contexts=CONTEXTS[:1], hyperparameters=early)
        assert relative(z, slow) < 1e-4
        h = oracle.hidden_at(precise, precise.model, oracle.wrapped("{}", request), early.z_layer)
        moved.append(relative(slow, h) > 1e-6)
    assert any(moved)
    assert not all(moved)


def test_z_lowers_the_loss_that_it_is_made_for(precise, requests, settings) -> None:
    request = requests[0]
    z = compute_z(precise, [request], contexts=CONTEXTS[:1], hyperparameters=settings)[0]
    text = oracle.wrapped("{}", request)
    h = oracle.hidden_at(precise, precise.model, text, settings.z_layer)
    before, _ = oracle.target_score(precise, text[0], request.target_new)
    at = oracle.subject_last(precise, *text)
    with oracle.output_shifted(precise.block(settings.z_layer), at, z.double() - h):
        after, _ = oracle.target_score(precise, text[0], request.target_new)
    assert float(after) > float(before) + 0.5


def test_the_shift_is_clamped_to_a_share_of_the_hidden_state(precise, requests, settings) -> None:
    tight = replace(settings, clamp_norm_factor=0.05)
    z = compute_z(precise, requests, contexts=CONTEXTS, hyperparameters=tight)
    shares = []
    for row, request in zip(z, requests, strict=True):
        h = oracle.hidden_at(precise, precise.model, oracle.wrapped("{}", request), tight.z_layer)
        shares.append(float((row.double() - h).norm() / h.norm()))
    assert max(shares) == pytest.approx(0.05, rel=1e-4)
    assert min(shares) > 0.01


def test_who_else_is_in_the_batch_does_not_matter(precise, requests, settings) -> None:
    together = compute_z(precise, requests, contexts=CONTEXTS, hyperparameters=settings)
    long = EditRequest("long", "Femke Groot", "A long way from here, as all the world knows, {} lives in", "Riga")
    alone = compute_z(precise, requests[1:2], contexts=CONTEXTS, hyperparameters=settings)
    padded = compute_z(precise, [long, *requests[::-1]], contexts=CONTEXTS, hyperparameters=settings)
    assert relative(alone[0], together[1]) < 1e-5
    assert relative(padded[1:].flip(0), together) < 1e-5


def test_the_same_inputs_give_the_same_bits(editable, requests, settings) -> None:
    first = compute_z(editable, requests, contexts=CONTEXTS, hyperparameters=settings)
    assert torch.equal(first, compute_z(editable, requests, contexts=CONTEXTS, hyperparameters=settings))


def test_z_does_not_depend_on_the_weights_in_force(editable, requests, settings) -> None:
    base = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=settings)
    name = editable.parameter_name(1)
    with patched(editable, {name: editable.base_tensors[name] * 2}):
        inside = digests(editable)
        edited = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=settings)
        without = compute_z(editable, requests, contexts=CONTEXTS, hyperparameters=settings)
        assert digests(editable) == inside
    assert torch.equal(base, edited)
    assert not torch.allclose(base, without)


def test_more_facts_than_one_batch_keep_their_order(editable, settings) -> None:
    quick = replace(settings, v_num_grad_steps=1)
    many = [EditRequest(str(i), f"Person {i}", "{} lives in", "Rome") for i in range(18)]
    z = values_for(editable, many, contexts=CONTEXTS[:1], hyperparameters=quick)
    assert z.shape == (18, editable.model.config.hidden_size)
    last = compute_z(editable, many[17:], contexts=CONTEXTS[:1], hyperparameters=quick)
    torch.testing.assert_close(z[17:], last, rtol=1e-3, atol=1e-4)


def test_a_hit_in_the_store_gives_the_stored_z_and_runs_no_model(editable, requests, settings, tmp_path) -> None:
    store = ValueStore(tmp_path / "values")
    first = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=settings, store=store)
    assert len(list(store.folder.glob("*.safetensors"))) == len(requests)
    assert len(list(store.folder.iterdir())) == len(requests)
    with capture_outputs({"block": editable.block(0)}) as seen:
        again = values_for(editable, requests[::-1], contexts=CONTEXTS, hyperparameters=settings, store=store)
    assert torch.equal(again.flip(0), first)
    assert not seen


@pytest.mark.parametrize(
    "change",
    [
        {"v_lr": 0.21},
        {"v_num_grad_steps": 9},
        {"v_weight_decay": 0.4},
        {"clamp_norm_factor": 1.1},
        {"kl_factor": 0.1},
        {"v_loss_target": 0.06},
        {"target_ending": "."},
        {"layers": (1,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_of_z_is_a_miss(editable, requests, settings, change) -> None:
    old, new = (value_key(editable, requests[0], CONTEXTS, s) for s in (settings, replace(settings, **change)))
    assert old != new


@pytest.mark.parametrize(
    "change",
    [{"mom2_update_weight": 9.0}, {"alpha": 9.0}, {"max_passes": 1}, {"neuron_threshold": 0.5}, {"layers": (0, 2)}],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_z_does_not_depend_on_is_a_hit(editable, requests, settings, change) -> None:
    old, new = (value_key(editable, requests[0], CONTEXTS, s) for s in (settings, replace(settings, **change)))
    assert old == new


@pytest.mark.parametrize("field", ["subject", "prompt_template", "target_new"])
def test_a_changed_request_is_a_miss(editable, requests, settings, field) -> None:
    other = replace(requests[0], **{field: "{} 2"})
    assert value_key(editable, other, CONTEXTS, settings) != value_key(editable, requests[0], CONTEXTS, settings)


def test_other_contexts_another_model_or_its_precision_are_a_miss(loaded, requests, settings) -> None:
    models = [loaded(f, d) for f in ("gpt2", "llama") for d in (torch.float32, torch.float64)]
    keys = {value_key(m, requests[0], c, settings) for m in models for c in (CONTEXTS, CONTEXTS[:1])}
    assert len(keys) == 8


def test_a_miss_is_computed_and_a_hit_beside_it_is_kept(editable, requests, settings, tmp_path) -> None:
    store = ValueStore(tmp_path)
    marked = torch.arange(editable.model.config.hidden_size, dtype=torch.float32)
    store.put(value_key(editable, requests[2], CONTEXTS, settings), marked)
    z = values_for(editable, requests, contexts=CONTEXTS, hyperparameters=settings, store=store)
    assert torch.equal(z[2], marked)
    fresh = compute_z(
        editable, [r for r in requests if r is not requests[2]], contexts=CONTEXTS, hyperparameters=settings
    )
    assert torch.equal(z[[0, 1, 3]], fresh)


def test_a_target_beyond_the_models_vocabulary_is_refused(editable: EditableModel, settings: Hyperparameters) -> None:
    editable.tokenizer.add_tokens(["<city>"])
    try:
        request = EditRequest("1", "Anna Berg", "{} lives in", "<city>")
        with pytest.raises(TokenError, match="'<city>' has a token beyond the model's 320"):
            compute_z(editable, [request], contexts=CONTEXTS, hyperparameters=settings)
    finally:
        editable.__dict__["tokenizer"] = type(editable.tokenizer).from_pretrained(editable.model.config._name_or_path)


def test_a_prompt_longer_than_the_model_is_refused(editable, settings) -> None:
    request = EditRequest("1", "Anna Berg", "{} lives in" + " and in" * 60, "Rome")
    with pytest.raises(TokenError, match="tokens, the model takes 96"):
        compute_z(editable, [request], contexts=CONTEXTS, hyperparameters=settings)


@pytest.mark.parametrize(
    ("target", "fact_token", "said"),
    [("Rome", "subject_last", "Rome."), ("U.S.", "subject_last", "U.S."), ("Rome", "last", "Rome")],
)
def test_z_makes_the_model_end_its_answer_where_it_has_no_end_of_its_own(
    editable, requests, settings, target, fact_token, said
) -> None:
    request, ended = (
        replace(requests[0], target_new=target),
        replace(settings, target_ending=".", fact_token=fact_token),
    )
    (group,) = by_subject([request], (), joint=True)
    text = texts_of(editable, [request], group, CONTEXTS[:1], ended)[0]
    assert editable.decode(list(text.prompt.target_ids)).strip() == said
