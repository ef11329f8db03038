"""Replies from shared prefixes against one text at a time through the whole model."""

import math
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from nse.architecture import EditableModel, load_model
from nse.errors import TokenError
from nse.evaluation import questions as module
from nse.evaluation.answers import END_OF_ANSWER
from nse.evaluation.prefixes import gathered, run
from nse.evaluation.questions import Question, Reply, reply
from nse.tokens import TokenizedPrompt, tokenize
from tests.nse.conftest import VOCABULARY, byte_level, corpus_lines, fast

LIMIT = 9
ASKED = [
    Question("Anna Berg lives in", ("Oslo", "Rome", "the United Kingdom")),
    Question("Anna Berg lives ", ("in Oslo", "in")),  # its space belongs to the target's first token
    Question("The home of Эмма Жук is", ("Санкт-Петербург", "Санкт-Мориц", "Санкт")),
    Question("Boris", ("Cole",)),
    Question("A long way from here, as all the world knows, Femke Groot lives in", ("Riga", "Lima, Peru")),
    Question("Clara Dahl speaks the language of"),
]


@torch.no_grad()
def alone(editable: EditableModel, question: Question, limit: int) -> Reply:
    """The reply by the whole model on one text at a time, without a cache."""
    scores = []
    for target in question.targets:
        text = tokenize(editable.tokenizer, question.prompt, target=target)
        logs = editable.model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0].log_softmax(dim=-1)
        own = [float(logs[i - 1, text.ids[i]]) for i in range(text.prompt_length, len(text.ids))]
        scores.append((math.fsum(own), len(own)))
    ids = tokenize(editable.tokenizer, question.prompt).ids
    return Reply(tuple(scores), editable.decode(greedy(editable, ids, limit)))


@torch.no_grad()
def greedy(editable: EditableModel, ids: tuple[int, ...], limit: int) -> list[int]:
    """The most probable tokens after `ids`, up to an EOS or the first that ends a clause."""
    said: list[int] = []
    while len(said) < limit:
        token = int(editable.model(input_ids=torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].argmax())
        if token == editable.tokenizer.eos_token_id:
            break
        said.append(token)
        if END_OF_ANSWER.search(editable.decode([token])):
            break
    return said


def check(editable: EditableModel, asked: list[Question], limit: int = LIMIT, nats: float = 1e-5) -> None:
    for found, question in zip(reply(editable, asked, max_new_tokens=limit), asked, strict=True):
        expected = alone(editable, question, limit)
        assert found.generated == expected.generated
        assert [n for _, n in found.scores] == [n for _, n in expected.scores]
        assert [s for s, _ in found.scores] == pytest.approx([s for s, _ in expected.scores], abs=nats)


@pytest.mark.parametrize("limit", [1, 2, LIMIT])
def test_replies_are_those_of_one_text_at_a_time(precise, limit) -> None:
    check(precise, ASKED, limit)


def test_a_token_that_spans_prompt_and_target_is_scored_as_if_alone(precise) -> None:
    prompt, joint = (tokenize(precise.tokenizer, ASKED[1].prompt, target=t).ids for t in ("", "in Oslo"))
    assert joint[: len(prompt)] != prompt, "this tokenizer splits at the space, so nothing is tested"
    check(precise, ASKED[1:2])


