"""Padding and grouping."""

import gc
import weakref

import pytest
import torch

from nse.batch import by_length, halved, pad
from nse.errors import NseError, TokenError
from nse.tokens import TokenizedPrompt


def test_sequences_are_padded_on_the_right_and_masked(editable) -> None:
    batch = pad(editable, [[5, 6, 7], [8]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_longest_text_that_the_model_takes_is_padded_and_a_longer_one_refused(editable) -> None:
    assert pad(editable, [[5] * 96]).ids.shape == (1, 96)
    with pytest.raises(TokenError, match="a text has 97 tokens, the model takes 96: shorten"):
        pad(editable, [[5] * 97])


@pytest.mark.parametrize("budget", [1, 7, 12, 1000])
def test_groups_hold_every_prompt_once_within_the_budget(budget) -> None:
    lengths = [3, 1, 6, 2, 2, 5, 4]
    groups = list(by_length([TokenizedPrompt((0,) * n, n) for n in lengths], tokens=budget))
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget
    if budget == 1000:
        assert len(groups) == 1


def test_nothing_to_group_gives_no_group() -> None:
    assert list(by_length([])) == []


FULL = {
    "device": torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB.\nSee the docs"),
    "processor": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes"
    ),
}


class Machine:
    """Takes up to `room` items at a time; remembers the sizes that it was asked for."""

    def __init__(self, room: int, error: RuntimeError) -> None:
        self.room, self.error, self.sizes = room, error, []

    def run(self, items: list[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise self.error
        return [i * i for i in items]


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("room", [1, 3, 5, 11, 100])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(kind, room) -> None:
    machine = Machine(room, FULL[kind])
    assert halved(machine.run, list(range(11)), what="facts") == [i * i for i in range(11)]
    fitting = [size for size in machine.sizes if size <= room]
    assert sum(fitting) == 11
    assert len(machine.sizes) == (1 if room >= 11 else 2 * len(fitting) - 1)


@pytest.mark.parametrize("kind", FULL)
def test_one_that_does_not_fit_alone_is_an_error_of_one_line(kind) -> None:
    with pytest.raises(
        NseError, match=r"^one of the facts does not fit in memory by itself \(.*\): shorten it.*$"
    ) as caught:
        halved(Machine(0, FULL[kind]).run, [1, 2, 3], what="facts")
    assert "\n" not in str(caught.value)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    machine = Machine(2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        halved(machine.run, [1, 2, 3, 4], what="facts")
    assert machine.sizes == [4]


def test_nothing_is_run_for_nothing() -> None:
    machine = Machine(5, FULL["device"])
    assert halved(machine.run, [], what="facts") == []
    assert machine.sizes == []


def test_what_the_failed_batch_held_is_let_go_before_its_halves_are_run() -> None:
    held: list[weakref.ref] = []

    def run(items: list[int]) -> list[int]:
        gc.collect()
        assert all(reference() is None for reference in held)
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        if len(items) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return items

    assert halved(run, [1, 2, 3, 4], what="facts") == [1, 2, 3, 4]
    assert len(held) == 7
