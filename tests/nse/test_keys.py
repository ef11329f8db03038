"""Keys and hidden states against one forward pass per text."""

import pytest
import torch

import nse.keys
from nse.architecture import EditableModel
from nse.errors import TokenError
from nse.keys import KeyTexts, measure
from nse.patch import patched
from nse.request import EditRequest
from nse.steps import Step
from tests.nse import oracle
from tests.nse.conftest import CONTEXTS


@pytest.mark.parametrize("fact_token", ["subject_last", "last"])
def test_keys_are_means_of_means_and_hidden_states_those_of_the_bare_prompt(precise, requests, fact_token) -> None:
    seen = measure(precise, requests, CONTEXTS, key_layers=(1, 2), hidden_layer=2, fact_token=fact_token)
    for i, request in enumerate(requests):
        for layer in (1, 2):
            expected = oracle.key_of(precise, precise.model, request, CONTEXTS, layer, fact_token=fact_token)
            torch.testing.assert_close(seen.keys[layer][:, i], expected, rtol=1e-9, atol=1e-10)
        hidden = oracle.hidden_at(precise, precise.model, oracle.wrapped("{}", request, fact_token), 2)
        torch.testing.assert_close(seen.hidden[:, i], hidden, rtol=1e-9, atol=1e-10)


def test_padding_and_company_do_not_matter(editable, requests) -> None:
    long = EditRequest("long", "Femke Groot", "A long way from here, as all the world knows, {} lives in", "Riga")
    together = measure(editable, [long, *requests], CONTEXTS, key_layers=(1,), hidden_layer=2)
    for i, request in enumerate(requests, 1):
        alone = measure(editable, [request], CONTEXTS, key_layers=(1,), hidden_layer=2)
        torch.testing.assert_close(together.keys[1][:, i], alone.keys[1][:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.hidden[:, i], alone.hidden[:, 0], rtol=1e-4, atol=1e-5)


def test_what_is_in_force_is_measured(editable, requests) -> None:
    name = editable.parameter_name(0)
    base = measure(editable, requests, CONTEXTS, key_layers=(1,), hidden_layer=2)
    with patched(editable, {name: editable.base_tensors[name] * 3}):
        changed = measure(editable, requests, CONTEXTS, key_layers=(1,), hidden_layer=2)
    assert not torch.allclose(base.keys[1], changed.keys[1])
    assert not torch.allclose(base.hidden, changed.hidden)


def test_what_follows_the_subject_does_not_matter(precise) -> None:
    requests = [EditRequest(str(i), "Anna Berg", t, "Rome") for i, t in enumerate(("{} lives in", "{} works for the"))]
    seen = measure(precise, requests, CONTEXTS, key_layers=(1,), hidden_layer=2)
    torch.testing.assert_close(seen.keys[1][:, 0], seen.keys[1][:, 1], rtol=1e-9, atol=1e-10)


def test_a_prompt_longer_than_the_model_is_refused(editable) -> None:
    request = EditRequest("1", "Anna Berg", "and in " * 60 + "{} lives in", "Rome")
    with pytest.raises(TokenError, match="tokens, the model takes 96"):
        measure(editable, [request], CONTEXTS, key_layers=(1,), hidden_layer=2)


def test_a_share_of_the_key_is_that_of_the_subject_alone(precise, requests) -> None:
    alone = [EditRequest(r.case_id, r.subject, "{}", r.target_new) for r in requests]
    prompts = measure(precise, requests, CONTEXTS, key_layers=(1,), hidden_layer=2)
    subjects = measure(precise, alone, CONTEXTS, key_layers=(1,), hidden_layer=2)
    mixed = measure(precise, requests, CONTEXTS, key_layers=(1,), hidden_layer=2, subject_share=0.25)
    torch.testing.assert_close(mixed.keys[1], 0.75 * prompts.keys[1] + 0.25 * subjects.keys[1])
    assert not torch.allclose(prompts.keys[1], subjects.keys[1])
    torch.testing.assert_close(mixed.hidden, prompts.hidden)


def passes(editable: EditableModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """From now on, of each block that runs its index and its batch's shape."""
    seen: list[tuple[int, list[int]]] = []
    for index in range(editable.layers):
        block = editable.block(index)

        def forward(hidden, *args, of=block.forward, index=index, **kwargs):  # type: ignore[no-untyped-def]
            seen.append((index, list(hidden.shape[:2])))
            return of(hidden, *args, **kwargs)

        monkeypatch.setitem(vars(block), "forward", forward)  # which goes again: blocks have none of their own
    return seen


def test_a_text_that_another_begins_with_is_read_in_it(precise, monkeypatch) -> None:
    fact = EditRequest("0", "Anna Berg", "{} lives in", "Rome near Riga")
    steps = [Step("0", "Anna Berg", "{} lives in", "Rome near Riga", step=n) for n in (1, 2)]
    alone = [
        measure(precise, [f], CONTEXTS, key_layers=(1, 2), hidden_layer=2, fact_token="last") for f in (fact, *steps)
    ]
    ran = passes(precise, monkeypatch)
    together = measure(precise, [fact, *steps], CONTEXTS, key_layers=(1, 2), hidden_layer=2, fact_token="last")
    assert sum(rows for index, (rows, _) in ran if index == 0) == sum(map(len, CONTEXTS)), "one text for all three"
    for i, seen in enumerate(alone):
        for layer in (1, 2):
            torch.testing.assert_close(together.keys[layer][:, i], seen.keys[layer][:, 0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(together.hidden[:, i], seen.hidden[:, 0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("room", [1 << 30, 0])
def test_what_stands_below_the_first_written_layer_is_computed_once_while_there_is_room(
    editable, requests, monkeypatch, room
) -> None:
    monkeypatch.setattr(nse.keys, "MOST_KEPT", room)
    ran = passes(editable, monkeypatch)
    texts = KeyTexts(editable, requests, CONTEXTS, first_written=2)
    first = texts.measure(key_layers=(2, 3), hidden_layer=3)
    name = editable.parameter_name(2)
    with patched(editable, {name: editable.base_tensors[name] * 3}):
        fresh = measure(editable, requests, CONTEXTS, key_layers=(2, 3), hidden_layer=3)
        ran.clear()
        again = texts.measure(key_layers=(2, 3), hidden_layer=3)
    assert {index for index, _ in ran} == ({2, 3} if room else {0, 1, 2, 3})
    assert torch.equal(again.hidden, fresh.hidden)
    assert all(torch.equal(again.keys[layer], fresh.keys[layer]) for layer in (2, 3))
    assert not torch.equal(again.hidden, first.hidden)


def test_after_a_write_only_what_stands_above_is_computed_again_and_contexts_are_read_once(
    precise, requests, monkeypatch
) -> None:
    ran = passes(precise, monkeypatch)
    texts = KeyTexts(precise, requests, CONTEXTS, first_written=1)
    layers, weights = (1, 2, 3), {}
    texts.measure(key_layers=layers, hidden_layer=3)
    whole = sum(rows * tokens for index, (rows, tokens) in ran if index == 0)
    for layer in (*layers, *layers):
        name = precise.parameter_name(layer)
        weights[name] = weights.get(name, precise.base_tensors[name]) * 1.5
        with patched(precise, weights):
            ran.clear()
            seen = texts.measure(key_layers=layers, hidden_layer=3, changed=layer)
            assert {index for index, _ in ran} == set(range(layer, 4))
            ran.clear()
            fresh = measure(precise, requests, CONTEXTS, key_layers=layers, hidden_layer=3)
        torch.testing.assert_close(seen.hidden, fresh.hidden, rtol=1e-12, atol=1e-12)
        for key in layers:
            torch.testing.assert_close(seen.keys[key], fresh.keys[key], rtol=1e-12, atol=1e-12)
    separate = sum(
        len(oracle.placed(precise, c, r, "subject_last")[0][: oracle.placed(precise, c, r, "subject_last")[1] + 1])
        for r in requests
        for group in CONTEXTS
        for c in group
    )
    assert whole < 0.85 * separate


def test_hidden_states_alone_can_be_measured(editable, requests) -> None:
    alone = measure(editable, requests, CONTEXTS, key_layers=(), hidden_layer=1)
    assert alone.keys == {}
    expected = measure(editable, requests, CONTEXTS, key_layers=(0, 1), hidden_layer=1).hidden
    torch.testing.assert_close(alone.hidden, expected)
