"""The plot of a benchmark: each metric against the number of edits, a line per method with its spread over the orders."""

import importlib.util
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse.bench.job import BASE
from nse.errors import NseError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("efficacy_generation", "efficacy"),
    ("generalization_generation", "generalization"),
    ("specificity_generation", "specificity"),
    ("harmonic_mean_generation", "harmonic mean"),
    ("untouched_generation", "untouched facts"),
    ("perplexity", "perplexity"),
)
"""Metrics by free generation, and perplexity; those that were not measured are left out."""


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

    checkpoints = [c for told in record["methods"].values() for part in told["parts"] for c in part["checkpoints"]]
    panels = [(name, title) for name, title in PANELS if any(c.get(name) is not None for c in checkpoints)]
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flatten()
    for axis, (name, title) in zip(axes, panels, strict=False):
        _panel(axis, record, name, title)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{os.getpid()}.{path.name}"
    try:
        with mpl.rc_context({"svg.hashsalt": "nse"}):
            figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:
        raise NseError(f"{path.name} cannot be drawn ({error}): name it .svg or .png") from error
    temporary.replace(path)


def _panel(axis: "Axes", record: Mapping[str, Any], name: str, title: str) -> None:
    scale = 1 if name == "perplexity" else 100
    for number, (method, told) in enumerate(record["methods"].items()):
        at: dict[int, list[float]] = {}
        for part in told["parts"]:
            for checkpoint in part["checkpoints"]:
                if checkpoint.get(name) is not None:
                    at.setdefault(checkpoint["edits"], []).append(scale * checkpoint[name])
        edits = sorted(at)
        means = [statistics.fmean(at[n]) for n in edits]
        colour = "#999999" if method == BASE else f"C{(number - 1) % 10}"
        line = "--" if method == BASE else ("o-", "s-", "^-")[(number - 1) // 10 % 3]
        width, above = (2.4 if number == 1 else 1.2), 2 + 1 / (number + 1)
        axis.plot(edits, means, line, color=colour, label=method, markersize=3, linewidth=width, zorder=above)
        axis.fill_between(edits, [min(at[n]) for n in edits], [max(at[n]) for n in edits], color=colour, alpha=0.15)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("edits")
    if scale == 1:
        axis.set_yscale("log")
    else:
        axis.set_ylim(-2, 102)
        axis.set_ylabel("answered right by free generation (%)", fontsize=8)
