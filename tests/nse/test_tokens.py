"""Where the subject ends and the target begins, for many tokenizers and texts."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nse.errors import TokenError
from nse.tokens import join, tokenize, tokenize_template
from tests.nse.conftest import BOS, EOS, byte_level, corpus_lines, fast, with_special_tokens

LAYOUTS = {"none": "$A", "bos": f"{BOS} $A", "eos": f"$A {EOS}", "both": f"{BOS} $A {EOS}"}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {k: fast(with_special_tokens(byte_level(corpus_lines()), v)) for k, v in LAYOUTS.items()}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(tokenizers, layout):
    return tokenizers[layout]


CASES = {
    "start": ("{} lives in", "Anna Berg"),
    "middle": ("The home of {} is near", "Boris Cole"),
    "end": ("The home of {}", "Clara Dahl"),
    "end with full stop": ("Speak of {}.", "Clara Dahl"),
    "repeated before": ("Anna Berg, the sister of {} lives in", "Anna Berg"),
    "repeated after": ("{} lives where Anna Berg lives:", "Anna Berg"),
    "inside another word": ("The Romeo of {} lives in", "Rome"),
    "leading spaces": ("The home of {} is", "  Dmitri Eng"),
    "trailing spaces": ("The home of {} is", "Dmitri Eng  "),
    "cyrillic": ("{} lives in", "Эмма Жук"),
    "chinese": ("The mayor of {} is", "北京市"),
    "emoji": ("The meaning of {} is", "👩‍🚀"),
    "combining": ("{} lives in", "Zoe\u0308 Ng"),
    "apostrophe": ("{}'s home is", "O'Neil"),
    "in quotes": ('The word "{}" means', "Lima"),
    "one letter": ("The letter {} is", "x"),
}


def subject_text(tokenizer, ids: tuple[int, ...], last: int) -> str:
    """The text of the tokens up to and including the subject's last one."""
    return tokenizer.decode(list(ids[: last + 1]), skip_special_tokens=True)


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
def test_the_subjects_last_token_ends_where_the_subject_ends(tokenizer, template, subject) -> None:
    prompt = tokenize_template(tokenizer, template, subject)
    expected = template[: template.index("{}")] + subject.rstrip()
    assert subject_text(tokenizer, prompt.ids, prompt.subject_last) == expected


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", ["Oslo", "the United Kingdom", "Санкт-Петербург", "7"])
def test_prompt_and_target_part_where_the_prompt_ends(tokenizer, layout, template, subject, target) -> None:
    alone = tokenize_template(tokenizer, template, subject)
    both = tokenize_template(tokenizer, template, subject, target=target)
    assert both.ids[: both.prompt_length] == alone.ids
    assert both.subject_last == alone.subject_last
    assert tokenizer.decode(list(both.target_ids)) == f" {target}"
    assert len(alone.ids) == alone.prompt_length
    assert (alone.ids[0] == tokenizer.bos_token_id) == (layout in ("bos", "both"))


def test_a_target_has_all_its_tokens(tokenizer) -> None:
    prompt = tokenize(tokenizer, "Anna Berg lives in", target="Ouagadougou")
    assert len(prompt.target_ids) > 2
    assert prompt.target_ids == tuple(tokenizer(" Ouagadougou", add_special_tokens=False)["input_ids"])


def test_an_eos_that_the_tokenizer_appends_is_dropped(tokenizer) -> None:
    for target in ("", "Oslo"):
        ids = tokenize(tokenizer, "Anna Berg lives in", target=target).ids
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(list(ids), skip_special_tokens=True) == join("Anna Berg lives in", target).rstrip()


def test_an_eos_that_stands_in_the_text_itself_is_kept_in_front(tokenizer) -> None:
    ids = tokenize(tokenizer, f"{EOS}Anna Berg lives in", target="Oslo").ids
    assert ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("Anna is", "Oslo", "Anna is Oslo"),
        ("Anna is ", "Oslo", "Anna is Oslo"),
        ("Anna is", " Oslo", "Anna is Oslo"),
        ("Anna is\n", "Oslo", "Anna is\nOslo"),
        ("", "Oslo", " Oslo"),
    ],
)
def test_one_space_joins_prompt_and_target_unless_one_brings_its_own(prompt, target, text) -> None:
    assert join(prompt, target) == text


def test_a_space_in_front_of_the_target_or_after_the_prompt_changes_no_token(tokenizer) -> None:
    plain = tokenize(tokenizer, "Anna Berg lives in", target="Oslo")
    assert tokenize(tokenizer, "Anna Berg lives in", target=" Oslo") == plain
    spaced = tokenize(tokenizer, "Anna Berg lives in ", target="Oslo")
    assert spaced.ids == plain.ids
    assert tokenizer.decode(list(spaced.target_ids)).strip() == "Oslo"


def test_a_space_token_after_the_subject_is_not_its_own(tokenizer) -> None:
    prompt = tokenize_template(tokenizer, "{}  lives", "Anna Berg")
    assert subject_text(tokenizer, prompt.ids, prompt.subject_last) == "Anna Berg"


def test_a_target_that_the_tokenizer_does_not_know_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Anna": 1, "is": 2, "here": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = fast(words)
    tokenizer.unk_token = "<unk>"
    with pytest.raises(TokenError, match="target 'there' holds characters the tokenizer does not know"):
        tokenize(tokenizer, "Anna is", target="there")
    known = tokenize(tokenizer, "Berg is", target="here")
    assert (known.ids, known.target_ids) == ((0, 2, 3), (3,))


def test_a_target_of_nothing_but_spaces_is_refused_or_has_tokens_of_its_own(tokenizer) -> None:
    prompt = tokenize(tokenizer, "Anna Berg lives in", target="  ")
    assert tokenizer.decode(list(prompt.target_ids)).isspace()


def test_a_subject_that_has_no_token_is_refused(tokenizer) -> None:
    with pytest.raises(TokenError, match="subject '' has no token in ' lives in'"):
        tokenize_template(tokenizer, "{} lives in", "")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TokenError, match="Slow reports no character offsets"):
        tokenize(Slow(), "Anna is")
