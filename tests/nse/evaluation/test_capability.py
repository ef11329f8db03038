"""Capability against one text at a time; and what a task file may hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nse.errors import TaskError
from nse.evaluation.capability import Choice, TaskSet, capability, read_task_sets
from nse.patch import patched
from tests.nse import oracle
from tests.nse.conftest import CITIES, PEOPLE, TEMPLATES

PROMPTS = [template.replace("{}", person) for person in PEOPLE for template in TEMPLATES]


def clozes(right: int = 0) -> tuple[Choice, ...]:
    """A question of each prompt: one city against two others."""
    around = [[CITIES[(i + k) % len(CITIES)] for k in range(right, right + 3)] for i in range(len(PROMPTS))]
    return tuple(Choice(prompt, cities[0], (*cities[1:],)) for prompt, cities in zip(PROMPTS, around, strict=True))


@torch.no_grad()
def nats(editable, text: str, given: int) -> float:
    """Sum of the log-probabilities of a text's tokens past the first `given`."""
    ids = oracle.ids_of(editable, text)
    logs = oracle.log_probabilities(editable.model, ids)
    return math.fsum(float(logs[i - 1, ids[i]]) for i in range(given, len(ids)))


def test_a_pair_is_right_where_the_good_text_is_the_more_probable_one_from_its_first_token_on(precise) -> None:
    texts = [f"{PEOPLE[0]} lives in {city}." for city in CITIES] + [
        "Lima lives in Anna Berg.",
        "number 8 is no secret.",
    ]
    lead = len(oracle.ids_of(precise, "\n"))
    pairs = [(a, b) for a in texts for b in texts if a != b]
    found = {text: nats(precise, f"\n{text}", lead) for text in texts}
    expected = sum(found[a] > found[b] for a, b in pairs) / len(pairs)
    assert expected == 0.5  # of each two texts one is the more probable
    some = pairs[: len(pairs) // 3]
    own = TaskSet("pairs", tuple(Choice("", a, (b,)) for a, b in some))
    share = capability(precise, [own])["capability.pairs"]
    assert share == pytest.approx(sum(found[a] > found[b] for a, b in some) / len(some))
    assert 0 < share < 1


def test_a_continuation_is_right_where_it_is_more_probable_than_every_wrong_one(precise) -> None:
    own = TaskSet("cities", clozes())
    scores = [
        [
            nats(precise, f"\n{c.prompt} {text}", len(oracle.ids_of(precise, f"\n{c.prompt}")))
            for text in (c.right, *c.wrong)
        ]
        for c in own.choices
    ]
    expected = sum(right > max(wrong) for right, *wrong in scores) / len(scores)
    assert capability(precise, [own])["capability.cities"] == pytest.approx(expected)
    assert 0 < expected < 1


def test_the_mean_is_over_sets_whatever_their_sizes_and_of_the_weights_in_force(editable) -> None:
    sets = [TaskSet("many", clozes()), TaskSet("few", clozes(1)[:3])]
    found = capability(editable, sets)
    assert list(found) == ["capability", "capability.many", "capability.few"]
    assert found["capability"] == pytest.approx((found["capability.many"] + found["capability.few"]) / 2)
    assert capability(editable, sets[1:])["capability"] == found["capability.few"]
    assert capability(editable, []) == {}
    name = editable.parameter_name(2)
    with patched(editable, {name: torch.full_like(editable.base_tensors[name], torch.nan)}):
        assert set(capability(editable, sets).values()) == {0.0}


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_file_has_pairs_or_continuations_and_other_keys_do_not_matter(tmp_path: Path) -> None:
    pair = {"good": "Anna works.", "bad": "Anna work.", "uid": "agreement"}
    cloze = {"prompt": "Anna lives in", "right": "Oslo", "wrong": ["Rome", "Lima", "Riga"]}
    (own,) = read_task_sets([write(tmp_path / "mixed.json", [pair, cloze])])
    assert own.name == "mixed"
    assert set(own.choices) == {
        Choice("", "Anna works.", ("Anna work.",)),
        Choice("Anna lives in", "Oslo", ("Rome", "Lima", "Riga")),
    }
    assert own.chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_sample_is_drawn_by_the_questions_alone(tmp_path: Path) -> None:
    rows = [{"good": f"{i} and {i}", "bad": f"{i} and {i + 1}"} for i in range(30)]
    (tmp_path / "turned").mkdir()
    files = [write(tmp_path / "tasks.json", rows), write(tmp_path / "turned" / "tasks.json", rows[::-1])]
    (one,), (other,), (all_,) = (
        read_task_sets([files[0]], most=7),
        read_task_sets([files[1]], most=7),
        read_task_sets([files[0]]),
    )
    assert one == other
    assert one.digest == other.digest != all_.digest
    assert len(one.choices) == 7
    assert {c.right for c in all_.choices} == {row["good"] for row in rows}
    assert {c.right for c in one.choices} != {row["good"] for row in rows[:7]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"good": "a", "bad": "b"}, r"tasks.json is no list of records, or an empty one: write \{\"good\""),
        ([], "tasks.json is no list of records, or an empty one"),
        ([{"good": "a", "bad": "b"}, "c"], r"tasks.json record 2 is no mapping: write \{\"good\""),
        ([{"good": "a"}], "record 1 lacks a right or a wrong text: write"),
        ([{"bad": "a"}], "record 1 lacks a right or a wrong text"),
        ([{"good": " ", "bad": "b"}], "record 1 lacks a right or a wrong text"),
        ([{"prompt": "a", "right": "b", "wrong": "c"}], "record 1 lacks a right or a wrong text"),
        ([{"prompt": "a", "right": "b", "wrong": []}], "record 1 lacks a right or a wrong text"),
        ([{"right": "b", "wrong": ["c"]}], "record 1 has no prompt: write"),
        ([{"prompt": "a", "right": "b", "wrong": ["c", "b"]}], "record 1: 'b' is right and wrong at once: change one"),
    ],
)
def test_a_bad_file_is_refused_with_the_record(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as refused:
        read_task_sets([write(tmp_path / "tasks.json", rows)])
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused_as_are_two_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"tasks.json cannot be read \(No such file or directory\): check the path"):
        read_task_sets([tmp_path / "tasks.json"])
    (tmp_path / "tasks.json").write_text("[{", encoding="utf-8")
    with pytest.raises(TaskError, match=r"tasks.json is not JSON \(.*\): write a JSON list of records"):
        read_task_sets([tmp_path / "tasks.json"])
    path = write(tmp_path / "tasks.json", [{"good": "a", "bad": "b"}])
    with pytest.raises(TaskError, match="two task files are called 'tasks': rename one"):
        read_task_sets([path, path])
