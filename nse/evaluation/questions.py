"""Many questions about one prompt from one pass over it: how probable given texts are after it, and what the model says.

A prompt with its first target is a trunk, run whole. Each other text about the prompt is a branch: it is run from the token
where it departs from the trunk, on the trunk's keys and values. Texts are tokenised whole, so a token that spans prompt and
target is what it would be if the text stood alone. A trunk is also a draft of what the model says: as long as its next token is
the most probable one, it is what the model would have said; only what departs from it is followed token by token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from nse.architecture import EditableModel
from nse.batch import TOKENS_PER_BATCH, Progress, by_length, halved, silent
from nse.errors import TokenError
from nse.evaluation.answers import END_OF_ANSWER, ended, goes_on
from nse.evaluation.prefixes import Cell, Prefix, Row, gathered, read, run
from nse.evaluation.probes import Rule
from nse.memories import routed
from nse.tokens import TokenizedPrompt, join, tokenize

TOKENS_IN_CACHE = 256
"""Padded tokens in one pass over trunks on a processor: a quarter faster per token than 1,024, measured on the demo model."""
ROWS = 128
"""Texts that are followed token by token together."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the texts after it whose probabilities are asked, and those that the answer is judged by, with their rules."""

    prompt: str
    targets: tuple[str, ...] = ()
    expected: tuple[tuple[str, Rule], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Of each target the sum of its log-probabilities in nats and its number of tokens; and what the model says greedily.

    Attributes:
        scores: By target, in the question's order.
        generated: The text, up to the first token that ends a clause.
        right: By target, whether each of its tokens is the most probable one after those before it.
        whole: The text as far as an expected text needs it that has a sign inside, or is looked for in a whole sentence.
    """

    scores: tuple[tuple[float, int], ...]
    generated: str
    right: tuple[bool, ...] = ()
    whole: str = ""

    def judged_by(self, expected: str, rule: Rule = "equals") -> str:
        """The text that is judged by `expected`, one of those that the question named."""
        return self.whole if goes_on(expected, rule) else self.generated


@dataclass(slots=True)
class _Text:
    """A text in tokens. Those before `start` are the trunk's own; from there on it is run to `end`, if anything is left.

    Attributes:
        branch: Number of the pass that runs it and its row there, if it is one.
    """

    ids: tuple[int, ...]
    prompt_length: int
    start: int
    end: int
    branch: tuple[int, int] = (-1, -1)

    def scored(self, trunk: tuple[int, int]) -> Iterator[tuple[Cell, int]]:
        """Each token of its target, and the hidden state that predicts it; `trunk` is the trunk's pass and row."""
        return ((self.cell(trunk, i), self.ids[i + 1]) for i in range(self.prompt_length - 1, len(self.ids) - 1))

    def cell(self, trunk: tuple[int, int], place: int) -> Cell:
        """Where the hidden state of one of its tokens is."""
        return (*trunk, place) if place < self.start else (*self.branch, place - self.start)


@dataclass(slots=True)
class _Task:
    """A question in tokens and its reply so far.

    Attributes:
        texts: Those of its targets, then the prompt's if the model speaks; the first is the trunk.
        expected: The expected texts that need more than a clause: the model speaks until each of their answers is at its end.
        prompt: Its prompt.
        trunk: Number of the pass that runs the trunk, and its row there.
    """

    texts: list[_Text]
    expected: list[tuple[str, Rule]]
    prompt: str
    trunk: tuple[int, int] = (-1, -1)
    scores: list[tuple[float, int]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    said: list[int] = field(default_factory=list)

    @property
    def draft(self) -> tuple[int, ...]:
        """What the trunk says after the prompt, if it begins with the prompt's own tokens."""
        trunk, prompt = self.texts[0].ids, self.texts[-1].ids
        return trunk[len(prompt) :] if self.texts[-1].start == len(prompt) else ()

    def heard(self) -> list[Cell]:
        """The hidden states that predict what the model says first, and after each token of the draft."""
        last = len(self.texts[-1].ids) - 1
        return [self.texts[-1].cell(self.trunk, last), *((*self.trunk, last + 1 + i) for i in range(len(self.draft)))]


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A task whose model goes on speaking, and what stands before the last token that it said: a row of a prefix."""

    task: _Task
    before: Row


@torch.no_grad()
def reply(
    editable: EditableModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 0,
    stage: str = "questions",
    progress: Progress = silent,
) -> list[Reply]:
    """Asks what is in force, weights and memories. What is asked twice is computed twice: give equal prompts as one question.

    Args:
        editable: The model.
        questions: What to ask.
        max_new_tokens: Most tokens that the model shall say after each prompt: up to a token of `end_tokens`, or the first one
            that ends a clause, or to where the answer ends for each expected text that needs more; 0 for none.
        stage: Name of the progress.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        TokenError: If a text does not fit the model, or a prompt has no token.
    """

    def told(before: int, done: int) -> None:
        progress(stage, before + done, len(questions))

    replies: dict[int, Reply] = {}
    for route in routed(editable, [question.prompt for question in questions]):
        own = [questions[i] for i in route.places]
        own = [replace(q, prompt=join(b, q.prompt)) if b else q for q, b in zip(own, route.before, strict=True)]
        with route.voice():
            found = _replies(_Asking(editable, max_new_tokens), own, partial(told, len(replies)))
        replies |= dict(zip(route.places, found, strict=True))
    return [replies[i] for i in range(len(questions))]


def _replies(asking: "_Asking", questions: Sequence[Question], seen: Callable[[int], None]) -> list[Reply]:
    """Asks questions that one voice answers; `seen` is told how many are done."""
    tasks = [asking.task(question) for question in questions]
    waiting: list[_Speaker] = []
    read_ = 0
    for group in by_length([TokenizedPrompt(task.texts[0].ids, 0) for task in tasks]):
        waiting += halved(asking.read, [tasks[i] for i in group], what="questions")
        read_ += len(group)
        if len(waiting) >= ROWS or read_ == len(tasks):
            halved(asking.follow, waiting, what="prompts")
            waiting = []
        seen(read_ - len(waiting))
    return [asking.replied(task) for task in tasks]


class _Asking:
    """One call of `reply`."""

    def __init__(self, editable: EditableModel, limit: int) -> None:
        self.editable = editable
        self.limit = limit
        self._ends: dict[int, bool] = {}
        self._last = editable.end_tokens

    def task(self, question: Question) -> _Task:
        """Tokenises a question and checks that it fits."""
        tokenizer, positions = self.editable.tokenizer, self.editable.positions
        parts = [tokenize(tokenizer, question.prompt, target=target) for target in question.targets]
        if self.limit or not parts:
            parts.append(tokenize(tokenizer, question.prompt))
            length = len(parts[-1].ids)
            if not 0 < length <= positions - self.limit:
                raise TokenError(
                    f"prompt {question.prompt!r} has {length} tokens; with the answer the model takes {positions}"
                )
        if not all(part.prompt_length for part in parts):
            raise TokenError(f"prompt {question.prompt!r} has no token: nothing can be asked after it")
        if (longest := max(len(part.ids) for part in parts)) > positions:
            raise TokenError(f"a text has {longest} tokens, the model takes {positions}: shorten {question.prompt!r}")
        texts = []
        for part in parts:  # a target's last token predicts nothing that is asked
            start, end = _shared(parts[0].ids, part.ids), len(part.ids) - bool(part.target_ids)
            texts.append(_Text(part.ids, part.prompt_length, start, end))
        return _Task(texts, [(text, rule) for text, rule in question.expected if goes_on(text, rule)], question.prompt)

    def replied(self, task: _Task) -> Reply:
        """The reply of a task that is done."""
        first = next((i for i, token in enumerate(task.said, 1) if self._ends_clause(token)), len(task.said))
        whole, generated = self.editable.decode(task.said), self.editable.decode(task.said[:first])
        return Reply(tuple(task.scores), generated, tuple(task.right), whole)

    def read(self, tasks: Sequence[_Task]) -> list[_Speaker]:
        """Runs the trunks and branches of some tasks and fills in their scores; returns those that are not at an end."""
        passes = self._trunks(tasks)
        branches = [(task, text) for task in tasks for text in task.texts if text.start < text.end]
        for part in _alike(branches):
            for row, (_, text) in enumerate(part):
                text.branch = (len(passes), row)
            before = gathered([(passes[task.trunk[0]][1], task.trunk[1], text.start) for task, text in part])
            passes.append(run(self.editable, [text.ids[text.start : text.end] for _, text in part], after=before))
        heard = [task.heard() if self.limit else [] for task in tasks]
        cells: dict[Cell, set[int]] = {cell: set() for own in heard for cell in own}
        for task in tasks:
            for cell, token in (pair for text in task.texts for pair in text.scored(task.trunk)):
                cells.setdefault(cell, set()).add(token)
        logs, best = read(self.editable, [hidden for hidden, _ in passes], cells)
        open_: list[tuple[_Task, Row]] = []
        for task, own in zip(tasks, heard, strict=True):
            scored = [list(text.scored(task.trunk)) for text in task.texts]
            task.scores = [(math.fsum(logs[pair] for pair in part), len(part)) for part in scored if part]
            task.right = [all(best[cell] == token for cell, token in part) for part in scored if part]
            if own and not self._verify(task, [best[cell] for cell in own]):
                number, row, _ = own[0]
                open_.append((task, (passes[number][1], row, len(task.texts[-1].ids) + len(task.said) - 1)))
        if not open_:
            return []
        kept = gathered([row for _, row in open_])  # a copy: the rest of the passes can go
        return [_Speaker(task, (kept, number, row[2])) for number, (task, row) in enumerate(open_)]

    def _trunks(self, tasks: Sequence[_Task]) -> list[tuple[torch.Tensor, Prefix]]:
        """Runs the trunks; on a processor in passes whose activations stay in its cache."""
        tokens = TOKENS_IN_CACHE if self.editable.device.type == "cpu" else TOKENS_PER_BATCH
        keep = self.limit > 1 or any(text.start < text.end for task in tasks for text in task.texts)
        passes: list[tuple[torch.Tensor, Prefix]] = []
        for part in by_length([TokenizedPrompt(task.texts[0].ids, 0) for task in tasks], tokens=tokens):
            for row, i in enumerate(part):
                tasks[i].trunk = (len(passes), row)
            passes.append(run(self.editable, [tasks[i].texts[0].ids for i in part], keep=keep))
        return passes

    def follow(self, speakers: Sequence[_Speaker]) -> list[_Task]:
        """Lets the model speak on, a token at a time; those that have come to an end leave."""
        prefix = gathered([speaker.before for speaker in speakers])
        said = [list(speaker.task.said) for speaker in speakers]
        open_ = [(speaker.task, tokens) for speaker, tokens in zip(speakers, said, strict=True)]
        while open_:
            hidden, prefix = run(self.editable, [tokens[-1:] for _, tokens in open_], after=prefix)
            best = self.editable.head(hidden[:, -1]).argmax(dim=-1).tolist()
            stay = [row for row, token in enumerate(best) if not self._say(*open_[row], token)]
            open_, prefix = [open_[row] for row in stay], prefix.select(stay)
        for speaker, tokens in zip(speakers, said, strict=True):  # only now: a batch that does not fit is tried again
            speaker.task.said = tokens
        return [speaker.task for speaker in speakers]

    def _verify(self, task: _Task, best: Sequence[int]) -> bool:
        """Lets the model say the draft as far as it agrees, and one token more; whether it has come to an end."""
        task.said = []
        for token, drafted in zip(best, (*task.draft, None), strict=True):
            if self._say(task, task.said, token):
                return True
            if token != drafted:
                break
        return False

    def _say(self, task: _Task, said: list[int], token: int) -> bool:
        """Adds a token to what the model has said, unless it is one that ends all; whether that is the end."""
        if token in self._last:
            return True
        said.append(token)
        return len(said) == self.limit or self._answered(task, said)

    def _answered(self, task: _Task, said: list[int]) -> bool:
        """Whether what the model has said holds a whole answer, for each expected text that needs more than a clause as well."""
        if not task.expected:
            return self._ends_clause(said[-1])
        text = self.editable.decode(said)
        return all(ended(text, expected, rule=rule, question=task.prompt) for expected, rule in task.expected)

    def _ends_clause(self, token: int) -> bool:
        if token not in self._ends:
            self._ends[token] = END_OF_ANSWER.search(self.editable.decode([token])) is not None
        return self._ends[token]


def _alike(branches: Sequence[tuple[_Task, _Text]]) -> Iterator[list[tuple[_Task, _Text]]]:
    """Groups branches so that none is more than twice as long as another: they are short, and pads would be most of a batch."""
    part: list[tuple[_Task, _Text]] = []
    shortest = 0
    for branch in sorted(branches, key=lambda branch: branch[1].end - branch[1].start):
        length = branch[1].end - branch[1].start
        if part and (length > 2 * shortest or length * (len(part) + 1) > TOKENS_PER_BATCH):
            yield part
            part = []
        shortest = shortest if part else length
        part.append(branch)
    if part:
        yield part


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
