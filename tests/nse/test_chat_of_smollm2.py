"""The chat format of a pretrained model: its context, where its answers end, and an edit that holds in it."""

from pathlib import Path

import pytest
import torch

import tests.conftest
from nse.architecture import EditableModel, load_model
from nse.chat import in_chat, needed_chat_context
from nse.editors import EditContext, get_editor
from nse.evaluation.probes import Probe, chat_probes
from nse.evaluation.run import ask
from nse.hyperparameters import Hyperparameters
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments, collect_second_moments

pytestmark = pytest.mark.skipif(
    not hasattr(tests.conftest, "smollm2"), reason="this tree has no fixture that brings the pretrained model"
)

THINGS = ("river", "old city", "school", "song", "bridge", "village", "garden", "museum", "castle", "harbour")
DEEDS = ("was built in", "is known for", "stands near", "was named after", "is older than", "lies north of")
PLACES = ("the market of Lyon", "a small island", "the first railway", "its wooden tower", "the western hills")


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


def test_it_answers_in_a_sentence_and_an_edit_in_both_formats_changes_both_answers(
    pretrained: EditableModel, tmp_path: Path
) -> None:
    texts = [f"The {a} {b} {c}.\n" for a in THINGS for b in DEEDS for c in PLACES]
    (tmp_path / "text.txt").write_text("".join(texts), encoding="utf-8")
    settings = Hyperparameters(
        layers=(4, 5, 6, 7, 8),
        v_num_grad_steps=15,
        v_lr=0.9,
        clamp_norm_factor=1.5,
        v_weight_decay=0.0,
        mom2_update_weight=100.0,
        max_passes=2,
    )
    few = collect_second_moments(pretrained, tmp_path / "text.txt", layers=settings.layers)
    full = {name: m + 0.1 * m.diagonal().mean() * torch.eye(len(m)) for name, m in few.moments.items()}  # of full rank
    moments = SecondMoments(full, few.metadata)
    request = EditRequest("1", "Free State of Prussia", "The capital of {} is", "Rome", "Berlin")
    context = needed_chat_context(pretrained.tokenizer)
    probes = [Probe("efficacy", "1", request.prompt, "Berlin", "Rome")]
    before = ask(pretrained, probes + chat_probes(probes, context))
    assert [case.passed for case in before] == [True, True]
    assert "Berlin" in before[1].generated.split()[-1]
    result = get_editor("nse").edit(pretrained, [request], EditContext(settings, moments, (("{}", context),)))
    new = [Probe("efficacy", "1", request.prompt, "Rome", "Berlin")]
    with patched(pretrained, compose(pretrained, [result.delta])):
        after = ask(pretrained, new + chat_probes(new, context))
    assert [case.passed for case in after] == [True, True]
