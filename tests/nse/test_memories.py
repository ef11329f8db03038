"""Memories beside the weights: how they are folded, put in force and taken out, and how prompts find their way."""

from contextlib import nullcontext
from dataclasses import replace
from math import exp
from statistics import fmean

import pytest
import torch

from nse.architecture import EditableModel
from nse.delta import Memory
from nse.editors import EditContext, get_editor
from nse.errors import DeltaError, HyperparameterError
from nse.evaluation.generate import generate
from nse.evaluation.questions import Question, reply
from nse.evaluation.score import log_probabilities, perplexity
from nse.hyperparameters import Hyperparameters
from nse.memories import remembering, routed
from nse.memories.grace import folded
from nse.memories.states import entering
from nse.patch import Weights, base_in_force, compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments
from nse.targets import target_states
from nse.tokens import tokenize
from tests.nse.conftest import CONTEXTS, fact

SETTINGS = Hyperparameters(layers=(2,), own={"eps": 0.05, "lr": 0.5, "steps": 25})


@pytest.fixture
def requests() -> list[EditRequest]:
    """Targets of one token: a value reaches one position of a random model, and no token after it."""
    return [replace(fact(i), target_new=word) for i, word in enumerate(("no", "of", "the", "home"))]


def book(*entries: tuple[tuple[float, float], str], eps: float = 1.0, layer: int = 0) -> Memory:
    """A codebook of keys in the plane with their targets; the value of the i-th is (i, i)."""
    keys = torch.tensor([key for key, _ in entries])
    values = torch.arange(float(len(entries)))[:, None].repeat(1, 2)
    index = torch.arange(len(entries), dtype=torch.int32)
    texts = tuple(target for _, target in entries)
    return Memory("grace", {"keys": keys, "values": values}, index, {}, {"layer": layer, "eps": eps}, texts)


def grace(editable: EditableModel, requests, previous=(), settings: Hyperparameters = SETTINGS):
    context = EditContext(settings, SecondMoments({}, {}), CONTEXTS, previous=tuple(previous))
    return get_editor("grace").edit(editable, requests, context)


def test_a_key_far_from_all_others_gets_the_first_radius() -> None:
    found = folded([book(((0.0, 0.0), "Rome"), ((9.0, 0.0), "Oslo"))])
    assert found.radii.tolist() == [1.0, 1.0]


def test_a_near_key_with_the_same_target_widens_the_radius_and_is_not_kept() -> None:
    found = folded([book(((0.0, 0.0), "Rome"), ((1.5, 0.0), "Rome"))])
    assert found.keys.tolist() == [[0.0, 0.0]]
    near, values = found.looked_up(torch.tensor([[1.5, 0.0], [1.6, 0.0]]))
    assert near.tolist() == [True, False]
    assert values[0].tolist() == [0.0, 0.0]


def test_a_near_key_with_another_target_halves_the_way_between_both() -> None:
    found = folded([book(((0.0, 0.0), "Rome"), ((1.5, 0.0), "Oslo"))])
    assert found.radii.tolist() == [0.75, 0.75]
    near, values = found.looked_up(torch.tensor([[0.7, 0.0], [0.8, 0.0], [2.3, 0.0]]))
    assert near.tolist() == [True, True, False]
    assert values[:2, 0].tolist() == [0.0, 1.0]


def test_a_prompt_that_is_corrected_again_has_the_later_value() -> None:
    found = folded([book(((0.0, 0.0), "Rome")), book(((0.0, 1e-6), "Oslo"))])
    assert len(found.keys) == 1
    assert found.radii.tolist() == [1.0]
    assert folded([book(((0.0, 0.0), "Rome"), ((0.0, 1e-6), "Oslo"))]).values.tolist() == [[1.0, 1.0]]


def test_a_radius_never_grows_by_a_conflict() -> None:
    stream = [((0.0, 0.0), "Rome"), ((0.4, 0.0), "Oslo"), ((-1.1, 0.0), "Lima")]
    assert folded([book(*stream)]).radii.tolist() == pytest.approx([0.2, 0.2, 0.55])


