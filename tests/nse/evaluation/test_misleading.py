"""What misleads: which questions are made of a small world, and that they are the same ones every night."""

from dataclasses import replace

import pytest

from nse.errors import SuiteError
from nse.evaluation.misleading import LEAD_INS, MISLEADING, World, misleading_probes
from nse.evaluation.probes import KnownFact
from nse.request import EditRequest

TEMPLATES = {
    "capital": ("The capital of {} is", "{} is governed from", "What is the capital of {}?"),
    "river": ("{} lies on the",),
    "currency": ("The currency of {} is the",),
}
FACTS = [
    *(KnownFact(s, "capital", o) for s, o in [("Niger", "Niamey"), ("Nigeria", "Abuja"), ("Peru", "Lima")]),
    *(KnownFact(s, "capital", o) for s, o in [("New Guinea", "Moresby"), ("Guinea", "Conakry"), ("Inca Land", "Lima")]),
    *(KnownFact(s, "river", o) for s, o in [("Abuja", "Jabi"), ("Niamey", "Niger"), ("Lima", "Rimac")]),
    *(KnownFact(s, "currency", o) for s, o in [("Niger", "franc"), ("Peru", "sol")]),
]
REQUEST = EditRequest("1", "Niger", "The capital of {} is", "Lima", "Niamey", "capital")


def asked(kind: str, request: EditRequest = REQUEST, *, per_kind: int = 99, edited=(), tokenizer=None, facts=FACTS):
    known = {KnownFact(request.subject, request.relation or "", "").key, *edited}
    world = World.of(facts, TEMPLATES, edited=known, tokenizer=tokenizer)
    probes = misleading_probes([request], world, kinds=[kind], per_kind=per_kind)
    assert all((p.kind, p.case_id) == (kind, request.case_id) for p in probes)
    return {p.prompt: (p.expected, p.foil) for p in probes}


def test_the_subjects_other_facts_must_stay() -> None:
    assert asked("same_subject") == {"The currency of Niger is the": ("franc", "sol")}
    assert asked("same_subject", edited={("niger", "currency")}) == {}
    assert (
        asked("same_subject", EditRequest("1", "Niger", "{} is", "x")) == {}
    )  # which of its facts is meant is not known


def test_neighbours_must_withstand_the_correction_stated_in_front_of_them() -> None:
    found = asked("distracted")
    stated = "The capital of Niger is Lima. The capital of "
    assert found == {
        f"{stated}Nigeria is": ("Abuja", "Lima"),
        f"{stated}New Guinea is": ("Moresby", "Lima"),
        f"{stated}Guinea is": ("Conakry", "Lima"),
    }  # whose capital is Lima anyway cannot be misled to it
    given = EditRequest(
        "1", "Niger", "The capital of {} is", "Lima", "Niamey", neighborhood_prompts=("Mali's capital is",)
    )
    stated = "The capital of Niger is Lima. Mali's capital is"
    assert asked("distracted", given) == {stated: ("Niamey", "Lima")}
    for answer, foil in (("Bamako", "Lima"), ("Lima", "Niamey")):  # its own answer, which may be the new object
        assert asked("distracted", replace(given, neighborhood_answers=(answer,))) == {stated: (answer, foil)}
    alone = replace(given, neighborhood_answers=("Lima",), target_true=None)
    assert asked("distracted", alone) == {stated: ("Lima", None)}


def test_a_name_in_common_is_a_word_of_both_names_that_is_a_name() -> None:
    request = EditRequest("1", "Equatorial Guinea", "The capital of {} is", "Oslo", "Malabo", "capital")
    assert set(asked("shared_name", request)) == {"The capital of New Guinea is", "The capital of Guinea is"}
    assert asked("shared_name") == {}
    for first, second in (("The Hague", "The Gambia"), ("Bay of Kiel", "Isle of Man"), ("Al B", "Al C")):
        own = EditRequest("1", first, "The capital of {} is", "Oslo", "x", "capital")
        assert asked("shared_name", own, facts=[KnownFact(second, "capital", "y")]) == {}


