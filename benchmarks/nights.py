"""Many nights in a row on the demo world: random corrections of its own relations, everything re-tested after every night.

Prints a table, writes JSON and, with --plot, the curve of retention by age of edit. One command; needs only `nse`:

    python -m benchmarks.nights --nights 10 --batch 20 --plot docs/retention.svg
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nse.architecture import EditableModel, load_model
from nse.contexts import read_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.evaluation.probes import Probe
from nse.evaluation.run import ask, evaluate
from nse.evaluation.suites import Suite, held_facts, read_suite
from nse.hyperparameters import read_hyperparameters
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments, collect_second_moments, read_second_moments
from nse.values import ValueStore

HERE = Path(__file__).resolve().parent.parent


def random_corrections(suite: Suite, *, count: int, seed: int) -> list[EditRequest]:
    """Corrections of `count` different (subject, relation) pairs to another object of the relation."""
    generator = random.Random(seed)
    objects: dict[str, list[str]] = {}
    for fact in suite.facts:
        objects.setdefault(fact.relation, []).append(fact.object)
    pool = list(suite.facts)
    generator.shuffle(pool)
    seen: set[str] = set()
    first = [f for f in pool if not (f.subject in seen or seen.add(f.subject))]  # type: ignore[func-returns-value]
    chosen = [*first, *[f for f in pool if f not in set(first)]][:count]
    requests = []
    for number, fact in enumerate(chosen):
        new = generator.choice(sorted(set(objects[fact.relation]) - {fact.object}))
        template = suite.templates[fact.relation][0]
        requests.append(EditRequest(str(number), fact.subject, template, new, fact.object, fact.relation))
    return requests


def by_age(outcomes: list[bool], nights: int, batch: int) -> list[float]:
    """Share of right answers per age in nights, youngest first."""
    rounds = [outcomes[i * batch : (i + 1) * batch] for i in range(nights)]
    return [sum(r) / len(r) for r in reversed(rounds)]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws retention by age after the last night, and efficacy over all past edits after each night."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    ages = rows[-1]["by_age"]
    left.bar(range(len(ages)), [100 * a for a in ages], color="#4878a8")
    left.set(
        xlabel="age of edit (nights)",
        ylabel="answered right, free generation (%)",
        title="after the last night",
        ylim=(0, 103),
        xticks=range(len(ages)),
    )
    nights = [r["night"] for r in rows]
    for name in ("all_past_edits", "generalization", "specificity", "untouched"):
        right.plot(nights, [100 * r[name] for r in rows], marker="o", label=name.replace("_", " "))
    right.set(xlabel="night", title="after each night", xticks=nights)
    right.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Runs the nights and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "demo/model")
    parser.add_argument("--suite", type=Path, default=HERE / "demo/suite.yaml")
    parser.add_argument("--hparams", type=Path, default=HERE / "demo/hparams.yaml")
    parser.add_argument("--contexts", type=Path, default=HERE / "demo/contexts.json")
    parser.add_argument("--corpus", type=Path, default=HERE / "demo/corpus.txt")
    parser.add_argument("--second-moment", type=Path)
    parser.add_argument("--nights", type=int, default=10)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-every", type=int, default=1, help="nights between full evaluations")
    parser.add_argument("--no-hold", dest="hold", action="store_false", help="hold no known facts in place")
    parser.add_argument("--values", type=Path, default=HERE / "build/values")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="hyper-parameters to override, name=value")
    options = parser.parse_args()
    editable, suite = load_model(options.model), replace(read_suite(options.suite), untouched=None)
    settings = read_hyperparameters(options.hparams).settings
    for override in options.set:
        name, value = override.split("=")
        parsed = tuple(map(int, value.split(","))) if name == "layers" else type(getattr(settings, name))(float(value))
        settings = replace(settings, **{name: parsed})
    moments: SecondMoments = (
        read_second_moments(options.second_moment)
        if options.second_moment
        else collect_second_moments(editable, options.corpus, layers=settings.layers)
    )
    context = EditContext(settings, moments, read_contexts(options.contexts), values=ValueStore(options.values))
    context = replace(context, held=held_facts(suite) if options.hold else ())
    stream = random_corrections(suite, count=options.nights * options.batch, seed=options.seed)
    console, deltas, rows = Console(width=160), [], []
    table = Table(title=f"{options.nights} nights of {options.batch}, free generation (%)")
    shown = ("tonight", "all past edits", "generalization", "specificity", "untouched")
    for name in ("night", *shown, "ppl ratio", "unconverged", "s/edit"):
        table.add_column(name, justify="right")
    for night in range(options.nights):
        batch = stream[night * options.batch : (night + 1) * options.batch]
        begun = time.perf_counter()
        now = replace(context, previous=tuple(deltas), earlier=tuple(stream[: night * options.batch]))
        result = get_editor("nse").edit(editable, batch, now)
        seconds = (time.perf_counter() - begun) / len(batch)
        deltas.append(result.delta)
        past = stream[: (night + 1) * options.batch]
        rows.append(night_row(editable, suite, deltas, past, batch, night + 1) | {"seconds_per_edit": seconds})
        rows[-1]["unconverged"] = sum(c.status == "unconverged" for c in result.cases)
        r = rows[-1]
        shares = [f"{100 * r[k.replace(' ', '_')]:.0f}" for k in shown]
        table.add_row(str(night + 1), *shares, f"{r['perplexity_ratio']:.3f}", str(r["unconverged"]), f"{seconds:.2f}")
        console.print(" ".join(shares), f"{r['perplexity_ratio']:.3f}", r["unconverged"], f"{seconds:.2f}")
    console.print(table)
    console.print("by age, youngest first:", [round(100 * a) for a in rows[-1]["by_age"]])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "rows": rows,
            "hyper_parameters": settings.to_dict(),
            "model": editable.base_digest,
            "seed": options.seed,
        }
        options.json.write_text(json.dumps({**record, "torch": torch.__version__}, indent=1))
    if options.plot:
        plot(rows, options.plot)


def night_row(
    editable: EditableModel,
    suite: Suite,
    deltas: list[Delta],
    past: list[EditRequest],
    batch: list[EditRequest],
    night: int,
) -> dict[str, Any]:
    """Measures the weights after one night."""
    with patched(editable, compose(editable, deltas)):
        evaluation = evaluate(editable, suite, requests=batch, retained=[past[: -len(batch)]])
        again = ask(editable, [Probe("retention", r.case_id, r.prompt, r.target_new, r.target_true) for r in past])
    passed = [o.passed for o in again]
    names = ("generalization", "specificity", "untouched")
    return {
        "night": night,
        "tonight": evaluation.metrics["efficacy_generation"],
        "all_past_edits": sum(passed) / len(passed),
        "by_age": by_age(passed, night, len(batch)),
        "perplexity_ratio": evaluation.metrics["perplexity_ratio"],
        **{name: evaluation.metrics[f"{name}_generation"] for name in names},
    }


if __name__ == "__main__":
    main()