def test_rounds_made_with_different_settings_are_refused() -> None:
    with pytest.raises(DeltaError, match="different settings"):
        folded([book(((0.0, 0.0), "Rome")), book(((5.0, 0.0), "Rome"), eps=2.0)])


def test_a_codebook_of_another_model_is_refused_and_leaves_nothing_behind(editable) -> None:
    with pytest.raises(DeltaError, match="does not fit"), remembering(editable, [book(((0.0, 0.0), "Rome"))]):
        pass
    strange = replace(book(((0.0, 0.0), "Rome")), kind="dream")
    with pytest.raises(DeltaError, match="kind 'dream' is unknown"), remembering(editable, [strange]):
        pass
    assert editable.memories == ()


def test_settings_of_grace_out_of_their_range_are_refused(editable, requests) -> None:
    for name in ("eps", "lr", "steps"):
        with pytest.raises(HyperparameterError, match=r"grace: .* is out of range"):
            grace(editable, requests, settings=replace(SETTINGS, own={name: 0}))


def test_a_value_answers_for_its_prompt_and_for_no_other(editable, requests) -> None:
    result = grace(editable, requests)
    assert [case.status for case in result.cases] == ["edited"] * 4
    others = [("The sun is", "Rome"), ("Femke Groot speaks", "Oslo")]
    before = log_probabilities(editable, others)
    with patched(editable, compose(editable, [result.delta])):
        assert all(state.right for state in target_states(editable, requests))
        assert log_probabilities(editable, others) == before
        said = generate(editable, [r.prompt for r in requests])
    assert all(text.strip().startswith(r.target_new) for text, r in zip(said, requests, strict=True))


def test_batches_and_kept_prefixes_do_not_change_what_is_remembered(editable, requests) -> None:
    delta = grace(editable, requests).delta
    long = "Today it rains and rains and rains in the whole of the land."
    pairs = [(r.prompt, t) for r in requests for t in (r.target_new, str(r.target_true), f"{r.target_new} and Rome")]
    with patched(editable, compose(editable, [delta])):
        together = log_probabilities(editable, [*pairs, (long, "again")])
        alone = [log_probabilities(editable, [pair])[0] for pair in pairs]
    for (a, count), (b, same) in zip(together[:-1], alone, strict=True):
        assert count == same
        assert a == pytest.approx(b, abs=1e-3)


def test_leaving_out_a_correction_is_as_if_it_had_never_been_made(editable, requests) -> None:
    delta = grace(editable, requests).delta
    rest = grace(editable, [requests[0], *requests[2:]]).delta
    left = delta.without([requests[1].case_id])
    pairs = [(r.prompt, r.target_new) for r in requests]
    with patched(editable, compose(editable, [left])):
        found = log_probabilities(editable, pairs)
    with patched(editable, compose(editable, [rest])):
        expected = log_probabilities(editable, pairs)
    assert [a for a, _ in found] == pytest.approx([b for b, _ in expected], abs=1e-2)
    assert found[1] == log_probabilities(editable, pairs)[1]


def test_a_second_round_adds_to_the_first_and_corrects_it(editable, requests) -> None:
    first = grace(editable, requests[:2]).delta
    again = replace(requests[0], case_id="again", target_new="speak")
    second = grace(editable, [again], previous=[first]).delta
    with patched(editable, compose(editable, [first, second])):
        states = target_states(editable, [again, requests[1], requests[0]])
    assert [state.right for state in states] == [True, True, False]


def test_the_memory_inside_replaces_the_one_around_it(editable, requests) -> None:
    weights = [compose(editable, [grace(editable, [r]).delta]) for r in requests[:2]]
    plain = target_states(editable, requests[:2])
    with patched(editable, weights[0]):
        outer = target_states(editable, requests[:2])
        with patched(editable, weights[1]):
            assert target_states(editable, requests[:2])[0] == plain[0]
            assert target_states(editable, requests[:2])[1].right
            with patched(editable, weights[0]):
                assert target_states(editable, requests[:2]) == outer
            with base_in_force(editable):
                assert target_states(editable, requests[:2]) == plain
        with patched(editable, {}):  # weights alone: the memory stays
            assert target_states(editable, requests[:2]) == outer
    assert [outer[0].right, plain[0].right] == [True, False]
    assert target_states(editable, requests[:2]) == plain


