"""Progress: how far a long step is, with its rate and the time that remains, on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


def under(name: str, progress: Progress) -> Progress:
    """The same progress with `name` in front of every stage."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def silent(_stage: str, _done: int, _total: int) -> None:
    """The progress of those who do not want to see any."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Steps per second, or seconds per step where that reads better."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Yields a progress that draws a bar per stage, or prints a line per finished stage where there is no terminal."""
    if not console.is_terminal:
        yield lines(lambda text: console.print(text, highlight=False))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        known: dict[str, int] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = int(bars.add_task(stage, total=total))
            bars.update(bars.task_ids[known[stage]], completed=done, total=total)

        yield progress


def lines(say: Callable[[str], None]) -> Progress:
    """A progress that says one line for each stage that is done."""
    begun: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        start = begun.setdefault(stage, time.monotonic())
        if done >= total and start >= 0:
            begun[stage] = -1.0  # said once
            say(f"{stage}: {total} in {time.monotonic() - start:.1f} s")

    return progress
