"""Requests: every layout, every problem."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nse.errors import RequestError
from nse.request import EditRequest, read_requests

DATA = Path(__file__).parents[3] / "shared" / "data"

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lives in",
        "relation_id": "P551",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Oslo", "id": "Q585"},
        "subject": "Anna Berg",
    },
    "paraphrase_prompts": ["The home of Anna Berg is"],
    "neighborhood_prompts": ["Boris Cole lives in", "Clara Dahl lives in"],
    "generation_prompts": ["Anna Berg's home"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "rephrase": "What university did Watts Humphrey take part in?",
    "answers": ["Trinity College"],
    "alt": "University of Michigan",
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
}
PLAIN = {"subject": "Anna Berg", "prompt_template": "{} lives in", "target_new": "Rome"}


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_counterfact_is_read_whole(tmp_path) -> None:
    (request,) = read_requests(written(tmp_path, "r.json", [COUNTERFACT]))
    assert request == EditRequest(
        "7",
        "Anna Berg",
        "{} lives in",
        "Rome",
        "Oslo",
        "P551",
        ("The home of Anna Berg is",),
        ("Boris Cole lives in", "Clara Dahl lives in"),
        ("Anna Berg's home",),
    )
    assert request.prompt == "Anna Berg lives in"


def test_multicounterfact_may_lack_all_that_an_edit_does_not_need(tmp_path) -> None:
    rewrite = {"prompt": "{} is in", "subject": "Lima", "target_new": {"str": "Peru"}}
    (request,) = read_requests(written(tmp_path, "r.json", [{"requested_rewrite": rewrite}]))
    assert request == EditRequest("0", "Lima", "{} is in", "Peru")


def test_zsre_is_read_with_its_alternative_as_the_new_object(tmp_path) -> None:
    (request,) = read_requests(written(tmp_path, "r.json", [ZSRE]))
    assert request == EditRequest(
        "0",
        "Watts Humphrey",
        "What university did {} attend?",
        "University of Michigan",
        "Trinity College",
        None,
        ("What university did Watts Humphrey take part in?",),
        ("who played desmond doss father in hacksaw ridge?",),
        neighborhood_answers=("Hugo Weaving",),
    )
    assert request.neighbours == (("who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),)


def test_neighbours_answer_the_old_object_unless_a_request_says_otherwise() -> None:
    request = EditRequest("a", "Anna", "{} is in", "Rome", "Oslo", neighborhood_prompts=("Boris is in", "Clara is in"))
    assert request.neighbours == (("Boris is in", "Oslo"), ("Clara is in", "Oslo"))
    assert replace(request, target_true=None).neighbours == ()
    ((field, _),) = replace(request, neighborhood_answers=("Lima",)).problems()
    assert field == "neighborhood_answers"


def test_zsre_without_an_alternative_writes_the_answer(tmp_path) -> None:
    plain = {k: v for k, v in ZSRE.items() if k not in ("alt", "loc", "rephrase")}
    (request,) = read_requests(written(tmp_path, "r.json", [plain]))
    assert (request.target_new, request.target_true) == ("Trinity College", None)
    assert request.paraphrase_prompts == request.neighborhood_prompts == ()


def test_jsonl_is_read_line_by_line_and_blank_lines_are_skipped(tmp_path) -> None:
    lines = [
        {**PLAIN, "id": "a"},
        {**PLAIN, "case_id": 0, "relation": "home", "target_true": "Oslo", "paraphrase_prompts": ["x"]},
        {**PLAIN, "prompt": "{} is at", "prompt_template": None, "target_true": {"str": "Oslo"}, "relation_id": "P1"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines) + "\r\n"
    a, b, c = read_requests(written(tmp_path, "r.jsonl", text))
    assert a == EditRequest("a", "Anna Berg", "{} lives in", "Rome")
    assert b == EditRequest("0", "Anna Berg", "{} lives in", "Rome", "Oslo", "home", ("x",))
    assert c == EditRequest("2", "Anna Berg", "{} is at", "Rome", "Oslo", "P1")


def test_a_case_id_of_zero_does_not_collide_with_a_place_in_the_file(tmp_path) -> None:
    rows = [{**PLAIN, "case_id": 1}, {**PLAIN, "case_id": 0}]
    assert [r.case_id for r in read_requests(written(tmp_path, "r.json", rows))] == ["1", "0"]


def test_a_line_separator_inside_a_text_does_not_end_a_jsonl_line(tmp_path) -> None:
    text = json.dumps({**PLAIN, "subject": "Anna\u2028Berg\x85"}, ensure_ascii=False)
    (request,) = read_requests(written(tmp_path, "r.jsonl", text))
    assert request.subject == "Anna\u2028Berg\x85"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a byte-order mark"])
def test_csv_is_read_by_column_names_whoever_saved_it(tmp_path, newline, mark) -> None:
    lines = [
        "case_id,subject,prompt_template,target_new,target_true,relation,note",
        '1,"Berg, Anna",{} lives in,Rome,Oslo,home,x',
        '2,Эмма Жук,"The ""home"" of {} is",Lima,,,',
    ]
    path = tmp_path / "r.csv"
    path.write_bytes((mark + newline.join(lines) + newline).encode())
    assert read_requests(path) == [
        EditRequest("1", "Berg, Anna", "{} lives in", "Rome", "Oslo", "home"),
        EditRequest("2", "Эмма Жук", 'The "home" of {} is', "Lima"),
    ]


def test_a_single_text_where_a_list_may_stand_is_one_prompt(tmp_path) -> None:
    text = "subject,prompt,target_new,paraphrase_prompts\nAnna,{} is,Rome,The home of Anna is\n"
    (request,) = read_requests(written(tmp_path, "r.csv", text))
    assert request.paraphrase_prompts == ("The home of Anna is",)


@pytest.mark.parametrize(("name", "text"), [("r.json", "[]"), ("r.jsonl", "\n"), ("r.csv", "")])
def test_a_file_may_hold_no_request(tmp_path, name, text) -> None:
    assert read_requests(written(tmp_path, name, text)) == []


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"subject": ""}, "subject", "is empty: name the entity"),
        ({"subject": " \t"}, "subject", "is empty"),
        ({"target_new": "  "}, "target_new", "is empty: give the object"),
        ({"prompt_template": "he lives in"}, "prompt_template", "has 0 '{}' instead of one"),
        ({"prompt_template": "{} and {}"}, "prompt_template", "has 2 '{}' instead of one"),
        ({"target_true": " Rome "}, "target_new", "equals the old object ' Rome '"),
    ],
)
def test_every_problem_is_named_with_its_field(change, field, message) -> None:
    fine = EditRequest("1", "Anna Berg", "{} lives in", "Rome")
    assert fine.problems() == []
    assert fine.checked() is fine
    bad = EditRequest(
        **{"case_id": "1", "subject": "Anna Berg", "prompt_template": "{} is in", "target_new": "Rome"} | change
    )
    ((found, reason),) = bad.problems()
    assert found == field
    assert reason.startswith(message)
    with pytest.raises(RequestError, match=f"request 1: {field} "):
        bad.checked()


def test_all_problems_of_a_request_are_listed() -> None:
    fields = [f for f, _ in EditRequest("1", "", "nowhere", "", "").problems()]
    assert fields == ["subject", "target_new", "prompt_template", "target_new"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", "{", r"r\.json is not JSON \(line 1: .*\): mend it there"),
        ("r.json", {"a": 1}, "holds a JSON dict: a list of records is needed"),
        ("r.json", ["x"], "record 0 is not an object"),
        ("r.json", [PLAIN, {"subject": "A", "prompt": "{}"}], "record 1 has no field 'target_new': add it"),
        ("r.json", [{"prompt": "{}", "target_new": "x"}], "record 0 has no field 'subject'"),
        ("r.json", [{"subject": "A", "target_new": "x"}], "record 0 has no field 'prompt_template'"),
        ("r.json", [{"requested_rewrite": {"prompt": "{}", "subject": "A"}}], "has no field 'target_new'"),
        ("r.json", [{"requested_rewrite": "x"}], "record 0: requested_rewrite is 'x', not an object"),
        ("r.json", [{**PLAIN, "subject": 5}], "record 0: subject is 5, not a text: put it in quotes"),
        ("r.json", [{**PLAIN, "target_new": 1984}], "record 0: target_new is 1984, not a text"),
        ("r.json", [{**PLAIN, "target_true": ["x"]}], "record 0: target_true is .*, not a text"),
        ("r.json", [{**PLAIN, "prompt_template": 3}], "record 0: prompt_template is 3, not a text"),
        ("r.json", [{**PLAIN, "paraphrase_prompts": [3]}], "record 0: paraphrase_prompts is 3, not a text"),
        ("r.json", [{**ZSRE, "alt": "", "answers": []}], "target_new is empty"),
        ("r.json", [{**ZSRE, "src": "What did he do?"}], "prompt_template has 0 '{}'"),
        ("r.json", [PLAIN | {"case_id": 3}, PLAIN | {"case_id": "3"}], "has case_id '3' more than once"),
        ("r.jsonl", json.dumps(PLAIN) + "\nnot json\n", r"r\.jsonl line 2 is not JSON"),
        ("r.csv", "subject,prompt\nAnna,{} is\n", "record 0 has no field 'target_new'"),
        ("r.csv", "subject,prompt,target_new\nAnna,{} is\n", "request 0: target_new is empty"),
        ("r.csv", "subject,prompt,target_new\nAnna,," + "x" * 200_000, "is not CSV .*: save it"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_says_where(tmp_path, name, content, message) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_requests(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.csv"])
def test_a_file_that_is_not_utf8_is_refused_with_its_first_bad_byte(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"subject\nM\xfcnchen\n")
    with pytest.raises(RequestError, match=r"is not UTF-8 \(line 2, byte 9\): save it as UTF-8"):
        read_requests(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RequestError, match="cannot be read"):
            read_requests(path)


@pytest.mark.parametrize(("name", "count"), [("bios.json", 800), ("pararel.json", 13502)])
def test_the_shared_data_is_read(name, count) -> None:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not on this machine")
    requests = read_requests(DATA / name)
    assert len(requests) == count
    assert all(r.relation and r.target_true and r.paraphrase_prompts is not None for r in requests)
    assert sum(bool(r.neighborhood_prompts) for r in requests) > count / 2
