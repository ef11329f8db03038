"""Which questions are asked."""

from nse.evaluation.probes import KnownFact, Probe, request_probes, shuffled, untouched_probes
from nse.request import EditRequest

REQUEST = EditRequest("1", "Anna", "{} lives in", "Rome", "Oslo", "home", ("Where is Anna?",), ("Boris lives in",))
FACTS = [KnownFact(s, "home", o) for s, o in [("Anna", "Oslo"), ("Bo", "Oslo"), ("Cy", "Oslo"), ("Di", "Lima")]]
FACTS += [KnownFact("Ed", "home", "Rome"), KnownFact("Fi", "home", "Oslo")]
NOBODY: set[tuple[str, str]] = set()


def probes(request=REQUEST, *, edited=NOBODY, neighbours=99, templates=("{} lives in", "{}'s home is")):
    return request_probes(request, facts=FACTS, templates=templates, edited=edited, neighbours=neighbours)


def subjects(found: list[Probe]) -> list[str]:
    own = [p for p in found if p.kind == "specificity" and p.prompt != "Boris lives in"]
    return [p.prompt.removesuffix(" lives in") for p in own]


def test_the_prompt_and_every_other_wording_are_asked_for_the_new_object() -> None:
    asked = [(p.kind, p.prompt, p.expected, p.foil) for p in probes(neighbours=0)]
    assert asked == [
        ("efficacy", "Anna lives in", "Rome", "Oslo"),
        ("generalization", "Where is Anna?", "Rome", "Oslo"),
        ("generalization", "Anna's home is", "Rome", "Oslo"),
        ("specificity", "Boris lives in", "Oslo", "Rome"),
    ]


def test_neighbours_with_the_same_old_object_come_first_and_the_subject_is_none_of_them() -> None:
    found = subjects(probes())
    assert set(found[:3]) == {"Bo", "Cy", "Fi"}
    assert set(found[3:]) == {"Di", "Ed"}
    assert subjects(probes(neighbours=2)) == found[:2]


def test_edited_subjects_are_never_neighbours() -> None:
    assert "Bo" not in subjects(probes(edited={("bo", "home")}))
    assert "Bo" in subjects(probes(edited={("bo", "work")}))


def test_a_neighbour_is_asked_for_its_own_object_against_the_new_one_or_the_old_one_if_it_is_the_new() -> None:
    by_subject = {p.prompt.removesuffix(" lives in"): (p.expected, p.foil) for p in probes()}
    assert by_subject["Bo"] == ("Oslo", "Rome")
    assert by_subject["Di"] == ("Lima", "Rome")
    assert by_subject["Ed"] == ("Rome", "Oslo")


def test_without_an_old_object_the_given_neighbourhood_cannot_be_asked() -> None:
    request = EditRequest("1", "Anna", "{} lives in", "Rome", neighborhood_prompts=("Boris lives in",))
    assert "Boris lives in" not in [p.prompt for p in probes(request)]
    assert subjects(probes(request))


def test_an_order_depends_on_its_seed_alone() -> None:
    names = [f"n{i}" for i in range(20)]
    assert shuffled(names, "a") == shuffled(reversed(names), "a")
    assert sorted(shuffled(names, "a")) == sorted(names)
    assert shuffled(names, "a") != shuffled(names, "b")


def test_untouched_facts_are_all_that_nobody_edited_each_asked_once() -> None:
    templates = {"home": ("{} lives in", "{}'s home is")}
    found = untouched_probes(FACTS, templates=templates, edited={("anna", "home")})
    assert [p.case_id for p in found] == [f"{f.subject} / home" for f in FACTS[1:]]
    for probe, fact in zip(found, FACTS[1:], strict=True):
        assert probe.prompt in {t.replace("{}", fact.subject) for t in templates["home"]}
        assert probe.expected == fact.object != probe.foil
        assert probe.foil in {"Oslo", "Lima", "Rome"}
    assert found == untouched_probes(FACTS, templates=templates, edited={("anna", "home")})


def test_a_sample_of_untouched_facts_is_the_same_whatever_is_edited() -> None:
    templates = {f.relation: ("{} lives in",) for f in FACTS}
    everything = untouched_probes(FACTS, templates=templates, edited=set())
    drawn = untouched_probes(FACTS, templates=templates, edited=set(), sample=2)
    assert len(drawn) == 2
    assert set(drawn) < set(everything)
    gone = next(f for f in FACTS if drawn[0].case_id == f"{f.subject} / {f.relation}")
    assert untouched_probes(FACTS, templates=templates, edited={gone.key}, sample=2) == drawn[1:]
