"""What digests are taken of, written from rows: the same text as JSON gives, whichever way a row is written."""

import json
from typing import Any

import pytest
from sqlalchemy import Column, Double, Integer, Text

from ledger.forms import Form, Shapes, Unreadable, shape_of
from ledger.records import canonical_json

COLUMNS = [
    Column("text", Text, nullable=False),
    Column("more", Text, nullable=True),
    Column("real", Double, nullable=True),
    Column("number", Integer, nullable=False),
]
OBJECT = Form(
    "{", [(f"{json.dumps(c.name)}:", place, c) for place, c in sorted(enumerate(COLUMNS), key=lambda x: x[1].name)], "}"
)
ARRAY = Form("[", [("", place, column) for place, column in enumerate(COLUMNS)], "]")
CHARACTERS = [chr(code) for code in (*range(0x180), 0x2028, 0xFFFD, 0x1F600)]


def as_json(row: tuple[Any, ...]) -> str:
    names = [column.name for column in COLUMNS]
    return canonical_json(
        {n: float("nan") if n == "real" and v is None else v for n, v in zip(names, row, strict=True)}
    )


def test_every_character_is_written_as_json_writes_it_by_one_row_and_by_many() -> None:
    shapes = Shapes()
    for character in CHARACTERS:
        for row in (
            (f"a{character}", "plain", 0.1, 7),
            ("plain", f"{character}b", -0.0, -1),
            (character, None, None, 0),
        ):
            assert OBJECT(row, shapes(row)) == OBJECT(row) == as_json(row), repr(character)


def test_texts_without_escapes_are_written_without_looking_at_each() -> None:
    shapes = Shapes()
    assert shapes(("a", "b", 0.5, 1)) == (str, str, float, int)
    assert shapes(('a"', "b", 0.5, 1)) == shape_of(("a", "b", 0.5, 1)) != (str, str, float, int)


def test_an_array_holds_null_for_what_an_object_leaves_out() -> None:
    assert ARRAY(("a", None, None, 1)) == '["a",null,"nan",1]'
    assert OBJECT(("a", None, None, 1)) == '{"number":1,"real":"nan","text":"a"}'


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ((None, None, 0.5, 1), "text is not text"),
        ((b"a", None, 0.5, 1), "text is not text"),
        (("a", 5, 0.5, 1), "more is not text"),
        (("a", None, "0.5", 1), "real is not a real number"),
        (("a", None, 0.5, 1.0), "number is not a whole number"),
        (("a", None, 0.5, None), "number is not a whole number"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused_each_time(row: tuple[Any, ...], problem: str) -> None:
    shapes = Shapes()
    for _ in range(2):
        with pytest.raises(Unreadable, match=problem):
            OBJECT(row, shapes(row))


@pytest.mark.parametrize("text", ["\ud800", "ok \udcff"])
def test_half_of_a_surrogate_pair_has_no_digest(text: str) -> None:
    row = (text, None, 0.5, 1)
    with pytest.raises(Unreadable, match="no text"):
        OBJECT.digest(row, Shapes()(row))
