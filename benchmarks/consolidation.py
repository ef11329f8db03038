"""A stream of rounds against its consolidation: all edits so far solved in one shot from the base model. One command:

    python -m benchmarks.consolidation                                            # the demo model, 100, 300 and 1,000 edits
    python -m benchmarks.consolidation --model DIR --dataset FILE --hparams FILE --corpus FILE --contexts FILE \
        --edits 100 300 1000 --batch 50 --orders 1 --json build/consolidation.json

For each number of edits the first so many cases are written once in rounds of `--batch`, each on top of those before, and once in
one solve; everything is asked after it. z's depend on the base model alone, so both share them. The last column is what a solve
takes without z's: keys and closed form. An interrupted run goes on where it was.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import HERE, machine, show, write
from nse.bench import BASE, BenchFiles, BenchOptions, bench
from nse.bench.job import CONSOLIDATED

COLUMNS = {
    "efficacy_generation": "efficacy",
    "generalization_generation": "generalization",
    "specificity_generation": "specificity",
    "harmonic_mean_generation": "harmonic mean",
    "untouched_generation": "untouched",
    "retention_first_generation": "first edits",
}
"""Shares, by free generation."""


def row(record: dict[str, Any], name: str) -> list[str]:
    """A method's figures: means over the orders."""
    told = record["methods"][name]
    figures = {metric: spread["mean"] for metric, spread in told["summary"]["metrics"].items()}
    shares = [figures.get(metric) for metric in COLUMNS]
    rounds = [part["rounds"][-1:] if name.endswith(CONSOLIDATED) else part["rounds"] for part in told["parts"]]
    solving = [sum(r["parts"].get(p, 0.0) for r in own for p in ("keys", "solve")) for own in rounds]
    return [
        *("" if share is None else f"{100 * share:.1f}" for share in shares),
        "" if figures.get("perplexity") is None else f"{figures['perplexity']:.2f}",
        *(f"{figures[count]:.0f}" if figures.get(count) is not None else "" for count in ("unconverged", "skipped")),
        f"{sum(solving) / len(solving):.0f}" if name != BASE and solving else "",
    ]


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "demo/model")
    parser.add_argument("--dataset", type=Path, default=HERE / "demo/suite.yaml", help="requests, or a suite")
    parser.add_argument("--hparams", type=Path, default=HERE / "demo/hparams.yaml")
    parser.add_argument("--contexts", type=Path, default=HERE / "demo/contexts.json")
    parser.add_argument("--corpus", type=Path, default=HERE / "demo/corpus.txt", help="C0 and perplexity")
    parser.add_argument("--second-moment", type=Path, help="C0; made of the corpus if not given")
    parser.add_argument("--suite", type=Path, help="known facts to ask about besides")
    parser.add_argument("--method", default="nse")
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--orders", type=int, default=1)
    parser.add_argument("--asked", type=int, default=3, help="most questions of a kind about a case; 0: all")
    parser.add_argument("--no-hold", action="store_true", help="give the method no known facts to be left in place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "build/consolidation.json")
    options = parser.parse_args()
    one_shot = f"{options.method}{CONSOLIDATED}"
    # one folder of parts for all numbers of edits: a z that one of them has made is there for the others
    files = BenchFiles(
        *(options.model, options.dataset, options.hparams, options.json.with_suffix(".last.json")),
        second_moment=options.second_moment,
        corpus=options.corpus,
        contexts=options.contexts,
        suite=options.suite,
    )
    records, rows = {}, []
    for edits in options.edits:
        settings = BenchOptions(
            (options.method, one_shot),
            edits=edits,
            batch_size=options.batch,
            orders=options.orders,
            checkpoints=1,
            seed=options.seed,
            hold=not options.no_hold,
            asked=options.asked,
            prose=0,
            isolated=False,
        )
        records[edits] = bench(files, settings, say=lambda line: print(line, flush=True))
        rows += [[f"{edits} {name}", *row(records[edits], name)] for name in (BASE, options.method, one_shot)]
    columns = ("edits, how", *COLUMNS.values(), "perplexity", "unconverged", "skipped", "keys, solves s")
    title = f"rounds of {options.batch} against one shot, by free generation (%), {options.orders} order(s)"
    show(title, columns, rows, where := machine(torch.device("cpu")))
    plain = {name: str(value) for name, value in vars(options).items()}
    write(options.json, {"options": plain, "columns": columns, "rows": rows, "machine": where, "records": records})


if __name__ == "__main__":
    main()
