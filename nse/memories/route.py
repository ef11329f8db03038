"""A route: some of the prompts that are asked together, what is said before them, and who answers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """Prompts with one voice.

    Attributes:
        places: Which of the prompts.
        before: The text that is said in front of each of them, empty for none.
        voice: Gives a context manager inside which the model answers as it shall; what is in force if not given.
    """

    places: tuple[int, ...]
    before: tuple[str, ...]
    voice: Callable[[], AbstractContextManager[None]] = nullcontext
