"""What a row of the table promises of its family, on a small random model of it."""

from dataclasses import replace

import pytest
import torch

from nse.architecture import ARCHITECTURES, load_model
from nse.batch import pad
from nse.contexts import BARE
from nse.description import check_behaviour
from nse.evaluation.generate import generate
from nse.evaluation.score import log_probabilities
from nse.keys import KeyTexts
from nse.postnorm import change_before_norm
from nse.request import EditRequest
from nse.tokens import LEAD, tokenize
from nse.trace import capture_inputs, capture_outputs, resumed_above, stopped_after
from nse.values import values_for
from tests.conformance.families import CONFIGURATIONS, LAYERS, WINDOW, write
from tests.nse import oracle

TEXTS = ("Today it rains. Anna Berg lives in", "Boris is")


@pytest.fixture
def batch(model):
    return pad(model, [tokenize(model.tokenizer, text).ids for text in TEXTS])


def run(model, batch):
    return model.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state


def test_every_row_of_the_table_has_a_model_here() -> None:
    assert set(CONFIGURATIONS) == set(ARCHITECTURES)


def test_the_models_texts_outlast_their_windows(models) -> None:
    windowed = [f for f in CONFIGURATIONS if getattr(models(f).model.config, "sliding_window", None)]
    assert {"mistral", "phi3", "gemma2", "gemma3_text"} <= set(windowed)
    for family in windowed:
        assert models(family).model.config.sliding_window == WINDOW
        assert len(tokenize(models(family).tokenizer, TEXTS[0]).ids) > WINDOW


def test_a_row_passes_the_check_that_described_models_must_pass(model) -> None:
    assert model.model.config.model_type in ARCHITECTURES
    assert model.layers == LAYERS
    check_behaviour(model.model, model.architecture, model.head)


@torch.no_grad()
def test_the_head_gives_the_models_own_logits(model, batch) -> None:
    logits = model.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert torch.equal(model.head(run(model, batch)), logits)
    assert model.vocabulary == logits.shape[-1]


@torch.no_grad()
def test_captured_states_are_those_of_the_model(model, batch) -> None:
    projections = {str(i): model.projection(i) for i in range(LAYERS)}
    with (
        capture_inputs(projections) as keys,
        capture_outputs({str(i): model.block(i) for i in range(LAYERS)}) as states,
    ):
        out = model.model.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
        )
    norm = model.model.get_submodule(model.architecture.final_norm)
    for layer in range(LAYERS):
        state, width = states[str(layer)], model.base_weight(model.parameter_name(layer)).shape[1]
        assert keys[str(layer)].shape == (*batch.ids.shape, width)
        expected = out.hidden_states[layer + 1]
        assert torch.equal(norm(state) if layer == LAYERS - 1 else state, expected)


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS))
def test_resuming_above_a_layer_and_stopping_after_it_give_what_the_whole_model_gives(model, batch, layer) -> None:
    with capture_outputs({str(i): model.block(i) for i in range(LAYERS)}) as seen:
        whole = run(model, batch)
    states = dict(seen)
    with resumed_above(model, layer, lambda: states[str(layer)]):
        assert torch.equal(run(model, batch), whole)
    with capture_outputs({"h": model.block(layer)}) as seen, stopped_after(model, layer):
        stopped = run(model, batch)
    assert torch.equal(seen["h"], states[str(layer)])
    assert torch.equal(stopped, model.model.get_submodule(model.architecture.final_norm)(states[str(layer)]))
    assert torch.equal(run(model, batch), whole)


@torch.no_grad()
def test_a_pad_is_seen_by_no_token(model, batch) -> None:
    alone = run(model, pad(model, [tokenize(model.tokenizer, TEXTS[1]).ids]))
    torch.testing.assert_close(run(model, batch)[1:, : alone.shape[1]], alone, rtol=1e-4, atol=1e-4)


