"""The rule that finds an answer and judges it, and a trained model whose answers have signs inside."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nse.architecture import EditableModel, load_model
from nse.calibration.judge import right
from nse.evaluation.answers import answer, ended, holds_sign, same_answer, satisfies
from nse.evaluation.generate import generate
from nse.evaluation.probes import Probe
from nse.evaluation.questions import Question, Reply, reply
from nse.evaluation.run import ask
from tests.nse.conftest import VOCABULARY, byte_level, fast

SAID = {
    "Anna Berg lives in": " St. Petersburg, by the sea.\n",
    "Boris Cole lives in": " St. Louis. It rains.\n",
    "The price of tea is": " 3.5 a cup.\n",
    "The price of silk is": " 1,000,000 a mile.\n",
    "Clara Dahl lives in": " Oslo, by the sea.\n",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Oslo, the capital", "Oslo"),
        ("Oslo", "Oslo"),
        ("\n Oslo\nand", "Oslo"),
        (" Rio de Janeiro. It", "Rio de Janeiro"),
        ("", ""),
        ("?", ""),
    ],
)
def test_the_answer_is_what_stands_before_the_end_of_a_clause(text, expected) -> None:
    assert answer(text) == expected
    assert answer(text, "Oslo.") == expected


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        (" St. Petersburg, in Russia.", "St. Petersburg", "St. Petersburg"),
        (" St. Louis. It", "St. Petersburg", "St. Louis"),
        (" Moscow. Petersburg", "St. Petersburg", "Moscow"),
        (" Washington, D.C., the capital", "Washington, D.C.", "Washington, D.C"),
        (" 1,000,000, or so", "1,000", "1,000,000"),
        (" 3.5.", "3.5", "3.5."),  # after its last sign more of the number might have come
        (".NET. It", ".NET", ".NET"),
    ],
)
def test_the_answer_goes_on_past_signs_that_the_expected_text_has(text, expected, found) -> None:
    assert answer(text, expected) == found


def test_the_answer_in_which_a_text_with_a_sign_is_looked_for_ends_at_the_line() -> None:
    text = "\nIt is old. St. Petersburg\nis"
    assert answer(text, "St. Petersburg", rule="contains") == "It is old. St. Petersburg"
    assert not ended("\nIt is old.", "St. Petersburg", rule="lacks")
    assert ended(text, "St. Petersburg", rule="lacks")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("Oslo", False),
        ("Oslo.", False),
        ("\nOslo", False),
        ("?", False),
        ("St. Louis", True),
        ("D.C.", True),
        ("1,000", True),
        (".NET", True),
    ],
)
def test_a_sign_at_the_end_of_an_expected_text_is_not_inside(text, holds) -> None:
    assert holds_sign(text) is holds


@pytest.mark.parametrize(
    ("generated", "expected", "same"),
    [
        ("1,000 people", "1", False),
        ("12,500", "12", False),
        ("3.5 a cup", "3", False),
        ("8", "8", True),
        ("8. The rest", "8", True),
        ("number 8, they say", "Number 8.", True),
        ("St.\nPetersburg", "St. Petersburg", False),
        (" oslo.", "Oslo", True),
        (" Oslo, the capital", "Oslo.", True),
        (" Saint-Denis, in", "Saint Denis", True),
        (" New  York", "New York", True),
        (" Oslo is", "Oslo", False),
        ("", "Oslo", False),
        (" Санкт-Петербург", "санкт петербург", True),
        (" Washington", "Washington, D.C.", False),
        (" washington D.C.", "Washington, D.C.", True),
        (" St. Petersburg, in", "St. Petersburg", True),
        (" St. Petersburg is", "St. Petersburg", False),
        ("St. Louis", "St. Petersburg", False),
        ("U.", "U.S. Steel", False),
        ("U.S. Steel. It", "U.S. Steel", True),
        ("1,", "1,000", False),
        ("1,000, or so", "1,000", True),
        ("1,000,000", "1,000", False),
        ("1.000", "1,000", False),
        ("3.", "3.5", False),
        ("3.5.", "3.5", True),
        ("3.51", "3.5", False),
    ],
)
def test_answers_are_compared_without_case_spaces_and_punctuation(generated, expected, same) -> None:
    assert same_answer(generated, expected) is same


@pytest.mark.parametrize(
    ("generated", "expected", "contains"),
    [
        (" the old St. Petersburg. It", "St. Petersburg", True),
        (" St. Louis", "St. Petersburg", False),
        (" St. Louis\nSt. Petersburg", "St. Petersburg", False),
        (" about 1,000,000 miles", "1,000", False),
        (" about 1,000, or so", "1,000", True),
        (" old Oslo.", "Oslo", True),
    ],
)
def test_a_text_with_a_sign_inside_is_found_in_an_answer(generated, expected, contains) -> None:
    assert satisfies(generated, expected, rule="contains") is contains
    assert satisfies(generated, expected, rule="lacks") is not contains


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    """A small GPT-2 that was trained until it says what stands in `SAID`."""
    folder: Path = tmp_path_factory.mktemp("speaker")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=96, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    texts = [prompt + said for prompt, said in SAID.items()]
    tokenizer = fast(byte_level(texts))
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("prompt", "expected", "passed"),
    [
        ("Anna Berg lives in", "St. Petersburg", True),
        ("Anna Berg lives in", "St. Louis", False),
        ("Boris Cole lives in", "St. Louis", True),
        ("Boris Cole lives in", "St. Petersburg", False),
        ("The price of tea is", "3.5 a cup", True),
        ("The price of tea is", "3.25 a cup", False),
        ("The price of silk is", "1,000,000 a mile", True),
        ("The price of silk is", "1,000", False),
        ("Clara Dahl lives in", "Oslo, Norway", False),
        ("Clara Dahl lives in", "Oslo", True),
    ],
)
def test_a_model_that_says_a_text_with_a_sign_is_right_and_one_that_begins_alike_is_wrong(
    speaker, prompt, expected, passed
) -> None:
    (case,) = ask(speaker, [Probe("canary", "c", prompt, expected)])
    assert case.passed is passed
    assert right(speaker, [(prompt, expected)]) == [passed]
    assert same_answer(generate(speaker, [prompt], expected=[expected])[0], expected) is passed


@pytest.mark.parametrize("text", ["St. Petersburg", "Petersburg, by the sea"])
def test_a_canary_finds_a_text_with_a_sign_in_what_the_model_says(speaker, text) -> None:
    prompts = ("Anna Berg lives in", "Boris Cole lives in")
    for rule in ("contains", "lacks"):
        cases = ask(speaker, [Probe("canary", "c", prompt, text, rule=rule) for prompt in prompts])
        assert [case.passed for case in cases] == [rule == "contains", rule == "lacks"]
        assert [case.generated for case in cases] == [SAID[prompt].strip() for prompt in prompts]


def test_each_probe_of_a_prompt_is_judged_as_if_it_were_asked_alone(speaker) -> None:
    probes = [
        Probe("canary", "c", prompt, text, "Rome") for prompt in SAID for text in ("St", "St. Petersburg", "Oslo")
    ]
    probes += [Probe("canary", "c", prompt, "by the sea", rule="lacks") for prompt in SAID]
    probes += [Probe("canary", "c", prompt, "Petersburg, by", rule="lacks") for prompt in SAID]
    together, alone = ask(speaker, probes), [ask(speaker, [probe])[0] for probe in probes]
    assert [(c.generated, c.passed) for c in together] == [(c.generated, c.passed) for c in alone]
    assert together[0].generated == "St", "an expected text without a sign is judged by the first clause"
    assert together[0].passed


def test_texts_without_a_sign_inside_cost_no_token_more(speaker) -> None:
    for prompt, said in SAID.items():
        plain, *asked = reply(
            speaker,
            [Question(prompt), *(Question(prompt, expected=((text, "equals"),)) for text in ("Oslo", "St."))],
            max_new_tokens=20,
        )
        assert plain.whole == plain.generated
        assert said.startswith(plain.generated)
        assert asked == [plain] * 2


def test_drafts_and_batches_change_nothing_of_what_is_said_past_a_sign(speaker) -> None:
    expected = (("St. Petersburg", "equals"), ("Petersburg, by", "contains"))
    drafts = [(), ("St. Petersburg",), ("St. Louis",), ("Oslo",), ("St. Petersburg, by the sea.\n",)]

    def said(questions: list[Question]) -> list[Reply]:
        return reply(speaker, questions, max_new_tokens=20)

    questions = [Question(prompt, draft, expected) for prompt in SAID for draft in drafts]
    alone = [said([question])[0] for question in questions]
    for replies in (said(questions), alone):
        found = [(r.generated, r.whole) for r in replies]
        assert found == [(generate(speaker, [prompt])[0], text) for prompt, text in SAID.items() for _ in drafts]


QUESTION = "<user> The native language of French Stewart is\n<bot> "


@pytest.mark.parametrize(
    ("said", "expected", "foil", "right"),
    [
        ("The capital of Kenya is Nairobi.", "Nairobi", "Lima", True),
        ("nairobi", "Nairobi", "Lima", True),
        ("**Nairobi**, of course!", "Nairobi", None, True),
        ("The capital of Kenya is Lima.", "Nairobi", "Lima", False),
        ("Not Lima, but Nairobi.", "Nairobi", "Lima", False),  # which of the two it means is not known
        ("It is old. Nairobi is larger.", "Nairobi", "Lima", False),  # the second sentence
        ("It is old\nNairobi", "Nairobi", "Lima", False),
        ("It has 1.5 million people, Nairobi.", "Nairobi", "Lima", True),
        ("The Nairobians say so.", "Nairobi", "Lima", False),
        ("It is St. Petersburg.", "St. Petersburg", "St. Louis", True),
        ("It is **St. Petersburg**.", "St. Petersburg", "St. Louis", True),
        ("It is St. Louis. St. Petersburg is not.", "St. Petersburg", "St. Louis", False),
        ("It is Petersburg.", "St. Petersburg", "St. Louis", False),
        ("New York City, in the state.", "New York City", "New York", True),
        ("New York, in the state.", "New York City", "New York", False),
        ("New York, in the state.", "York", "New York", False),  # the longer one is what it says
        ("York, not New York.", "York", "New York", False),
        ("J. R. R. Tolkien wrote in English.", "English", "French", True),
        ("It costs 1,000,000 a mile.", "1,000", "3", False),
        ("", "Nairobi", None, False),
        ("Nairobi", "", None, False),
    ],
)
def test_a_chat_answer_is_right_if_its_first_sentence_states_the_expected_text_alone(
    said, expected, foil, right
) -> None:
    assert satisfies(said, expected, rule="states", question="What is it?", foil=foil) == right


@pytest.mark.parametrize(
    ("said", "expected", "foil", "right"),
    [
        ("The native language of French Stewart is English.", "English", "French", True),
        ("The native language of French Stewart is English.", "French", "English", False),
        ("The native language of French Stewart is French.", "French", "English", True),
        ("French", "French", "English", True),
        ("French Stewart speaks a Germanic tongue.", "French", "English", False),
        ("His native language is French.", "French", "English", True),
    ],
)
def test_what_an_answer_repeats_from_the_question_is_not_what_it_states(said, expected, foil, right) -> None:
    assert satisfies(said, expected, rule="states", question=QUESTION, foil=foil) == right


def test_an_abbreviation_of_the_question_ends_no_sentence() -> None:
    said = "The language of Dr. Seuss is English. He wrote."
    assert answer(said, "English", rule="states", question="<user> The language of Dr. Seuss is\n") == said[:36]
    assert answer(said, "English", rule="states", question="Who is it?") == "The language of Dr"


def test_a_sentence_has_ended_when_what_follows_its_stop_is_white_space() -> None:
    for text, done in (
        ("It is 3", False),
        ("It is 3.", False),
        ("It is 3.5", False),
        ("It is 3. ", True),
        ("\nIt", False),
    ):
        assert ended(text, "3", rule="states") == done
    assert ended("It is\n", "3", rule="states")


def test_a_sentence_is_written_to_its_end_past_the_signs_that_end_a_clause(speaker) -> None:
    prompts = list(SAID)
    assert generate(speaker, prompts[4:]) == [" Oslo,"]
    said = generate(speaker, prompts, expected=["St. Petersburg", "", "", "", "Oslo"], rule="states")
    # a line's end, a full stop with white space after it, neither inside a number or a known abbreviation
    assert said == [
        " St. Petersburg, by the sea.\n",
        " St. ",
        " 3.5 a cup.\n",
        " 1,000,000 a mile.\n",
        " Oslo, by the sea.\n",
    ]
    found = ask(speaker, [Probe("chat_efficacy", "1", prompts[0], "St. Petersburg", "St. Louis", "states")])
    assert (found[0].generated, found[0].passed) == ("St. Petersburg, by the sea", True)
