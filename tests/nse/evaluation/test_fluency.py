"""Entropy and similarity by hand; free text against drawing one text at a time through the whole model."""

import math

import pytest
import torch

from nse.architecture import EditableModel
from nse.errors import TokenError
from nse.evaluation.fluency import TOP, TfIdf, continued, free_text_metrics, ngram_entropy
from nse.fingerprint import json_digest
from nse.request import EditRequest
from nse.tokens import tokenize

PROMPTS = ["Anna Berg lives in", "The", "People say this: the home of Boris Cole is"]


def test_the_entropy_of_a_text_is_a_third_that_of_its_pairs_and_two_thirds_that_of_its_triples() -> None:
    # pairs: ab ba ab bc; triples: aba bab abc
    assert ngram_entropy("a b a b c") == pytest.approx((1 / 3) * 1.5 + (2 / 3) * math.log2(3))
    assert ngram_entropy("so on so on so on so on") < ngram_entropy("one two three four five six seven eight")
    assert ngram_entropy("again again again again") == 0.0


@pytest.mark.parametrize("text", ["", "word", "two words"])
def test_a_text_without_variety_has_no_entropy(text: str) -> None:
    assert ngram_entropy(text) == 0.0


def test_the_similarity_of_two_texts_is_the_cosine_of_their_weighted_words() -> None:
    vectors = TfIdf.of(["red fox", "red deer", "Blue deer"])
    common, rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    assert vectors.idf == pytest.approx({"red": common, "deer": common, "fox": rare, "blue": rare})
    # (2 red, fox) and (red, blue); "a" is too short, "unknown" was in no text
    expected = 2 * common * common / (math.hypot(2 * common, rare) * math.hypot(common, rare))
    assert vectors.similarity("A red, red fox", "red blue unknown") == pytest.approx(expected)
    assert vectors.similarity("red fox", "fox RED") == pytest.approx(1.0)
    assert vectors.similarity("red", "unknown") == 0.0


@torch.no_grad()
def alone(editable: EditableModel, prompt: str, tokens: int, seed: int) -> str:
    """One text by the whole model, without a cache."""
    ids = list(tokenize(editable.tokenizer, prompt).ids)
    generator = torch.Generator().manual_seed(int(json_digest([seed, ids])[:15], 16))
    while len(ids) < tokens:
        top = editable.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().topk(TOP)
        ids.append(int(top.indices[torch.multinomial(top.values.softmax(-1), 1, generator=generator)]))
    return editable.decode(ids)


def test_free_text_is_what_drawing_one_text_at_a_time_gives(editable) -> None:
    expected = [alone(editable, prompt, 24, 7) for prompt in PROMPTS]
    assert continued(editable, PROMPTS, tokens=24, seed=7) == expected
    assert continued(editable, [PROMPTS[2], PROMPTS[2]], tokens=24, seed=7) == [expected[2]] * 2
    assert continued(editable, PROMPTS, tokens=24, seed=8) != expected


def test_a_prompt_that_is_long_enough_stays_as_it_is(editable) -> None:
    assert continued(editable, PROMPTS[:1], tokens=2) == PROMPTS[:1]
    assert len(continued(editable, PROMPTS[1:2], tokens=10_000)[0]) > 20  # to the end of the model's positions


def test_an_empty_prompt_is_refused_where_the_tokenizer_gives_no_token(loaded) -> None:
    with pytest.raises(TokenError, match="no token"):
        continued(loaded("llama", torch.float32), ["The", ""])


def test_metrics_are_means_over_cases_that_have_prompts_and_references(editable) -> None:
    requests = [
        EditRequest(name, "Anna Berg", "{} is", "x", generation_prompts=tuple(own))
        for name, own in (("a", PROMPTS[:2]), ("b", PROMPTS[2:]), ("c", []))
    ]
    references = {"b": ["People of Oslo", "The home of Boris Cole"], "c": ["nobody asks"]}
    found = free_text_metrics(editable, requests, references=references, tokens=30, seed=1)
    texts = continued(editable, PROMPTS, tokens=30, seed=1)
    entropies = [ngram_entropy(text) for text in texts]
    assert found["fluency"] == pytest.approx(((entropies[0] + entropies[1]) / 2 + entropies[2]) / 2)
    vectors = TfIdf.of([*references["b"], *references["c"]])
    assert found["consistency"] == vectors.similarity(texts[2], " ".join(references["b"])) > 0
    assert set(free_text_metrics(editable, requests, tokens=30)) == {"fluency"}
    assert free_text_metrics(editable, requests[2:], references=references) == {}