def test_states_are_the_same_in_any_batch_and_under_given_weights(editable, requests) -> None:
    texts = [tokenize(editable.tokenizer, r.prompt).ids for r in requests]
    together = entering(editable, texts, 2)
    alone = torch.cat([entering(editable, [text], 2) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    name = editable.parameter_name(0)
    other = Weights({name: torch.zeros_like(editable.base_tensors[name])})
    with patched(editable, other):
        assert not torch.allclose(entering(editable, texts, 2), together, atol=1e-3)
        torch.testing.assert_close(entering(editable, texts, 2, weights=editable.base_tensors), together)


def told(editable: EditableModel) -> Memory:
    """A memory of serac that is asked what follows "Anna": its scope is that prompt alone, its adapter adds nothing."""
    scope = torch.eye(int(editable.model.config.hidden_size))
    ids = [tokenize(editable.tokenizer, "Anna").ids]
    entries = {"embeddings": entering(editable, ids, 1)}
    settings = {"layer": 1, "scale": 1e4}
    texts = (["Anna", "Anna lives in Rome."],)
    return Memory("serac", entries, torch.zeros(1, dtype=torch.int32), {"scope": scope}, settings, texts)


def test_a_prompt_in_scope_is_asked_behind_the_statement_and_others_as_they_are(editable) -> None:
    questions = [Question(p, ("Oslo", "Rome")) for p in ("Boris Cole", "Anna", "The sun is")]
    plain = reply(editable, questions, max_new_tokens=3)
    expected = reply(editable, [replace(questions[1], prompt="Anna lives in Rome. Anna")], max_new_tokens=3)
    with remembering(editable, [told(editable)]):
        routes = routed(editable, [q.prompt for q in questions])
        assert [route.places for route in routes] == [(1,), (0, 2)]
        assert routes[1].voice is nullcontext
        found = reply(editable, questions, max_new_tokens=3)
    assert found[1].generated == expected[0].generated
    assert [s for s, _ in found[1].scores] == pytest.approx([s for s, _ in expected[0].scores], abs=1e-3)
    for i in (0, 2):
        assert [s for s, _ in found[i].scores] == pytest.approx([s for s, _ in plain[i].scores], abs=1e-3)
        assert found[i].generated == plain[i].generated


def test_perplexity_counts_the_text_and_not_what_is_said_before_it(editable) -> None:
    plain = perplexity(editable, ["The sun is"])
    whole = tokenize(editable.tokenizer, "Anna lives in Rome.", target="Anna")
    logs = editable.model(torch.tensor([whole.ids])).logits[0].log_softmax(dim=-1)
    own = [float(logs[at - 1, whole.ids[at]]) for at in range(whole.prompt_length + 1, len(whole.ids))]
    assert own
    with remembering(editable, [told(editable)]):
        assert perplexity(editable, ["Anna"]) == pytest.approx(exp(-fmean(own)), rel=1e-4)
        assert perplexity(editable, ["The sun is"]) == pytest.approx(plain, rel=1e-4)


def test_of_two_edits_of_one_prompt_the_later_is_told(editable) -> None:
    first = told(editable)
    later = replace(first, texts=(["Anna", "Anna lives in Oslo."],))
    with remembering(editable, [first, later]):
        assert routed(editable, ["Anna"])[0].before == ("Anna lives in Oslo.",)


def test_rounds_of_different_trained_files_are_refused(editable) -> None:
    first = told(editable)
    other = replace(first, shared={"scope": 2 * first.shared["scope"]})
    with pytest.raises(DeltaError, match="different trained files"), remembering(editable, [first, other]):
        pass
    strange = replace(first, shared={**first.shared, "nowhere.up": torch.zeros(1, 1)})
    with pytest.raises(DeltaError, match="does not fit the model"), remembering(editable, [strange]):
        pass