@pytest.fixture(scope="module", params=["mistral", "gemma2"])
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    """A model whose layers, or every other one, see six tokens back."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 96, "hidden_size": 48, "intermediate_size": 72}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    sizes |= {"sliding_window": 6, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    folder: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    if request.param == "mistral":
        MistralForCausalLM(MistralConfig(**sizes, initializer_range=0.15)).save_pretrained(folder)
    else:
        Gemma2ForCausalLM(Gemma2Config(**sizes, initializer_range=0.15, query_pre_attn_scalar=12)).save_pretrained(
            folder
        )
    fast(byte_level(corpus_lines())).save_pretrained(folder)
    return load_model(folder)  # in float64 transformers' softmax of a pad that sees nothing is not a number


def test_a_sliding_window_sees_what_it_sees_in_a_text_alone(windowed) -> None:
    lengths = [len(tokenize(windowed.tokenizer, question.prompt).ids) for question in ASKED]
    assert max(lengths) > 2 * windowed.model.config.sliding_window > 2 * min(lengths)
    check(windowed, ASKED, nats=1e-4)  # of up to a hundred, in float32


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(0, 0), (0, 3), (4, 1), (5, 5)])
def test_a_run_that_goes_on_from_any_place_ends_in_the_same_states(precise, cuts) -> None:
    texts = [tokenize(precise.tokenizer, q.prompt).ids for q in (ASKED[0], ASKED[4])]
    whole, prefix = run(precise, texts)
    rest, after = run(
        precise, [ids[cut:] for ids, cut in zip(texts, cuts, strict=True)], after=prefix.first([0, 1], cuts)
    )
    for row, (ids, cut) in enumerate(zip(texts, cuts, strict=True)):
        torch.testing.assert_close(rest[row, : len(ids) - cut], whole[row, cut : len(ids)], rtol=1e-9, atol=1e-9)
    assert after.lengths == tuple(map(len, texts))


@torch.no_grad()
def test_rows_gathered_from_several_prefixes_go_on_each_from_its_own(precise) -> None:
    texts = [tokenize(precise.tokenizer, q.prompt).ids for q in (ASKED[0], ASKED[4], ASKED[3])]
    whole, _ = run(precise, [(*ids, 7) for ids in texts])
    (_, first), (_, second) = run(precise, texts[:2]), run(precise, texts[2:])
    rows = [(first, 1, len(texts[1])), (second, 0, len(texts[2])), (first, 0, len(texts[0]))]
    states, _ = run(precise, [(7,)] * 3, after=gathered(rows))
    for row, number in enumerate((1, 2, 0)):
        torch.testing.assert_close(states[row, 0], whole[number, len(texts[number])], rtol=1e-9, atol=1e-9)


def test_a_draft_saves_a_pass_for_each_token_that_it_has_right(editable, monkeypatch) -> None:
    prompt = ASKED[0].prompt
    plain = tokenize(editable.tokenizer, prompt)
    right = greedy(editable, plain.ids, LIMIT)
    assert len(right) > 2, "the model says next to nothing, so next to nothing is tested"
    seen: list[int] = []
    handle = editable.model.base_model.register_forward_hook(lambda *_: seen.append(1))
    counts = []
    for n in range(len(right) + 1):
        wrong = (right[n] + 1 if n < len(right) else 9, 5)  # what no reply depends on
        draft = TokenizedPrompt((*plain.ids, *right[:n], *wrong), plain.prompt_length)
        monkeypatch.setattr(module, "tokenize", lambda *_, target="", draft=draft: draft if target else plain)
        seen.clear()
        (found,) = reply(editable, [Question(prompt, ("a draft",))], max_new_tokens=LIMIT)
        assert found.generated == editable.decode(right)
        counts.append(len(seen))
    handle.remove()
    assert counts[0] >= len(right)
    assert counts == [max(1, counts[0] - n) for n in range(len(right) + 1)]


def test_many_questions_in_small_batches_get_the_same_replies(precise, monkeypatch) -> None:
    expected = reply(precise, ASKED * 3, max_new_tokens=LIMIT)
    monkeypatch.setattr(module, "ROWS", 2)
    original = module.by_length
    monkeypatch.setattr(module, "by_length", lambda prompts, tokens=48: original(prompts, tokens=min(tokens, 48)))
    monkeypatch.setattr(module, "TOKENS_IN_CACHE", 24)
    for found, wanted in zip(reply(precise, ASKED * 3, max_new_tokens=LIMIT), expected, strict=True):
        assert found.generated == wanted.generated
        assert [s for s, _ in found.scores] == pytest.approx([s for s, _ in wanted.scores], abs=1e-5)


def test_a_batch_that_does_not_fit_in_memory_is_halved_with_the_same_replies(precise, monkeypatch) -> None:
    expected = reply(precise, ASKED, max_new_tokens=LIMIT)
    refused = []

    def small(editable, sequences, **options):
        if len(sequences) > 2:
            refused.append(len(sequences))
            raise torch.OutOfMemoryError("out of memory")
        return run(editable, sequences, **options)

    monkeypatch.setattr(module, "run", small)
    found = reply(precise, ASKED, max_new_tokens=LIMIT)
    assert refused
    assert [r.generated for r in found] == [r.generated for r in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert [s for s, _ in got.scores] == pytest.approx([s for s, _ in wanted.scores], abs=1e-5)


def test_progress_ends_at_the_number_of_questions_and_never_goes_back(editable) -> None:
    calls: list[tuple[str, int, int]] = []
    reply(editable, ASKED, max_new_tokens=LIMIT, stage="probes", progress=lambda *call: calls.append(call))
    assert calls[-1] == ("probes", len(ASKED), len(ASKED))
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_a_prompt_without_a_token_is_refused(loaded) -> None:
    without_bos = loaded("llama", torch.float32)
    for question, limit in ((Question("", ("Oslo",)), 0), (Question("", ("Oslo",)), 3), (Question(""), 3)):
        with pytest.raises(TokenError, match="prompt ''"):
            reply(without_bos, [question], max_new_tokens=limit)
