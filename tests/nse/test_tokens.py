"""Where the subject ends and the target begins, for many tokenizers and texts."""

import json
import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nse.errors import TokenError
from nse.tokens import join, tokenize, tokenize_template, unheard
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
    "combining before": ("Zoe\u0308, ﬁve times: {} lives in", "Zoe\u0308"),
    "apostrophe": ("{}'s home is", "O'Neil"),
    "in quotes": ('The word "{}" means', "Lima"),
    "one letter": ("The letter {} is", "x"),
}
TARGETS = ("Oslo", "the United Kingdom", "Санкт-Петербург", "7")


def subject_text(tokenizer, ids: tuple[int, ...], last: int) -> str:
    """The text of the tokens up to and including the subject's last one."""
    return tokenizer.decode(list(ids[: last + 1]), skip_special_tokens=True)


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
def test_the_subjects_last_token_ends_where_the_subject_ends(tokenizer, template, subject) -> None:
    prompt = tokenize_template(tokenizer, template, subject)
    expected = template[: template.index("{}")] + subject.rstrip()
    assert subject_text(tokenizer, prompt.ids, prompt.fact_token) == expected


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("end", ["", " "])
@pytest.mark.parametrize("target", ["", TARGETS[0]])
def test_the_prompts_last_token_ends_where_its_text_does(tokenizer, template, subject, end, target) -> None:
    prompt = tokenize_template(tokenizer, template + end, subject, target=target, fact_token="last")
    expected = template.replace("{}", subject).rstrip()
    assert subject_text(tokenizer, prompt.ids, prompt.fact_token) == expected


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_prompt_and_target_part_where_the_prompt_ends(tokenizer, layout, template, subject, target) -> None:
    alone = tokenize_template(tokenizer, template, subject)
    both = tokenize_template(tokenizer, template, subject, target=target)
    assert both.ids[: both.prompt_length] == alone.ids
    assert both.fact_token == alone.fact_token
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
    assert subject_text(tokenizer, prompt.ids, prompt.fact_token) == "Anna Berg"


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


UNKNOWN, SPACE = "<unk>", "\u2581"


def prefixed_byte_level() -> Tokenizer:
    """Byte-level BPE that sets a space in front of each text."""
    tokenizer = byte_level(corpus_lines())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """BPE over characters as in Llama 2: spaces written as a sign, no words, bytes where a character is unknown."""
    words = Tokenizer(models.BPE(unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for line in corpus_lines() if line.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[UNKNOWN, BOS, EOS], show_progress=False)
    words.train_from_iterator(lines, trainer)
    trained = json.loads(words.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram(normalizer: Any = None) -> Tokenizer:
    """Unigram pieces with spaces written as a sign, trained on every character of the tests, as SentencePiece does."""
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = [template.replace("{}", subject) for template, subject in CASES.values()]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[UNKNOWN, BOS, EOS], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator([*corpus_lines(), *texts, *TARGETS], trainer)
    return tokenizer


def normalising() -> Tokenizer:
    """Pieces of the text's NFKC form: its characters are not those that the offsets count."""
    return unigram(normalizers.NFKC())


KINDS = {
    "prefixed byte-level": prefixed_byte_level,
    "byte fallback": byte_fallback,
    "unigram": unigram,
    "normalising": normalising,
}


@pytest.fixture(scope="module")
def others() -> dict[tuple[str, str], Any]:
    return {
        (kind, single): fast(with_special_tokens(build(), single))
        for kind, build in KINDS.items()
        for single in ("$A", f"{BOS} $A")
    }


@pytest.fixture(params=[(kind, single) for kind in KINDS for single in ("$A", f"{BOS} $A")], ids=lambda p: " ".join(p))
def other(others, request) -> Any:
    return others[request.param]


def plain(text: str) -> str:
    """A text in normal form, less the spaces in front: some tokenizers add them and some drop them."""
    return unicodedata.normalize("NFKC", text).lstrip()


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
def test_tokenizers_of_other_kinds_find_the_end_of_the_subject(other, template, subject) -> None:
    prompt = tokenize_template(other, template, subject)
    expected = template[: template.index("{}")] + subject.rstrip()
    assert plain(subject_text(other, prompt.ids, prompt.fact_token)) == plain(expected)


@pytest.mark.parametrize(("template", "subject"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_tokenizers_of_other_kinds_part_prompt_and_target(other, template, subject, target) -> None:
    alone = tokenize_template(other, template, subject)
    both = tokenize_template(other, template, subject, target=target)
    assert both.ids[: both.prompt_length] == alone.ids
    assert both.fact_token == alone.fact_token
    assert plain(other.decode(list(both.target_ids))) == target


@pytest.mark.parametrize("subject", ["Anna Berg", "北京市", "👩‍🚀"])
def test_the_subject_of_the_prompt_and_not_its_double_is_found(other, subject) -> None:
    template = f"{subject}, {subject} and {{}} met {subject} in"
    prompt = tokenize_template(other, template, subject)
    told = subject_text(other, prompt.ids, prompt.fact_token)
    assert plain(told) == f"{subject}, {subject} and {subject}"


def test_a_character_of_several_tokens_ends_with_the_last_of_them(others) -> None:
    tokenizer = others["byte fallback", "$A"]
    prompt = tokenize_template(tokenizer, "{} is here", "Ж")
    assert [tokenizer.convert_ids_to_tokens(i) for i in prompt.ids[: prompt.fact_token + 1]][-2:] == [
        "<0xD0>",
        "<0x96>",
    ]


def test_a_target_of_bytes_is_known_and_one_of_the_unknown_token_is_refused(others) -> None:
    assert len(tokenize(others["byte fallback", "$A"], "It is", target="鬱").target_ids) >= 3
    others["unigram", "$A"].unk_token = UNKNOWN
    with pytest.raises(TokenError, match="holds characters the tokenizer does not know"):
        tokenize(others["unigram", "$A"], "It is", target="鬱")


def test_a_fact_is_never_written_at_the_first_token_of_a_text(tokenizer, layout) -> None:
    found = tokenize_template(tokenizer, "{} is", "x", target="far")
    assert found.fact_token == 1
    first = (
        tokenizer.bos_token_id
        if layout in ("bos", "both")
        else tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    )
    assert found.ids[0] == first
    assert tokenizer.decode([found.ids[found.fact_token]]) == "x"
    assert tokenizer.decode(list(found.target_ids)).strip() == "far"


def test_a_subject_is_unheard_where_it_is_the_first_token_of_its_prompt(tokenizer, layout) -> None:
    assert unheard(tokenizer, "{} is", "x") == (layout not in ("bos", "both"))
    assert not unheard(tokenizer, "It is {}", "x")
    assert not unheard(tokenizer, "{} lives in", "Anna Berg")


def test_a_subject_of_several_tokens_needs_no_line_break_in_front(tokenizer) -> None:
    text = "Anna Berg lives in"
    assert tokenize_template(tokenizer, "{} lives in", "Anna Berg").ids == tokenize(tokenizer, text).ids
