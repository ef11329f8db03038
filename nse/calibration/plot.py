"""The plot of a calibration: what z reaches layer by layer, and what the trials reached against each setting."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nse.calibration.errors import CalibrationError
from nse.calibration.finals import Found
from nse.calibration.trial import FIRST, SECOND, VALIDATION, Trial, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR, CHOSEN, PALE = "#4878a8", "#c44e52", "#999999"


def can_plot() -> bool:
    """Whether the plotting library is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot() -> None:
    """Refuses to plot without the library.

    Raises:
        CalibrationError: If it is not installed.
    """
    if not can_plot():
        raise CalibrationError(
            "a plot needs matplotlib, which is not installed: `pip install matplotlib`, or leave --plot out"
        )


def draw(found: Found, path: Path) -> None:
    """Draws a calibration into an image file, in the format of its ending.

    Raises:
        CalibrationError: If matplotlib is not installed or does not know the format.
    """
    check_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).flatten()
    _probes(axes[0], found)
    _course(axes[1], found)
    panels: tuple[tuple[str, Callable[[Trial], str | float], bool], ...] = (
        ("fact_token, layers", lambda t: f"{t.settings.fact_token} {span(t.settings.layers)}", False),
        ("lambda", lambda t: t.settings.mom2_update_weight, True),
        ("v_lr", lambda t: t.settings.v_lr, True),
        ("clamp", lambda t: t.settings.clamp_norm_factor, False),
        ("subject share", lambda t: t.settings.subject_share, False),
        ("passes, alpha / |z - h|", lambda t: f"{t.candidate.passes}, {t.candidate.tolerance:g}", False),
    )
    for axis, (name, value, log) in zip(axes[2:], panels, strict=True):
        _against(axis, found, name, value, log)
    lowest = min(100 * t.scores.harmonic_mean for t in found.trials)
    for axis in axes[1:]:
        axis.set_ylim(max(0.0, lowest - 5), 101)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{os.getpid()}.{path.name}"
    try:
        figure.savefig(temporary)
    except ValueError as error:
        raise CalibrationError(f"{path.name} cannot be drawn ({error}): name it .svg or .png") from error
    temporary.replace(path)


def _probes(axis: "Axes", found: Found) -> None:
    first: dict[int, int] = {}
    for place, probe in enumerate(found.probes):
        first.setdefault(probe.candidate.last, place)
    own = [found.probes[first[layer]] for layer in sorted(first)]
    layers = [p.candidate.last for p in own]
    axis.plot(layers, [100 * p.probability for p in own], "o-", color=COLOUR, label="p(target_new)")
    for name, colour in (("generalization", CHOSEN), ("untouched", PALE)):
        shares = [getattr(p, name) for p in own]
        if all(s is not None for s in shares):
            axis.plot(layers, [100 * s for s in shares], "s--", color=colour, label=name)
    axis.set(title="z itself put in place", xlabel="layer", ylabel="%", ylim=(0, 101), xticks=layers)
    axis.legend(fontsize=7)


def _course(axis: "Axes", found: Found) -> None:
    own = [t for t in found.trials if t.part == FIRST]
    means = [100 * t.scores.harmonic_mean for t in own]
    axis.plot([t.number for t in own], means, "o", color=COLOUR, label="search")
    axis.step([t.number for t in own], [max(means[: i + 1]) for i in range(len(means))], where="post", color=PALE)
    for part, mark in ((SECOND, "^"), (VALIDATION, "D")):
        later = [t for t in found.trials if t.part == part]
        reached = [100 * t.scores.harmonic_mean for t in later]
        axis.plot([t.number for t in later], reached, mark, color=CHOSEN, label=part, markersize=4)
    axis.set(title="trials", xlabel="number", ylabel="harmonic mean (%)")
    axis.legend(fontsize=7)


def _against(axis: "Axes", found: Found, name: str, value: Callable[[Trial], str | float], log: bool) -> None:
    from matplotlib.ticker import NullFormatter

    own = [t for t in found.trials if t.part == FIRST]
    values = [value(t) for t in own]
    names = sorted({v for v in values if isinstance(v, str)})
    places = [names.index(v) if isinstance(v, str) else v for v in values]
    axis.scatter(places, [100 * t.scores.harmonic_mean for t in own], color=COLOUR, s=14)
    chosen = own.index(found.chosen)
    axis.scatter([places[chosen]], [100 * found.chosen.scores.harmonic_mean], color=CHOSEN, s=40, zorder=3)
    if names:
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=30)
    elif log:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(name)
