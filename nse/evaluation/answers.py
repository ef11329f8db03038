"""The rule by which a generated text is taken for an answer: where the answer ends, and whether it is the expected one.

An answer ends at the first sign that ends a clause. Where the expected text has such a sign inside, as "St. Petersburg" has, its
answer goes on past a sign as long as its words are the first words of that text and not all of them, and a sign between two
digits belongs to their number; this also where it ends in a digit, so that "1,000" is not "1". Where a text with a sign inside
may stand anywhere in the answer, the answer goes on to the end of its line.
"""

import re

from nse.evaluation.probes import Rule

END_OF_ANSWER = re.compile(r"[.,;:!?\n]")
"""The signs that end an answer, and with it the generation, where the expected text has none inside."""
_INSIDE = re.compile(r"[.,;:!?\n].*\w", re.DOTALL)
_NOT_IN_A_NUMBER = re.compile(r"\n|(?<!\d)[.,;:!?]|[.,;:!?](?!\d|\Z)")  # last in a text: more of a number may come
_ENDS_IN_DIGIT = re.compile(r"\d\W*\Z")
_END_OF_LINE = re.compile(r"\n")


def holds_sign(expected: str) -> bool:
    """Whether an expected text has a sign inside that would end an answer; those at its end do not count."""
    return _INSIDE.search(expected.lstrip()) is not None


def goes_on(expected: str, rule: Rule) -> bool:
    """Whether the answer may go on past a sign, so that more has to be generated than up to the first."""
    return holds_sign(expected) or (rule == "equals" and _ENDS_IN_DIGIT.search(expected) is not None)


def answer(text: str, expected: str = "", *, rule: Rule = "equals") -> str:
    """The answer in a generated text; where it ends depends on `expected`, if that has a sign inside or a digit at its end."""
    text = text.lstrip()
    return text[: _end(text, expected, rule)].strip()


def ended(text: str, expected: str, *, rule: Rule = "equals") -> bool:
    """Whether the answer in a generated text has come to its end, so that no more of the text is needed."""
    return _end(text.lstrip(), expected, rule) is not None


def same_answer(generated: str, expected: str) -> bool:
    """Whether a generated text answers `expected`: equal after case, spaces and punctuation are made one."""
    numbers = goes_on(expected, "equals")
    return _words(answer(generated, expected), numbers=numbers) == _words(expected, numbers=numbers)


def satisfies(generated: str, expected: str, *, rule: Rule) -> bool:
    """Whether a generated text is, contains or lacks `expected`; whole words count, up to where the answer ends."""
    if rule == "equals":
        return same_answer(generated, expected)
    numbers = holds_sign(expected)
    text = answer(generated, expected, rule=rule) if numbers else generated
    contains = f" {' '.join(_words(expected, numbers=numbers))} " in f" {' '.join(_words(text, numbers=numbers))} "
    return contains == (rule == "contains")


def _end(text: str, expected: str, rule: Rule) -> int | None:
    """Where the answer ends, None if it goes on to the end of the text."""
    if not goes_on(expected, rule):
        signs = END_OF_ANSWER.finditer(text)
    elif rule != "equals":
        signs = _END_OF_LINE.finditer(text)
    else:
        wanted = _words(expected, numbers=True)
        signs = (
            sign
            for sign in _NOT_IN_A_NUMBER.finditer(text)
            if sign[0] == "\n" or not _begins(_words(text[: sign.start()], numbers=True), wanted)
        )
    return next((sign.start() for sign in signs), None)


def _begins(words: list[str], wanted: list[str]) -> bool:
    """Whether `words` are the first ones of `wanted`, and not all."""
    return len(words) < len(wanted) and words == wanted[: len(words)]


def _words(text: str, *, numbers: bool) -> list[str]:
    """The words that are compared; with `numbers` a sign between two digits is part of a word."""
    text = text.casefold()
    if not numbers:
        return re.sub(r"[^\w\s]", " ", text).split()
    return re.sub(r"[^\w\s.,;:!?]", " ", _NOT_IN_A_NUMBER.sub(" ", f"{text} ")).split()
