"""One subject, many corrections, on the demo model: what one night wrote outlives the next, and so do its other facts."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from nse.architecture import EditableModel, load_model
from nse.contexts import read_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.evaluation.answers import same_answer
from nse.evaluation.generate import generate
from nse.evaluation.suites import Suite, held_facts, read_suite
from nse.hyperparameters import read_hyperparameters
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments, collect_second_moments

ROOT = Path(__file__).parents[2]
NIGHTS = 5
SUBJECT = "Qualcomm"


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return load_model(ROOT / "demo/model")


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_suite(ROOT / "demo/suite.yaml")


# five objects in one vector take more steps than one
AT_SUBJECT = replace(
    read_hyperparameters(ROOT / "demo/at_subjects.yaml").settings, v_num_grad_steps=60, clamp_norm_factor=4.0
)
SHIPPED = read_hyperparameters(ROOT / "demo/hparams.yaml").settings


@pytest.fixture(scope="module")
def moments(model: EditableModel) -> SecondMoments:
    return collect_second_moments(model, ROOT / "demo/corpus.txt", layers=(*AT_SUBJECT.layers, *SHIPPED.layers))


@pytest.fixture(scope="module", params=[AT_SUBJECT, SHIPPED], ids=["at the subject", "as shipped"])
def context(suite: Suite, moments: SecondMoments, request: pytest.FixtureRequest) -> EditContext:
    settings = request.param
    return EditContext(settings, moments, read_contexts(ROOT / "demo/contexts.json"), held=held_facts(suite))


@pytest.fixture(scope="module")
def stream(suite: Suite) -> list[EditRequest]:
    """Five of the subject's facts, each to be another object of its relation."""
    generator = random.Random(3)
    facts = [f for f in suite.facts if f.subject == SUBJECT][:NIGHTS]
    return [
        EditRequest(
            fact.relation,
            SUBJECT,
            suite.templates[fact.relation][0],
            generator.choice(sorted({f.object for f in suite.facts if f.relation == fact.relation} - {fact.object})),
            fact.object,
            fact.relation,
        )
        for fact in facts
    ]


@pytest.fixture(scope="module")
def nights(model: EditableModel, context: EditContext, stream: list[EditRequest]) -> list[Delta]:
    """One correction a night."""
    deltas: list[Delta] = []
    for night, request in enumerate(stream):
        now = replace(context, previous=tuple(deltas), earlier=tuple(stream[:night]))
        deltas.append(get_editor("nse").edit(model, [request], now).delta)
    return deltas


def right(model: EditableModel, deltas: list[Delta], wanted: dict[str, str]) -> list[bool]:
    with patched(model, compose(model, deltas)):
        said = generate(model, list(wanted), expected=list(wanted.values()))
    return [same_answer(text, expected) for text, expected in zip(said, wanted.values(), strict=True)]


def test_five_relations_of_one_subject_corrected_on_five_nights_all_hold(model, stream, nights) -> None:
    assert all(right(model, nights, {r.prompt: r.target_new for r in stream}))


def test_the_subjects_other_facts_stay(model, suite, stream, nights) -> None:
    corrected = {r.relation for r in stream}
    others = [f for f in suite.facts if f.subject == stream[0].subject and f.relation not in corrected]
    asked = {suite.templates[f.relation][0].replace("{}", f.subject): f.object for f in others}
    assert asked
    assert all(right(model, nights, asked))


@pytest.mark.parametrize("gone", range(NIGHTS))
def test_reverting_one_leaves_the_other_four(model, context, stream, nights, gone) -> None:
    left = [r for r in stream if r is not stream[gone]]
    without = [delta for night, delta in enumerate(nights) if night != gone]
    now = replace(context, previous=tuple(without), earlier=tuple(left))
    # the night itself can be left out; what later nights wrote for the others no longer adds up and is written again
    again = left if gone < NIGHTS - 1 else []
    settled = [get_editor("nse").edit(model, again, now).delta] if again else []
    assert all(right(model, [*without, *settled], {r.prompt: r.target_new for r in left}))
    assert right(model, [*without, *settled], {stream[gone].prompt: stream[gone].target_true}) == [True]


def test_leaving_out_the_last_night_gives_back_the_night_before(model, nights) -> None:
    before, after = (
        compose(model, deltas) for deltas in (nights[:-1], [*nights[:-1], nights[-1].without(nights[-1].case_ids)])
    )
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)
