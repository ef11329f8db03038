"""The rule by which a generated text is taken for an answer: where the answer ends, and whether it is the expected one.

An answer ends at the first sign that ends a clause. Where the expected text has such a sign inside, as "St. Petersburg" has, its
answer goes on past a sign as long as its words are the first words of that text and not all of them, and a sign between two
digits belongs to their number; this also where it ends in a digit, so that "1,000" is not "1". Where a text with a sign inside
may stand anywhere in the answer, the answer goes on to the end of its line.

In the chat format (rule "states") a model answers in sentences: "The capital of Kenya is Nairobi." The answer is the first
sentence, and it is right if it states the expected text and not the foil: the old object of a correction, or the new one where
a neighbour is asked. A text is stated where its words stand as whole words, and are neither repeated from the question ("The
language of French Stewart is English" does not state French) nor a part of the other text ("New York" in "New York City").
A sentence ends with its line, or at a full stop, "!" or "?" before white space; but not after one letter ("J. R. R. Tolkien"),
nor where the word stands with this stop in the question or the expected text ("St. Petersburg").
"""

import re
from collections.abc import Collection, Iterator, Sequence

from nse.evaluation.probes import Rule

END_OF_ANSWER = re.compile(r"[.,;:!?\n]")
"""The signs that end an answer, and with it the generation, where the expected text has none inside."""
_INSIDE = re.compile(r"[.,;:!?\n].*\w", re.DOTALL)
_NOT_IN_A_NUMBER = re.compile(r"\n|(?<!\d)[.,;:!?]|[.,;:!?](?!\d|\Z)")  # last in a text: more of a number may come
_ENDS_IN_DIGIT = re.compile(r"\d\W*\Z")
_END_OF_LINE = re.compile(r"\n")
_END_OF_SENTENCE = re.compile(r"\n|[.!?](?=\s|\Z)")
_ONE_LETTER = re.compile(r"[^\W\d_]\.")
_MARKS = "*_\"'(["
"""What may stand right before a word."""


def holds_sign(expected: str) -> bool:
    """Whether an expected text has a sign inside that would end an answer; those at its end do not count."""
    return _INSIDE.search(expected.lstrip()) is not None


def goes_on(expected: str, rule: Rule) -> bool:
    """Whether the answer may go on past a sign, so that more has to be generated than up to the first."""
    return (
        rule == "states" or holds_sign(expected) or (rule == "equals" and _ENDS_IN_DIGIT.search(expected) is not None)
    )


def answer(text: str, expected: str = "", *, rule: Rule = "equals", question: str = "") -> str:
    """The answer in a generated text; where it ends depends on `expected`, if that has a sign inside or a digit at its end.

    A first sentence (rule "states") depends on the question too.
    """
    text = text.lstrip()
    return text[: _end(text, expected, rule, question)].strip()


def ended(text: str, expected: str, *, rule: Rule = "equals", question: str = "") -> bool:
    """Whether the answer in a generated text has come to its end, so that no more of the text is needed."""
    text = text.lstrip()
    end = _end(text, expected, rule, question)
    if rule == "states" and end == len(text) - 1 and text[end] != "\n":
        return False  # what comes next tells a full stop from the point of a number
    return end is not None


def same_answer(generated: str, expected: str) -> bool:
    """Whether a generated text answers `expected`: equal after case, spaces and punctuation are made one."""
    numbers = goes_on(expected, "equals")
    return _words(answer(generated, expected), numbers=numbers) == _words(expected, numbers=numbers)


def satisfies(generated: str, expected: str, *, rule: Rule, question: str = "", foil: str | None = None) -> bool:
    """Whether a generated text is, contains or lacks `expected`; whole words count, up to where the answer ends.

    Args:
        generated: The text.
        expected: What it is judged by.
        rule: How.
        question: What the model was asked; matters to the rule "states" alone, like the next.
        foil: What the answer must not state beside the expected text.
    """
    if rule == "equals":
        return same_answer(generated, expected)
    if rule == "states":
        return _states(answer(generated, expected, rule=rule, question=question), expected, question, foil)
    numbers = holds_sign(expected)
    text = answer(generated, expected, rule=rule) if numbers else generated
    contains = f" {' '.join(_words(expected, numbers=numbers))} " in f" {' '.join(_words(text, numbers=numbers))} "
    return contains == (rule == "contains")


def _states(said: str, expected: str, question: str, foil: str | None) -> bool:
    """Whether an answer states `expected`, and not the foil."""
    words, asked, wanted, other = (_words(text, numbers=True) for text in (said, question, expected, foil or ""))
    own, others = _stated(words, wanted, asked), _stated(words, other, asked)
    alone = [a for a in own if len(wanted) >= len(other) or not any(b <= a < b + len(other) for b in others)]
    return bool(alone) and all(any(a <= b < a + len(wanted) for a in alone) for b in others)


def _stated(said: Sequence[str], wanted: Sequence[str], asked: Sequence[str]) -> list[int]:
    """Where `wanted` begins in `said`, less where it has a neighbour that it has in the question as well."""
    in_question = [_beside(asked, place, len(wanted)) for place in _places(asked, wanted)]

    def repeated(place: int) -> bool:
        own = _beside(said, place, len(wanted))
        return any(a is not None and a == b for other in in_question for a, b in zip(own, other, strict=True))

    return [place for place in _places(said, wanted) if not repeated(place)]


def _places(words: Sequence[str], wanted: Sequence[str]) -> list[int]:
    n = len(wanted)
    return [i for i in range(len(words) - n + 1) if n and words[i : i + n] == wanted]


def _beside(words: Sequence[str], place: int, length: int) -> tuple[str | None, str | None]:
    """The words before and after some of `words`, None where there is none."""
    after = place + length
    return (words[place - 1] if place else None), (words[after] if after < len(words) else None)


def _end(text: str, expected: str, rule: Rule, question: str = "") -> int | None:
    """Where the answer ends, None if it goes on to the end of the text."""
    signs: Iterator[re.Match[str]]
    if rule == "states":
        known = {word.casefold().lstrip(_MARKS) for word in f"{question} {expected}".split()}
        signs = (sign for sign in _END_OF_SENTENCE.finditer(text) if not _abbreviates(text, sign, known))
    elif not goes_on(expected, rule):
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


def _abbreviates(text: str, sign: re.Match[str], known: Collection[str]) -> bool:
    """Whether a full stop belongs to its word: one letter, or a word that is known with it."""
    if sign[0] != ".":
        return False
    word = text[: sign.end()].split()[-1].casefold().lstrip(_MARKS)
    return _ONE_LETTER.fullmatch(word) is not None or word in known


def _begins(words: list[str], wanted: list[str]) -> bool:
    """Whether `words` are the first ones of `wanted`, and not all."""
    return len(words) < len(wanted) and words == wanted[: len(words)]


def _words(text: str, *, numbers: bool) -> list[str]:
    """The words that are compared; with `numbers` a sign between two digits is part of a word."""
    text = text.casefold()
    if not numbers:
        return re.sub(r"[^\w\s]", " ", text).split()
    return re.sub(r"[^\w\s.,;:!?]", " ", _NOT_IN_A_NUMBER.sub(" ", f"{text} ")).split()
