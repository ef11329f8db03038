"""Retention by age: intervals against published figures and by simulation, samples, the plot."""

import random
from collections import Counter

import pytest

from nse.evaluation.outcomes import CaseOutcome
from nse.evaluation.retention import draw, retention_by_age, stratified, wilson
from nse.request import EditRequest


def answered(case: str, passed: bool) -> CaseOutcome:
    return CaseOutcome("retention", case, "prompt", "x", 0.5, passed, "x", passed, 1.0, None, passed)


def edits(*sizes: int) -> list[list[EditRequest]]:
    return [
        [EditRequest(f"{number}-{i}", "Anna", "{} is", "x") for i in range(size)] for number, size in enumerate(sizes)
    ]


def test_the_interval_is_wilsons() -> None:
    # Newcombe (1998), table I, method 3 (score): 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    low, high = wilson(29, 29)
    assert (1 - high, 1 - low) == pytest.approx(wilson(0, 29))


def test_an_interval_holds_the_true_share_about_as_often_as_it_says() -> None:
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = wilson(sum(generator.random() < 0.9 for _ in range(40)), 40)
        hits += low <= 0.9 <= high
    assert 0.92 < hits / 2000 < 0.98


def test_edits_are_counted_by_age_and_hold_only_if_all_their_answers_are_right() -> None:
    rounds = {"a": 1, "b": 1, "c": 3, "d": 4}
    outcomes = [answered("a", True), answered("a", False), answered("b", True), answered("c", True)]
    ages, overall = retention_by_age(outcomes, rounds)
    assert [(k.age, k.n, k.kept) for k in ages] == [
        (1, 1, 1.0),
        (3, 2, 0.5),
    ]  # of round 4, the youngest, none was asked
    assert (overall.age, overall.n, overall.kept) == (None, 3, pytest.approx(2 / 3))
    assert (ages[1].low, ages[1].high) == wilson(1, 2)


def test_a_sample_has_of_each_round_its_share_and_depends_on_the_seed_alone() -> None:
    rounds = edits(40, 10, 30, 20)
    drawn = stratified(rounds, 20, seed="s")
    assert Counter(r.case_id.split("-")[0] for r in drawn) == {"0": 8, "1": 2, "2": 6, "3": 4}
    assert len(set(drawn)) == 20
    shuffled = [random.Random(1).sample(own, len(own)) for own in rounds]
    assert stratified(shuffled, 20, seed="s") == drawn
    assert set(stratified(rounds, 20, seed="t")) != set(drawn)


def test_a_sample_as_large_as_all_is_all() -> None:
    rounds = edits(3, 0, 2)
    assert {r.case_id for r in stratified(rounds, 5, seed="s")} == {"0-0", "0-1", "0-2", "2-0", "2-1"}
    assert stratified(rounds, 0, seed="s") == stratified([], 3, seed="s") == ()


def test_every_edit_can_be_drawn() -> None:
    rounds = edits(3, 3)
    assert {r.case_id for seed in range(60) for r in stratified(rounds, 2, seed=str(seed))} == {
        r.case_id for own in rounds for r in own
    }


def test_the_plot_is_an_image_with_the_same_bytes_each_time(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    ages, overall = retention_by_age([answered("a", True), answered("b", False)], {"a": 1, "b": 2})
    for name in ("one.svg", "two.svg"):
        draw(ages, overall, tmp_path / "plots" / name)
    first, second = ((tmp_path / "plots" / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert first == second
    assert b"</svg>" in first
    assert b"age of edit" in first or first.count(b"<path") > 10  # letters are drawn as paths
