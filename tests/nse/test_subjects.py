"""Which facts belong together: grouping by subject, what still stands, what is held, and one z for all of a subject."""

from dataclasses import replace

import pytest
import torch

from nse.keys import measure
from nse.objective import compute_z
from nse.request import EditRequest
from nse.rows import Text, rows_of
from nse.subjects import HeldFact, by_subject, companions
from nse.tokens import tokenize_template
from nse.values import ValueStore, values_for
from tests.nse.conftest import CONTEXTS


def anna(relation: str, target: str, template: str = "{} lives in", case_id: str = "") -> EditRequest:
    return EditRequest(case_id or relation, "Anna Berg", template, target, relation=relation)


BORIS = EditRequest("boris", "Boris Cole", "{} lives in", "Lima", relation="home")
HELD = HeldFact("Anna Berg", "{} speaks the language of", "Rome", "language")


def test_corrections_of_one_subject_are_one_group_whatever_its_spelling() -> None:
    requests = [anna("home", "Rome"), BORIS, replace(anna("work", "Lima"), subject=" anna  BERG")]
    assert [sorted(g.members) for g in by_subject(requests, (), joint=True)] == [[0, 2], [1]]
    assert [g.members for g in by_subject(requests, (), joint=False)] == [(0,), (1,), (2,)]


def test_a_group_does_not_depend_on_the_order_of_its_corrections() -> None:
    one, two = anna("home", "Rome", "{} lives in"), anna("work", "Lima", "{} works in")
    (forward,), (backward,) = by_subject([one, two], (), joint=True), by_subject([two, one], (), joint=True)
    assert [[one, two][i] for i in forward.members] == [[two, one][i] for i in backward.members]


def test_a_known_fact_is_held_for_its_subject_alone_and_not_when_it_is_corrected() -> None:
    held = (HELD, HeldFact("Anna Berg", "{} lives in", "Oslo", "home"), HeldFact("Nobody", "{} is", "x", "y"))
    first, second = by_subject([anna("home", "Rome"), BORIS], held, joint=True)
    assert first.held == (HELD,)
    assert second.held == ()


def test_companions_are_the_latest_of_each_earlier_fact_of_the_subjects_that_is_not_corrected_again() -> None:
    old, new = anna("work", "Lima", case_id="old"), anna("work", "Oslo", case_id="new")
    again = anna("home", "Cairo", case_id="again")
    earlier = [anna("home", "Rome"), old, BORIS, new]
    assert companions([again], earlier) == [new]
    assert companions([again], []) == []


def test_the_corrections_of_a_subject_move_it_by_one_delta(precise, settings) -> None:
    requests = [anna("home", "Rome"), anna("work", "Lima", "The employer of {} is based in")]
    z = compute_z(precise, requests, contexts=CONTEXTS, hyperparameters=settings)
    hidden = measure(precise, requests, (), key_layers=(), hidden_layer=settings.z_layer).hidden.T
    delta = z - hidden
    assert float(delta[0].norm()) > 0.1
    torch.testing.assert_close(delta[0], delta[1], rtol=1e-4, atol=1e-5)
    alone = compute_z(precise, requests, contexts=CONTEXTS, hyperparameters=replace(settings, joint_values=False))
    assert float((alone - hidden)[0].sub((alone - hidden)[1]).norm()) > 0.1


def test_a_stored_z_of_a_group_is_found_in_any_order_and_not_for_another_group(editable, settings, tmp_path) -> None:
    store = ValueStore(tmp_path)
    requests = [anna("home", "Rome"), anna("work", "Lima", "{} works in")]

    def ask(some, held=()):
        return values_for(editable, some, contexts=CONTEXTS, hyperparameters=settings, store=store, held=held)

    first = ask(requests)
    count = len(list(tmp_path.iterdir()))
    assert torch.equal(ask(requests[::-1]).flip(0), first)
    assert len(list(tmp_path.iterdir())) == count == 2
    ask(requests[:1])
    assert len(list(tmp_path.iterdir())) == 3
    ask(requests, held=(HELD,))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_held_fact_moves_less_than_it_does_unheld(precise, settings) -> None:
    request = anna("home", "Rome")
    strong = replace(settings, hold_factor=5000.0, v_num_grad_steps=40, v_lr=0.05)

    def drift(held) -> float:
        """Divergence of what the model says of the held fact, with z in place."""
        z = compute_z(precise, [request], contexts=CONTEXTS, hyperparameters=strong, held=held)
        hidden = measure(precise, [request], (), key_layers=(), hidden_layer=strong.z_layer).hidden.T
        prompt = tokenize_template(precise.tokenizer, HELD.prompt_template, HELD.subject, target=HELD.object)
        place = prompt.prompt_length - 1
        rows = rows_of(precise, [[Text(prompt, range(place, place + 1), 1.0, kept=True)]], [0], strong.z_layer)
        with torch.no_grad():
            logs = rows.logits(precise, (z - hidden).float(), strong.z_layer).log_softmax(-1)
        return float((rows.reference.exp() * (rows.reference - logs)).sum())

    assert drift((HELD,)) < 0.5 * drift(())


@pytest.mark.parametrize("memory", [1, 1 << 18, 1 << 30])
def test_the_memory_bound_changes_no_z(precise, requests, settings, memory) -> None:
    whole = values_for(precise, requests, contexts=CONTEXTS, hyperparameters=settings)
    parts = values_for(precise, requests, contexts=CONTEXTS, hyperparameters=settings, memory=memory)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
