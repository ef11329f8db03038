"""The order in which facts are written when only their set counts."""

from dataclasses import replace

from nse.consolidation import canonical
from nse.request import EditRequest

ONE = EditRequest("1", "Alba", "The capital of {} is", "Paris", "Rome", "capital")
OTHERS = [replace(ONE, case_id=str(i), subject=name) for i, name in enumerate(("Borea", "Cyra", "Dorn"), start=2)]


def test_the_order_does_not_depend_on_how_requests_came_nor_on_their_names() -> None:
    first = canonical([ONE, *OTHERS])
    assert sorted(r.subject for r in first) == ["Alba", "Borea", "Cyra", "Dorn"]
    renamed = [replace(request, case_id=f"x{request.case_id}") for request in reversed([ONE, *OTHERS])]
    assert [r.subject for r in canonical(renamed)] == [r.subject for r in first]


def test_it_depends_on_what_they_say() -> None:
    wordings = {
        tuple(r.case_id for r in canonical([replace(ONE, target_new=target), *OTHERS]))
        for target in map(str, range(20))
    }
    assert len(wordings) > 1
