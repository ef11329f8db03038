"""The plot of a benchmark: each metric against the number of edits, a line per method with its spread over the orders."""

import importlib.util
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse.bench.job import BASE
from nse.errors import NseError
from nse.evaluation.capability import CAPABILITY
from nse.evaluation.misleading import MISLEADING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAYS = {
    "_generation": "free generation, %",
    "_accuracy": "argmax, teacher-forced, %",
    "": "against the other object, %",
}
"""How answers are judged: a column of panels each, for each of the kinds."""
KINDS: dict[str, str] = {
    "efficacy": "efficacy",
    "generalization": "generalization",
    "specificity": "specificity",
    "harmonic_mean": "harmonic mean",
    "untouched": "untouched",
    "retention_first": "first edits",
    **{kind: kind.replace("_", " ") for kind in MISLEADING},
}
TEXT = {"perplexity": "perplexity", "fluency": "fluency, bits", "consistency": "consistency, %"}
"""Metrics of text, one row."""
CAPABLE = {CAPABILITY: "capability, %"}
"""Of task sets, a row of one panel."""
UNBOUNDED = ("perplexity", "fluency")
"""What is no share."""


def can_plot() -> bool:
    """Whether the plotting library is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot() -> None:
    """Refuses to plot without the library.

    Raises:
        NseError: If it is not installed.
    """
    if not can_plot():
        raise NseError("a plot needs matplotlib, which is not installed: `pip install matplotlib`, or leave --plot out")


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draws a benchmark into an image file, in the format of its ending; the same record gives the same bytes.

    Curves lie above those of the methods named after theirs; the first method's is thicker.

    Raises:
        NseError: If matplotlib is not installed or does not know the format.
    """
    check_plot()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(record)
    figure = Figure(figsize=(12, 1.2 + 2.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(WAYS), sharex=True, squeeze=False)
    for panels, row in zip(rows, axes, strict=True):
        for name, axis in zip(panels, row, strict=True):
            if name is None:
                axis.set_visible(False)
            else:
                _panel(axis, record, name)
    figure.supxlabel("edits")
    for column in axes.T:
        drawn = [axis for axis in column if axis.get_visible()]
        if drawn:
            drawn[-1].tick_params(labelbottom=True)  # what would stand below it was not measured
    drawn = [axis for axis in axes.flat if axis.get_visible()]
    if drawn:
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(handles), 8))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{os.getpid()}.{path.name}"
    try:
        with mpl.rc_context({"svg.hashsalt": "nse"}):
            figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:
        raise NseError(f"{path.name} cannot be drawn ({error}): name it .svg or .png") from error
    temporary.replace(path)


def _rows(record: Mapping[str, Any]) -> list[list[str | None]]:
    """The metrics of each row of panels; None where one was not measured, rows without any left out."""
    measured = {
        name
        for told in record["methods"].values()
        for part in told["parts"]
        for checkpoint in part["checkpoints"]
        for name, value in checkpoint.items()
        if value is not None
    }
    rows = [*([f"{kind}{way}" for way in WAYS] for kind in KINDS), list(TEXT), [*CAPABLE, "", ""]]
    return [[name if name in measured else None for name in row] for row in rows if measured & set(row)] or [[None] * 3]


def _title(name: str) -> str:
    if own := {**TEXT, **CAPABLE}.get(name):
        return own
    kind = next(kind for kind in KINDS if name.startswith(kind))
    return f"{KINDS[kind]}: {WAYS[name.removeprefix(kind)]}"


def _panel(axis: "Axes", record: Mapping[str, Any], name: str) -> None:
    from matplotlib.ticker import LogFormatter

    scale = 1 if name in UNBOUNDED else 100
    for number, (method, told) in enumerate(record["methods"].items()):
        edits, spreads = curve(told["parts"], name)
        low, mean, high = ([scale * spread[i] for spread in spreads] for i in range(3))
        colour = "#222222" if method == BASE else f"C{(number - 1) % 10}"
        line = ":" if method == BASE else ("o-", "s--", "^-.")[(number - 1) // 10 % 3]
        width, above = (2.4 if number == 1 else 1.2), 2 + 1 / (number + 1)
        axis.plot(edits, mean, line, color=colour, label=method, markersize=3, linewidth=width, zorder=above)
        axis.fill_between(edits, low, high, color=colour, alpha=0.15)
    axis.set_title(_title(name), fontsize=10)
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.set_axisbelow(True)
    if name == "perplexity":
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())  # plain numbers: 3.2, not 3.2 x 10^0
    elif name not in TEXT:
        axis.set_ylim(-3, 103)


def curve(parts: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[tuple[float, float, float]]]:
    """Edits of the checkpoints, and there lowest, mean and highest over the orders; NaN, a gap, where an order has no number."""
    at: dict[int, list[float | None]] = {}
    for part in parts:
        for checkpoint in part["checkpoints"]:
            if name in checkpoint:
                at.setdefault(checkpoint["edits"], []).append(checkpoint[name])
    return sorted(at), [_spread(at[edits], len(parts)) for edits in sorted(at)]


def _spread(found: Sequence[float | None], orders: int) -> tuple[float, float, float]:
    values = [value for value in found if value is not None]
    if len(values) < orders:
        return math.nan, math.nan, math.nan
    return min(values), statistics.fmean(values), max(values)
