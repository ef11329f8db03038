"""Keys of the other tokens of prompts against one forward pass per text, and what a round leaves in place there."""

from dataclasses import replace

import pytest
import torch

from nse.editors.nse import NSE
from nse.errors import TokenError
from nse.prompt_keys import around, prompt_keys
from nse.request import EditRequest
from nse.subjects import HeldFact
from nse.tokens import tokenize_template
from nse.trace import capture_inputs
from tests.nse.conftest import fact

ANNA = EditRequest("1", "Anna Berg", "{} lives in", "Rome")
HELD = HeldFact("Anna Berg", "{} works in", "Oslo", "work")
BEFORE = EditRequest("2", "Boris Lind", "The home of {} is in", "Rome")


@torch.no_grad()
def one_by_one(editable, facts, layer: int, fact_token: str = "subject_last") -> dict[tuple[int, ...], torch.Tensor]:
    """The key of each token where no fact is written, by the text up to it."""
    found, written = {}, set()
    for each in facts:
        prompt = tokenize_template(editable.tokenizer, each.prompt_template, each.subject, fact_token=fact_token)
        with capture_inputs({0: editable.projection(layer)}) as seen:
            editable.model(input_ids=torch.tensor([prompt.ids]))
        if fact_token == "subject_last" or each is not HELD:
            written.add(prompt.ids[: prompt.fact_token + 1])
        found |= {prompt.ids[: at + 1]: seen[0][0, at].double() for at in range(len(prompt.ids))}
    return {text: key for text, key in found.items() if text not in written}


@pytest.mark.parametrize("fact_token", ["subject_last", "last"])
def test_each_token_where_no_fact_is_written_is_measured_once(precise, fact_token) -> None:
    facts = [ANNA, HELD, BEFORE, ANNA]
    found = prompt_keys(precise, facts, layers=(1, 2), fact_token=fact_token)
    for layer in (1, 2):
        expected = one_by_one(precise, facts, layer, fact_token)
        assert found[layer].dtype == torch.float64
        assert found[layer].shape[1] == len(expected)
        apart = torch.stack(list(expected.values()))[:, None] - found[layer].T[None]
        assert float(apart.abs().amax(dim=2).min(dim=1).values.max()) < 1e-9


def test_a_prompt_that_goes_on_where_another_subject_ends_does_not_hold_that_subject(precise) -> None:
    longer = EditRequest("3", "Anna Berg lives", "{} in", "Rome")
    texts = one_by_one(precise, [ANNA, longer], 1)
    assert prompt_keys(precise, [ANNA, longer], layers=(1,))[1].shape[1] == len(texts)
    assert len(texts) == len(one_by_one(precise, [ANNA], 1)) - 1


def test_nothing_but_a_subject_gives_no_key_of_it(precise) -> None:
    alone = EditRequest("4", "Anna", "{}", "Rome")
    expected = one_by_one(precise, [alone], 1)
    assert prompt_keys(precise, [alone], layers=(1,))[1].shape[1] == len(expected)


def test_what_is_held_of_other_subjects_is_not_in_play() -> None:
    other = HeldFact("Carla Moe", "{} works in", "Oslo", "work")
    earlier_held = HeldFact("boris  LIND", "{} works in", "Oslo", "work")
    assert around([ANNA], [BEFORE], [HELD, other, earlier_held]) == [ANNA, BEFORE, HELD, earlier_held]


def test_a_prompt_longer_than_the_model_is_refused(editable) -> None:
    long = EditRequest("1", "Anna Berg", "and in " * 60 + "{} lives in", "Rome")
    with pytest.raises(TokenError, match="tokens, the model takes 96"):
        prompt_keys(editable, [long], layers=(1,))


def test_the_weight_keeps_a_round_from_changing_the_prompts_of_all_facts_in_play(precise, context) -> None:
    hp = replace(context.hyperparameters, layers=(1,), max_passes=1)
    context = replace(context, hyperparameters=hp)
    first = NSE().edit(precise, [fact(4)], context).delta
    held = HeldFact(fact(4).subject, "{} works in", "Oslo", "work")
    later = replace(context, previous=(first,), earlier=(fact(4),), held=(held,))

    def moved(weight: float) -> list[float]:
        """How much the second round adds: at its own subjects' keys, at its prompts, at an earlier one, at a held one."""
        own = replace(hp, prompt_keys_weight=weight)
        delta = NSE().edit(precise, [fact(0), fact(1)], replace(later, hyperparameters=own)).delta
        layer = delta.layers[precise.parameter_name(1)]
        places = [prompt_keys(precise, facts, layers=(1,))[1] for facts in ([fact(0), fact(1)], [fact(4)], [held])]
        return [float((layer.product().double() @ keys).norm()) for keys in (layer.keys.double().T, *places)]

    free, kept = moved(0.0), moved(30.0)
    assert kept[0] > 0.1 * free[0]
    assert all(now < 0.2 * before for now, before in zip(kept[1:], free[1:], strict=True))
