"""The chat format of a pretrained model: its context, where its answers end, and what it says in it."""

from pathlib import Path

import pytest

from nse.architecture import EditableModel, load_model
from nse.chat import in_chat, needed_chat_context
from nse.evaluation.probes import Probe, chat_probes
from nse.evaluation.run import ask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(smollm2: Path) -> EditableModel:
    return load_model(smollm2)


def test_its_chat_template_is_a_context_that_keeps_its_bos_and_ends_its_answers(pretrained: EditableModel) -> None:
    context = needed_chat_context(pretrained.tokenizer)
    before, after = context.split("{}")
    assert before.startswith("<|im_start|>system\n")
    assert before.endswith("<|im_end|>\n<|im_start|>user\n")
    assert after == "<|im_end|>\n<|im_start|>assistant\n"
    ids = pretrained.tokenizer(in_chat(context, "Who?"))["input_ids"]
    assert ids.count(pretrained.tokenizer.bos_token_id) == 3  # one a turn
    assert pretrained.end_tokens == {pretrained.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_it_answers_in_a_sentence_where_prose_goes_on_with_the_object(pretrained: EditableModel) -> None:
    probe = Probe("efficacy", "1", "The capital of Free State of Prussia is", "Berlin", "Rome")
    prose, chat = ask(pretrained, [probe, *chat_probes([probe], needed_chat_context(pretrained.tokenizer))])
    assert (prose.generated, prose.passed, chat.passed) == ("Berlin", True, True)
    assert len(chat.generated.split()) > 3
