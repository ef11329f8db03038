"""Where the lines and bars of a page's charts are. `templates/charts.html` draws them as SVG, in the colours of the page.

No plotting library: the charts follow the reader's light or dark setting, and the same figures give the same bytes. Each chart
stands beside a table of its figures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from nse.evaluation.retention import Kept

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 52, 18, 14, 46
ROW, LETTER, NAME, FIGURE = 22, 7, 34, 80
"""Of a chart of bars: height of a row, width of a letter, most letters of a name, room for the figure to the right."""
LENGTH = 120
"""Of the bars in a table."""
_TICKS = 12


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where it is, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Retention against age.

    Attributes:
        line: Points of the shares, youngest first, as SVG writes them.
        band: Outline of the intervals.
        dots: (x, y, what is said of it) of each share.
        across: Ticks of the ages.
        up: Ticks of the shares.
    """

    line: str
    band: str
    dots: tuple[tuple[float, float, str], ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name and figure, where it begins, how long it is, and where its row begins."""

    name: str
    text: str
    left: int
    length: float
    top: int


def length(value: float | None, scale: float) -> float | None:
    """How long a bar in a table is; None for no figure."""
    if value is None:
        return None
    return round(LENGTH * min(max(value / scale, 0.0), 1.0), 1) if scale > 0 else 0.0


def curve(ages: Sequence[Kept]) -> Curve:
    """The curve of at least one age; a single one has an interval a little wide, so that it can be seen."""
    numbers = [kept.age for kept in ages]
    first, last = numbers[0], numbers[-1]

    def x(age: int) -> float:
        share = (age - first) / (last - first) if last > first else 0.5
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(share: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)

    line = [(x(age), y(kept.kept)) for age, kept in zip(numbers, ages, strict=True)]
    wide = 0 if last > first else 6
    there = [(at + side * wide, y(kept.high)) for (at, _), kept in zip(line, ages, strict=True) for side in (-1, 1)]
    back = [(at + side * wide, y(kept.low)) for (at, _), kept in zip(line, ages, strict=True) for side in (-1, 1)]
    return Curve(
        line=_points(line),
        band=_points(there + back[::-1]),
        dots=tuple((*at, f"age {kept.age}: {kept.kept:.1%} of {kept.n}") for at, kept in zip(line, ages, strict=True)),
        across=tuple(Tick(x(age), str(age)) for age in range(first, last + 1, ceil((last - first + 1) / _TICKS))),
        up=tuple(Tick(y(share / 4), f"{25 * share}%") for share in range(5)),
    )


def bars(figures: Sequence[tuple[str, float]]) -> tuple[Bar, ...]:
    """A bar for each (name, figure), the longest as long as there is room."""
    most = max((value for _, value in figures), default=0.0)
    left = LETTER * min(max((len(name) for name, _ in figures), default=0), NAME) + 20
    room = WIDTH - left - FIGURE
    return tuple(
        Bar(name, f"{value:.3g}", left, round(room * max(value, 0.0) / most, 1) if most > 0 else 0.0, ROW * place)
        for place, (name, value) in enumerate(figures)
    )


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
