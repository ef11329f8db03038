"""Context templates."""

import json

import pytest

from nse.chat import chat_context
from nse.contexts import OPENINGS, read_contexts, sample_contexts, within
from nse.errors import RequestError
from nse.tokens import tokenize
from tests.nse.conftest import BOS, EOS, fast, with_special_tokens


def test_a_context_surrounds_the_prompt_and_keeps_the_place_of_the_subject() -> None:
    assert within("{}", "The home of {} is") == "The home of {} is"
    assert within("Today. {}", "{} is") == "Today. {} is"
    assert within("So: {} - well,", "{} is") == "So: {} is - well,"


def test_contexts_are_read_as_they_are_written(tmp_path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([["{}"], ["Today. {}", "Ж {}"]]), encoding="utf-8")
    assert read_contexts(tmp_path / "c.json") == (("{}",), ("Today. {}", "Ж {}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"is not JSON \(line 1"),
        ("{}", "is not a list of non-empty lists"),
        ("[]", "is not a list of non-empty lists"),
        ("[[]]", "is not a list of non-empty lists"),
        ('["{}"]', "is not a list of non-empty lists"),
        ('[["no hole"]]', "context 'no hole' must be a text with exactly one"),
        ('[["{} {}"]]', "exactly one"),
        ("[[3]]", "context 3 must be a text"),
    ],
)
def test_a_malformed_file_is_refused_with_what_is_wrong(tmp_path, text, message) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        read_contexts(tmp_path / "c.json")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(RequestError, match=r"c\.json cannot be read \(No such file"):
        read_contexts(tmp_path / "c.json")


def test_sampled_contexts_depend_on_the_seed_alone(editable) -> None:
    one, two, other = (sample_contexts(editable, seed=s) for s in (3, 3, 4))
    assert one == two != other


def test_one_context_is_sampled_for_each_opening_beside_the_bare_one(editable, tmp_path) -> None:
    contexts = sample_contexts(editable, seed=0)
    assert contexts[0] == ("{}",)
    assert len(contexts[1]) == len(OPENINGS)
    for text, opening in zip(contexts[1], OPENINGS, strict=True):
        assert text.startswith(opening)
        assert text.endswith(". {}")
        assert text.count("{}") == 1
    (tmp_path / "c.json").write_text(json.dumps(contexts), encoding="utf-8")
    assert read_contexts(tmp_path / "c.json") == contexts


def test_the_chat_format_stands_beside_the_bare_prompt_where_there_is_one(chatting, tmp_path) -> None:
    contexts = sample_contexts(chatting, seed=0)
    assert [len(group) for group in contexts] == [2, len(OPENINGS)]
    assert contexts[0] == ("{}", chat_context(chatting.tokenizer))
    (tmp_path / "c.json").write_text(json.dumps(contexts), encoding="utf-8")
    assert read_contexts(tmp_path / "c.json") == contexts
    chatting.tokenizer.chat_template = None
    assert sample_contexts(chatting, seed=0) == (("{}",), contexts[1])


def test_an_eos_that_the_tokenizer_appends_does_not_stand_before_the_sampled_text(editable) -> None:
    appending = fast(with_special_tokens(fast_backend(editable), f"{BOS} $A {EOS}"))
    bos = fast(with_special_tokens(fast_backend(editable), f"{BOS} $A"))
    sampled = []
    own = editable.tokenizer
    try:
        for tokenizer in (appending, bos):
            editable.tokenizer = tokenizer
            sampled.append(sample_contexts(editable, seed=0))
    finally:
        editable.tokenizer = own
    assert sampled[0] == sampled[1]
    assert appending("The")["input_ids"] != list(tokenize(appending, "The").ids)


def fast_backend(editable):
    """A copy of the model's tokenizer."""
    return type(editable.tokenizer.backend_tokenizer).from_str(editable.tokenizer.backend_tokenizer.to_str())