def test_near_duplicates_are_subjects_spelt_almost_alike_the_nearest_first() -> None:
    assert asked("near_duplicate") == {"The capital of Nigeria is": ("Abuja", "Lima")}
    facts = [KnownFact(s, "capital", "Oslo") for s in ("Nigerian", "Nigeri", "Mongolia")]
    assert list(asked("near_duplicate", facts=facts)) == ["The capital of Nigeri is", "The capital of Nigerian is"]
    assert asked("near_duplicate", facts=facts, edited={("nigeri", "capital"), ("nigerian", "capital")}) == {}


def test_the_new_objects_own_facts_go_on() -> None:
    found = asked("new_object")
    assert found == {"Lima lies on the": ("Rimac", found["Lima lies on the"][1])}
    assert found["Lima lies on the"][1] in ("Jabi", "Niger")
    assert asked("new_object", edited={("lima", "river")}) == {}


def test_a_chain_asks_the_new_objects_facts_by_way_of_the_subject() -> None:
    # the foil is what would follow from the old object
    assert asked("chained") == {"The capital of Niger lies on the": ("Rimac", "Niger")}
    assert asked("chained", edited={("lima", "river")}) == {}
    unnamed = EditRequest("1", "Niger", "{} lies on the", "Lima", "Niamey", "river")
    assert asked("chained", unnamed) == {}  # no wording says what the relation calls its object


def test_the_reverse_is_asked_by_the_likelihood_of_the_subject() -> None:
    found = asked("reversed")
    assert set(found) == {"Lima is the capital of", "One that is governed from Lima is"}
    for expected, foil in found.values():
        assert expected == "Niger"
        assert foil in {"Nigeria", "New Guinea", "Guinea"}  # not Peru, of which it is true
    assert asked("reversed", facts=[]) == {}


def test_running_text_stands_before_the_prompt() -> None:
    assert asked("running_text") == {f"{s} The capital of Niger is": ("Lima", "Niamey") for s in LEAD_INS}


def test_a_chat_asks_the_question_in_the_tokenizers_template(editable) -> None:
    tokenizer = editable.tokenizer
    assert asked("chat", tokenizer=tokenizer) == {}
    template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<bot> "
    try:
        tokenizer.chat_template = template
        sets_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        bos = "" if sets_bos else tokenizer.bos_token
        text = f"{bos}<user> What is the capital of Niger?\n<bot> "
        assert asked("chat", tokenizer=tokenizer) == {text: ("Lima", "Niamey")}
        assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1
        bare = EditRequest("1", "Niger", "{} lies on the", "Lima", relation="river")
        assert list(asked("chat", bare, tokenizer=tokenizer)) == [f"{bos}<user> Niger lies on the\n<bot> "]
    finally:
        tokenizer.chat_template = None


def test_each_kind_is_bounded_and_drawn_alike_from_facts_in_any_order() -> None:
    for kind in MISLEADING:
        everything, drawn = asked(kind), asked(kind, per_kind=1)
        assert list(drawn.items()) == list(everything.items())[:1]
        assert asked(kind, facts=FACTS[::-1], per_kind=1) == drawn
    other = EditRequest("2", "Niger", "The capital of {} is", "Lima", "Niamey", "capital")
    orders = {tuple(asked("running_text", r)) for r in (REQUEST, other)}
    assert len(orders) == 2  # drawn anew for each correction


def test_only_known_kinds_can_be_asked() -> None:
    world = World.of(FACTS, TEMPLATES, edited=())
    with pytest.raises(SuiteError, match="'telepathy' is unknown: use same_subject"):
        misleading_probes([REQUEST], world, kinds=["chat", "telepathy"], per_kind=1)
    assert misleading_probes([REQUEST], world, kinds=[], per_kind=9) == []
