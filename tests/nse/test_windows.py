"""Texts packed into windows: every token once, in order, each text as the tokenizer has it."""

from itertools import chain

import pytest

from nse.errors import StatisticsError
from nse.windows import packed

TEXTS = ["Anna lives in Oslo.", "Эмма Жук, 北京市", "so and " * 100, "x", "The home of Boris is Rome."]


def front_of(tokenizer) -> list[int]:
    """What the tokenizer puts in front of every text: BOS or nothing."""
    return tokenizer("x")["input_ids"][:-1]


@pytest.mark.parametrize("size", [8, 20, 96])
def test_windows_are_full_but_for_the_last_and_begin_as_every_text_does(editable, size) -> None:
    windows = list(packed(editable.tokenizer, TEXTS, size=size))
    front = front_of(editable.tokenizer)
    assert {len(window) for window in windows[:-1]} <= {size, size - len(front)}
    assert 0 < len(windows[-1]) <= size
    assert all(window[: len(front)] == front for window in windows)


def test_every_token_of_every_text_is_in_a_window_once(editable) -> None:
    tokenizer, front = editable.tokenizer, front_of(editable.tokenizer)
    read = [i for i in chain.from_iterable(packed(tokenizer, TEXTS, size=20)) if i not in front]
    ends = "" if front else "\n"
    assert read == [i for text in TEXTS for i in tokenizer(text + ends)["input_ids"] if i not in front]


def test_a_text_keeps_the_special_tokens_that_stand_in_front_of_it(editable) -> None:
    (window,) = packed(editable.tokenizer, ["Oslo", "Rome"], size=96)
    front = front_of(editable.tokenizer)
    assert editable.tokenizer.decode(window) == ("<s>Oslo<s>Rome" if front else "Oslo\nRome\n")


def test_a_window_without_room_for_text_is_refused(editable) -> None:
    with pytest.raises(StatisticsError, match="no room for text"):
        list(packed(editable.tokenizer, TEXTS, size=len(front_of(editable.tokenizer))))


def test_without_texts_there_is_no_window(editable) -> None:
    assert list(packed(editable.tokenizer, [], size=20)) == []
