"""What the orders of a stream come to: mean and spread of each metric, and the tables that show methods side by side."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nse.bench.job import BASE
from nse.evaluation.capability import CAPABILITY
from nse.evaluation.misleading import MISLEADING

SHARES = ("efficacy", "generalization", "specificity", "harmonic_mean")
COLD = ("seconds_per_edit",)
"""Metrics that z's kept from another order would flatter."""
RATIO = f"{CAPABILITY}_ratio"
"""Of a method to the base model."""
CAPABLE = "capability, %"
"""Title of the table of capability, whose further columns are the task sets."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a table shows it.

    Attributes:
        name: Its name in the record.
        title: What stands above it.
        better: 1 if more is better, -1 if less, 0 if neither.
        percent: Whether it is a share.
    """

    name: str
    title: str
    better: int = 1
    percent: bool = True


def _shares(way: str, before: str = "") -> tuple[Column, ...]:
    return tuple(Column(f"{before}{name}{way}", name.replace("_", " ")) for name in SHARES)


TABLES: dict[str, tuple[Column, ...]] = {
    "by free generation, %": (
        *_shares("_generation"),
        Column("untouched_generation", "untouched"),
        Column("retention_first_generation", "first edits"),
        Column("retention_first_generation_low", "of them, at least", 0),
    ),
    "in the chat format, by free generation, %": (
        *_shares("_generation", "chat_"),
        Column("chat_untouched_generation", "untouched"),
    ),
    "what misleads, by free generation, %": tuple(
        Column(f"{kind}_generation", kind.replace("_", " ")) for kind in MISLEADING
    ),
    "by argmax, teacher-forced, %": _shares("_accuracy"),
    "by probability against the other object, %": _shares(""),
    CAPABLE: (Column(CAPABILITY, "mean"), Column(RATIO, "of the base's")),
    "text and cost": (
        Column("perplexity", "perplexity", -1, percent=False),
        Column("edits_within_gate", "edits before +10%", percent=False),
        # neither is better by being more: a broken model writes varied text
        Column("fluency", "fluency", 0, percent=False),
        Column("consistency", "consistency", 0),
        Column("unconverged", "unconverged", 0, percent=False),
        Column("skipped", "skipped", 0, percent=False),
        Column("seconds_per_edit", "s per edit", -1, percent=False),
        Column("peak_memory_mib", "peak MiB", -1, percent=False),
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table, and whether it is the best of its column."""

    text: str
    best: bool = False


def against_base(part: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A part with its capability as a ratio to the base's, at its end and at the checkpoints; as it is if either has none."""
    whole: float | None = base.get("metrics", {}).get(CAPABILITY)
    if not whole or "metrics" not in part:
        return dict(part)

    def told(metrics: Mapping[str, Any]) -> dict[str, Any]:
        own = metrics.get(CAPABILITY)
        return dict(metrics) if own is None else {**metrics, RATIO: own / whole}

    return {**part, "metrics": told(part["metrics"]), "checkpoints": [told(c) for c in part["checkpoints"]]}


def summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, lowest and highest of each metric over the orders; and how those failed that did not come to their end.

    Where an order failed, or its figure is no finite number, there is no mean: it would be that of the better orders. `without`
    says how many of the `orders` those are, lowest and highest are of the others.
    """
    whole = [p for p in parts if p["failed"] is None]
    cold = [p for p in whole if not p["warm"]]
    failed = [{"order": p["order"], **p["failed"]} for p in parts if p["failed"] is not None]
    found = {}
    for name in dict.fromkeys(name for p in whole for name in p["metrics"]):
        counted = cold if name in COLD and cold else whole
        found[name] = _spread([p["metrics"].get(name) for p in counted] + [None] * len(failed))
    return {"orders": len(whole), "metrics": found, "failed": failed}


def _spread(figures: Sequence[float | None]) -> dict[str, float | None]:
    values = [figure for figure in figures if figure is not None]
    without = len(figures) - len(values)
    return {
        "mean": None if without else statistics.fmean(values),
        "low": min(values, default=None),
        "high": max(values, default=None),
        "without": without,
        "orders": len(figures),
    }


def tables(record: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Cell]]]]:
    """By title, the header and the rows of each table: a row per method, the base first; metrics that nobody has are left out."""
    methods = record["methods"]
    metrics = {name: told["summary"]["metrics"] for name, told in methods.items()}
    blank = {name: "" if told["summary"]["orders"] else "failed" for name, told in methods.items()}
    shown = {}
    for title, columns in TABLES.items():
        if title == CAPABLE:
            columns = (*columns, *_of_tasks(metrics.values()))
        present = [c for c in columns if any(c.name in own for own in metrics.values())]
        best = {c.name: _best(c, metrics) for c in present}
        rows = [
            [
                Cell(name),
                *(
                    _cell(c, own[c.name], None if name == BASE else best[c.name])
                    if c.name in own
                    else Cell(blank[name])
                    for c in present
                ),
            ]
            for name, own in metrics.items()
        ]
        if present:
            shown[title] = (["method", *(c.title for c in present)], rows)
    return shown


def _of_tasks(metrics: Iterable[Mapping[str, Any]]) -> list[Column]:
    """A column for each task set."""
    names = dict.fromkeys(name for own in metrics for name in own if name.startswith(f"{CAPABILITY}."))
    return [Column(name, name.removeprefix(f"{CAPABILITY}.")) for name in names]


def failures(record: Mapping[str, Any]) -> list[str]:
    """A line for each part that did not come to its end."""
    return [
        f"{name}, order {failed['order'] + 1}: {failed['reason']}"
        + (f" (after {failed['edits']} edits)" if failed["edits"] is not None else "")
        for name, told in record["methods"].items()
        for failed in told["summary"]["failed"]
    ]


def notes(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables has to know of this record, a line each."""
    summaries = [told["summary"]["metrics"] for told in record["methods"].values()]
    found = []
    if facts := [own["retention_first_facts"] for own in summaries if "retention_first_facts" in own]:
        found.append(
            f"First edits: the first {_count(facts)} of those that stand at the end; at least: the lower end of the 95%"
            " interval of their share."
        )
    if tasks := record["stream"].get("tasks"):
        asked = ", ".join(
            f"{s['questions']} of {name} (by chance {100 * s['chance']:.0f})" for name, s in tasks.items()
        )
        found.append(
            f"Capability: questions of public task sets, {asked}; their mean, and its ratio to the base model's."
        )
    cases: Mapping[str, Any] = next(
        (p["cases"] for told in record["methods"].values() for p in told["parts"] if p.get("cases")), {}
    )
    if lone := sum(by_probability is None for by_probability, *_ in cases.values()):
        found.append(f"{lone} of {len(cases)} cases name no other object: by probability they are left out.")
    if any(spread["without"] for own in summaries for spread in own.values()):
        found.append(
            '"Without": orders that failed, or whose figure is infinite or no number. There is no mean then; what stands before'
            " is of the other orders, and never the best."
        )
    return found


def _count(spreads: Sequence[Mapping[str, Any]]) -> str:
    low, high = min(s["low"] for s in spreads), max(s["high"] for s in spreads)
    return f"{low}" if low == high else f"{low} to {high}"


def markdown(record: Mapping[str, Any]) -> str:
    """The tables in Markdown, with what they are of."""
    stream = record["stream"]
    text = [
        f"{stream['edits']} edits of `{stream['dataset']}` in rounds of {stream['batch_size']}, {_orders(stream['orders'])}, seed"
        f" {stream['seed']}; everything asked after the end of the stream. Mean over orders (lowest to highest); best in bold."
    ]
    for title, (header, rows) in tables(record).items():
        text += ["", f"**{title}**", "", f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
        text += [f"| {' | '.join(f'**{c.text}**' if c.best else c.text for c in row)} |" for row in rows]
    lines = [f"- {line}" for line in (*notes(record), *failures(record))]
    return "\n".join([*text, *(["", *lines] if lines else [])]) + "\n"


def _orders(count: int) -> str:
    return "one order" if count == 1 else f"{count} orders"


def _best(column: Column, metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The best mean among methods; nothing where there is no better and worse, or all are alike."""
    found = [own[column.name]["mean"] for name, own in metrics.items() if name != BASE and column.name in own]
    values: list[float] = [mean for mean in found if mean is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better > 0 else min(values)


def _cell(column: Column, found: Mapping[str, Any], best: float | None) -> Cell:
    mean, without = found["mean"], found["without"]
    if without == found["orders"]:
        return Cell("no number")
    scale = 100 if column.percent else 1
    low, high = scale * found["low"], scale * found["high"]
    places = 1 if column.percent or abs(high) >= 10 else 2
    spread = f"{low:.{places}f}-{high:.{places}f}" if high > low else f"{high:.{places}f}"
    if without:
        return Cell(f"{spread}, {without} of {found['orders']} without")
    text = f"{scale * mean:.{places}f}"
    return Cell(f"{text} ({spread})" if high > low else text, best is not None and mean == best)
