"""Free generation against transformers' own."""

import pytest
import torch

from nse.errors import TokenError
from nse.evaluation.answers import END_OF_ANSWER
from nse.evaluation.generate import generate, next_tokens

PROMPTS = ["Anna Berg lives in", "The home of", "Эмма", "Boris", "Clara Dahl lives in", "Anna Berg lives in"]


def by_transformers(editable, prompt: str, count: int) -> str:
    """One prompt at a time by `model.generate`, cut at EOS and after the first token that ends a clause."""
    ids = torch.tensor([editable.tokenizer(prompt)["input_ids"]])
    out = editable.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=1
    )
    new = []
    for token in out[0, ids.shape[1] :].tolist():
        if token == editable.tokenizer.eos_token_id:
            break
        new.append(token)
        if END_OF_ANSWER.search(editable.decode([token])):
            break
    return editable.decode(new)


@pytest.mark.parametrize("count", [1, 12])
def test_greedy_generation_is_that_of_transformers(editable, count) -> None:
    texts = generate(editable, PROMPTS, max_new_tokens=count)
    assert texts == [by_transformers(editable, p, count) for p in PROMPTS]
    assert any(texts)


def test_a_row_ends_at_its_own_eos_and_the_others_go_on(editable, monkeypatch) -> None:
    prompt = PROMPTS[0]
    ids = torch.tensor([editable.tokenizer(prompt)["input_ids"]])
    out = editable.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=1
    )
    new = out[0, ids.shape[1] :].tolist()
    cut = next(i for i, token in enumerate(new) if i and token not in new[:i])
    monkeypatch.setattr(type(editable.tokenizer), "eos_token_id", new[cut], raising=False)
    assert generate(editable, [prompt], max_new_tokens=4) == [editable.decode(new[:cut])]
    assert generate(editable, PROMPTS, max_new_tokens=4) == [by_transformers(editable, p, 4) for p in PROMPTS]


def test_progress_counts_every_prompt_once(editable) -> None:
    calls: list[tuple[str, int, int]] = []
    generate(editable, PROMPTS, max_new_tokens=1, progress=lambda *c: calls.append(c))
    assert calls[-1] == ("free generation", len(set(PROMPTS)), len(set(PROMPTS)))


def test_nothing_asked_is_nothing_answered(editable) -> None:
    assert generate(editable, []) == []


def test_a_prompt_that_leaves_no_room_is_refused(editable) -> None:
    with pytest.raises(TokenError, match="with the answer the model takes 96"):
        generate(editable, ["so and " * 60])


@torch.no_grad()
def test_next_tokens_are_the_most_probable_ones(editable) -> None:
    top = next_tokens(editable, "Anna Berg lives in", k=3)
    ids = torch.tensor([editable.tokenizer("Anna Berg lives in")["input_ids"]])
    expected = editable.model(input_ids=ids).logits[0, -1].softmax(-1).sort(descending=True)
    assert [p for _, p in top] == pytest.approx(expected.values[:3].tolist(), rel=1e-5)
    assert [t for t, _ in top] == [editable.decode([i]) for i in expected.indices[:3].tolist()]


def said_by_transformers(editable, prompt: str, count: int) -> list[int]:
    ids = torch.tensor([editable.tokenizer(prompt)["input_ids"]])
    out = editable.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=1
    )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("several", [False, True])
def test_every_eos_of_the_generation_settings_ends_a_text(editable, monkeypatch, several) -> None:
    said = said_by_transformers(editable, PROMPTS[0], 4)
    cut = next(i for i, token in enumerate(said) if i and token not in said[:i])
    eos = [editable.vocabulary + 7, said[cut]] if several else said[cut]  # one that the model cannot say is no end
    monkeypatch.setattr(editable.model.generation_config, "eos_token_id", eos)
    assert editable.end_tokens == {editable.tokenizer.eos_token_id, said[cut]}
    assert generate(editable, PROMPTS[:1], max_new_tokens=4) == [editable.decode(said[:cut])]


def test_a_chat_answer_ends_where_the_template_ends_it(editable, monkeypatch) -> None:
    said = said_by_transformers(editable, PROMPTS[0], 4)
    cut = next(i for i, token in enumerate(said) if i and token not in said[:i])
    monkeypatch.setattr("nse.architecture.end_of_answer", lambda _tokenizer: said[cut])
    assert generate(editable, PROMPTS[:1], max_new_tokens=4) == [editable.decode(said[:cut])]
