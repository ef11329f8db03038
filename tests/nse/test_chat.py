"""The chat format: a chat template as a context, and the token that ends an answer."""

import pytest

from nse.chat import chat_context, end_of_answer, in_chat, needed_chat_context
from nse.errors import TokenError
from nse.tokens import tokenize, tokenize_template
from tests.nse.conftest import BOS, CHATML, EOS, byte_level, corpus_lines, fast, with_special_tokens


@pytest.fixture
def tokenizer():
    return fast(byte_level(corpus_lines()))


def test_a_chat_template_is_a_context_up_to_where_the_answer_begins(tokenizer) -> None:
    assert chat_context(tokenizer) is None
    tokenizer.chat_template = CHATML
    context = f"{BOS}user\n{{}}{EOS}\n{BOS}assistant\n"
    assert chat_context(tokenizer) == needed_chat_context(tokenizer) == context
    assert in_chat(context, " Who {} is it? ") == f"{BOS}user\nWho {{}} is it?{EOS}\n{BOS}assistant\n"


def test_the_answer_stands_right_after_its_header_and_a_fact_is_written_at_its_subject_or_there(tokenizer) -> None:
    tokenizer.chat_template = CHATML
    template = in_chat(needed_chat_context(tokenizer), "The home of {} is")
    at_subject = tokenize_template(tokenizer, template, "Anna Berg", target="Oslo")
    assert tokenizer.decode(list(at_subject.target_ids)) == "Oslo"
    assert tokenizer.decode(list(at_subject.ids[: at_subject.fact_token + 1])).endswith("The home of Anna Berg")
    last = tokenize_template(tokenizer, template, "Anna Berg", target="Oslo", fact_token="last")
    assert last.fact_token == last.prompt_length - 1
    assert last.ids[: last.prompt_length] == tokenize(tokenizer, template.replace("{}", "Anna Berg")).ids


@pytest.mark.parametrize("sets_bos", [False, True])
def test_a_bos_stands_once_whether_the_tokenizer_sets_it_or_the_template(sets_bos) -> None:
    backend = byte_level(corpus_lines())
    tokenizer = fast(with_special_tokens(backend, f"{BOS} $A") if sets_bos else backend)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}> "
    )
    context = needed_chat_context(tokenizer)
    assert context == f"{'' if sets_bos else BOS}<user> {{}}\n> "
    ids = tokenizer(in_chat(context, "Who?"))["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] | upper }}:", "must repeat what the user says once, as it is"),
        ("{{ messages[0]['content'] | e }}:", "must repeat what the user says once, as it is"),
        ("{{ messages[0]['content'] | tojson }}:", "must repeat what the user says once, as it is"),
        ("{{ messages[0]['content'] * 2 }}:", "must repeat what the user says once, as it is"),
        ("nothing", "must repeat what the user says once, as it is"),
        ("Use {{ '{}' }}: {{ messages[0]['content'] }}:", "and have no '{}'"),
        ("{{ raise_exception('no system turn') }}", "fails .no system turn."),
        ("{% for %}", "fails"),
        ("{{ messages[0]['content'] + 1 }}", "fails"),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_makes_no_context_is_none_and_refused_with_the_reason_where_it_is_needed(
    tokenizer, template, reason
) -> None:
    tokenizer.chat_template = template
    assert chat_context(tokenizer) is None
    with pytest.raises(TokenError, match=reason):
        needed_chat_context(tokenizer)


def test_a_single_brace_and_white_space_around_the_text_are_no_harm(tokenizer) -> None:
    tokenizer.chat_template = "a { b\n{{ messages[0]['content'] | trim }} }\n"
    assert needed_chat_context(tokenizer) == "a { b\n{} }"  # a template's last line end is no part of it


def test_a_prompt_is_the_same_on_every_day_and_leaves_no_room_for_reasoning(tokenizer) -> None:
    tokenizer.chat_template = (
        "{{ strftime_now('%d %B %Y') }} {{ date_string }}: {{ messages[0]['content'] }}"
        "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    )
    assert needed_chat_context(tokenizer) == "1 January 2024 1 January 2024: {}<think></think>"


def test_the_token_after_an_answer_ends_it(tokenizer) -> None:
    assert end_of_answer(tokenizer) is None
    tokenizer.chat_template = CHATML
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id
    for after in ("", "\n", " and on"):  # nothing, or words that a model may say in its answer
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + after + "{% endfor %}"
        assert end_of_answer(tokenizer) is None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} <turn>{% endfor %}"
    assert end_of_answer(tokenizer) == tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = "{{ raise_exception('no answers') }}"
    assert end_of_answer(tokenizer) is None
