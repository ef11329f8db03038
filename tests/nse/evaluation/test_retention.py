"""Retention: intervals against published figures and by simulation, samples and what they leave open."""

import random
from collections import Counter

import pytest

from nse.evaluation.retention import sample_metrics, stratified, wilson
from nse.request import EditRequest


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


def test_a_sample_has_of_each_round_its_share_and_depends_on_the_seed_alone() -> None:
    rounds = edits(40, 10, 30, 20)
    drawn = stratified(rounds, 20, seed="s")
    taken = Counter(r.case_id.split("-")[0] for r in drawn)
    assert all(abs(taken[number] - share) <= 1 for number, share in {"0": 8, "1": 2, "2": 6, "3": 4}.items())
    assert len(set(drawn)) == 20
    shuffled = [random.Random(1).sample(own, len(own)) for own in rounds]
    assert stratified(shuffled, 20, seed="s") == drawn
    assert set(stratified(rounds, 20, seed="t")) != set(drawn)


def test_rounds_smaller_than_a_share_are_drawn_as_often_as_others() -> None:
    rounds = edits(100, *[1] * 100)
    small = [sum(r.case_id[:2] != "0-" for r in stratified(rounds, 20, seed=str(seed))) for seed in range(50)]
    assert sum(small) / 50 == pytest.approx(10, abs=1)


def test_samples_before_and_after_a_round_or_without_an_edit_have_nearly_all_in_common() -> None:
    rounds = edits(*[50] * 20)
    drawn = set(stratified(rounds, 100, seed="s"))
    without = [*rounds[:9], rounds[9][:10] + rounds[9][11:], *rounds[10:]]
    assert len(drawn & set(stratified(without, 100, seed="s"))) >= 94
    assert len(drawn & set(stratified([*rounds, *edits(*[0] * 20, 50)[20:]], 100, seed="s"))) >= 90


def test_a_sample_as_large_as_all_is_all() -> None:
    rounds = edits(3, 0, 2)
    assert {r.case_id for r in stratified(rounds, 5, seed="s")} == {"0-0", "0-1", "0-2", "2-0", "2-1"}
    assert stratified(rounds, 0, seed="s") == stratified([], 3, seed="s") == ()


def test_every_edit_can_be_drawn() -> None:
    rounds = edits(3, 3)
    assert {r.case_id for seed in range(60) for r in stratified(rounds, 2, seed=str(seed))} == {
        r.case_id for own in rounds for r in own
    }


def test_a_sample_says_between_what_bounds_the_share_of_all_lies() -> None:
    ways = {"retention": 0.95, "retention_accuracy": 1.0, "retention_generation": 0.5}
    found = sample_metrics(ways, asked=100, total=5000)
    assert (found["retention_asked"], found["retention_all"]) == (100, 5000)
    assert (found["retention_low"], found["retention_high"]) == wilson(95, 100)
    assert (found["retention_generation_low"], found["retention_generation_high"]) == wilson(50, 100)
    assert (found["retention_accuracy_low"], found["retention_accuracy_high"]) == (wilson(100, 100)[0], 1.0)


def test_where_all_or_nearly_all_are_asked_the_bounds_are_what_is_certain() -> None:
    ways = {"retention": 1.0, "retention_accuracy": 0.5, "retention_generation": 0.0}
    all_of_them = sample_metrics(ways, asked=10, total=10)
    assert all(all_of_them[f"{way}_low"] == all_of_them[f"{way}_high"] == share for way, share in ways.items())
    but_one = sample_metrics(ways, asked=10, total=11)
    assert (but_one["retention_low"], but_one["retention_high"]) == (10 / 11, 1.0)
    assert (but_one["retention_generation_low"], but_one["retention_generation_high"]) == (0.0, 1 / 11)
    assert sample_metrics({}, asked=0, total=0) == {}