def test_values_are_those_of_the_oracle(model, context, facts) -> None:
    settings = replace(context.hyperparameters, v_num_grad_steps=4)
    values = values_for(model, facts, contexts=context.contexts, hyperparameters=settings)
    expected = oracle.compute_z(model, facts[-1], contexts=context.contexts, hyperparameters=settings)
    assert (values[-1] - expected).norm() <= 1e-2 * expected.norm()


def test_keys_and_states_are_those_of_the_oracle(model, context, facts) -> None:
    layers = context.hyperparameters.layers
    texts = KeyTexts(model, facts, context.contexts, first_written=layers[0])
    found, again = (texts.measure(key_layers=layers, hidden_layer=layers[-1]) for _ in range(2))
    assert torch.equal(again.hidden, found.hidden)
    assert all(torch.equal(again.keys[layer], found.keys[layer]) for layer in layers)
    for column, fact in enumerate(facts):
        for layer in layers:
            expected = oracle.key_of(model, model.model, fact, context.contexts, layer)
            torch.testing.assert_close(found.keys[layer][:, column], expected, rtol=1e-3, atol=1e-4)
        state = oracle.hidden_at(model, model.model, oracle.wrapped("{}", fact), layers[-1])
        torch.testing.assert_close(found.hidden[:, column], state.double(), rtol=1e-3, atol=1e-4)


def test_no_fact_is_written_with_the_state_of_a_first_token(family, tmp_path) -> None:
    model = load_model(write(CONFIGURATIONS[family](), tmp_path / "model", bos=False))
    fact = EditRequest("1", "x", "{} is", "far")
    found = KeyTexts(model, [fact], BARE).measure(key_layers=(1,), hidden_layer=1)
    after, first = (model.tokenizer(text)["input_ids"] for text in (f"{LEAD}x is", "x is"))
    assert len(after) == len(first) + 1
    torch.testing.assert_close(
        found.keys[1][:, 0], oracle.key_at(model, model.model, (after, 1), 1), rtol=1e-3, atol=1e-4
    )
    assert (found.keys[1][:, 0] - oracle.key_at(model, model.model, (first, 0), 1)).norm() > 1e-2


@torch.no_grad()
def test_scores_are_those_of_one_text_at_a_time(model, facts) -> None:
    pairs = [(f.prompt_template.format(f.subject), f.target_new) for f in facts]
    for (total, count), (prompt, target) in zip(log_probabilities(model, pairs), pairs, strict=True):
        expected, tokens = oracle.target_score(model, prompt, target)
        assert count == tokens
        assert total == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@torch.no_grad()
def test_generated_text_is_the_most_probable_token_by_token(model, facts) -> None:
    prompts = [f.prompt_template.format(f.subject) for f in facts]
    for prompt, text in zip(prompts, generate(model, prompts, max_new_tokens=4), strict=True):
        ids = oracle.ids_of(model, prompt)
        for _ in range(4):
            ids.append(int(oracle.log_probabilities(model.model, ids)[-1].argmax()))
        assert model.decode(ids[-4:]).startswith(text)


@torch.no_grad()
def test_the_hidden_state_turns_to_where_it_is_wanted(model, batch) -> None:
    """What `change_before_norm` asks of the projection is what brings the hidden state its change."""
    layer, post_norm = 1, model.post_norm(1)
    watched = post_norm or model.projection(layer)
    read = capture_inputs if post_norm else capture_outputs
    with read({"v": watched}) as before, capture_outputs({"h": model.block(layer)}) as states:
        run(model, batch)
    v, h = before["v"][0].T, states["h"][0].clone()
    normed = v.double() if post_norm is None else post_norm(v.T).T.double()
    wanted = torch.randn(v.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * normed.std()
    change = change_before_norm(v, wanted, post_norm).float()

    def add(_module, _inputs, output):
        output = output.clone()
        output[0] += change.T
        return output

    handle = model.projection(layer).register_forward_hook(add)
    try:
        with capture_outputs({"h": model.block(layer)}) as states:
            run(model, batch)
    finally:
        handle.remove()
    achieved = normed + (states["h"][0] - h).T
    assert (torch.cosine_similarity(achieved, normed + wanted, dim=0) > 1 - 1e-4).all()
