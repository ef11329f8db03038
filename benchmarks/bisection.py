"""One bad correction among fifty on the demo world: does the night name it, propose the others, and at what cost?

Makes a workspace in a temporary folder, files random corrections that pass the suite's gates and one that kills a canary of it,
and plans one round. Prints a table, writes JSON; ends with 1 if anything but the bad correction is left out. One command:

    python -m benchmarks.bisection --corrections 50
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.nights import random_corrections
from flows.bisect import NOTHING, UNDECIDED, left_out
from flows.ingest import ingest
from flows.init import Setup, init
from flows.plan import call_directly, run_round
from flows.rows import read_sources
from flows.session import Session
from flows.workspace import Workspace
from ledger.keys import KEYS
from nse.command import collect
from nse.evaluation.suites import read_suite
from nse.hyperparameters import read_hyperparameters
from nse.request import EditRequest

DEMO = Path(__file__).resolve().parent.parent / "demo"
COLUMNS = ("subject", "relation", "prompt_template", "target_new", "target_true", "source", "submitter", "reason")


def workspace_in(folder: Path) -> Workspace:
    """A workspace of the demo model with its second moments; its people's keys lie beside it."""
    os.environ[KEYS] = str(folder / "keys")
    setup = Setup(
        model=DEMO / "model",
        name="demo",
        hparams=DEMO / "hparams.yaml",
        contexts=DEMO / "contexts.json",
        suite=DEMO / "suite.yaml",
        corpus=DEMO / "corpus.txt",
        user="Nightly Job <nightly@example.org>",
    )
    workspace = init(folder / "space", setup)
    layers = read_hyperparameters(DEMO / "hparams.yaml").settings.layers
    collect(model=DEMO / "model", corpus=DEMO / "corpus.txt", layers=layers, output=workspace.second_moment)
    return workspace


def good_ones(count: int, *, seed: int, bad: EditRequest) -> list[EditRequest]:
    """Random corrections that contradict no canary and have nothing to do with the bad one."""
    suite = read_suite(DEMO / "suite.yaml")
    canaries = [canary.prompt for canary in suite.canaries]
    made = random_corrections(suite, count=count + 20, seed=seed)
    fine = [r for r in made if r.subject != bad.subject and not any(r.subject in prompt for prompt in canaries)]
    return fine[:count]


def file(workspace: Workspace, requests: list[EditRequest]) -> None:
    """Files corrections by way of a CSV, as a person would."""
    path = workspace.root / "corrections.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for r in requests:
            told = ("benchmark", "Bea", "to be judged")
            writer.writerow((r.subject, r.relation, r.prompt_template, r.target_new, r.target_true, *told))
    report = ingest(workspace, read_sources(path), tokenizer=Session(workspace).tokenizer, submitter=None)
    if len(report.filed) != len(requests):
        raise SystemExit(f"only {len(report.filed)} of {len(requests)} were filed: {report}")


def night(workspace: Workspace) -> dict[str, Any]:
    """Plans the round; says what was left out, why, and what each step cost."""
    seconds: dict[str, float] = {}
    trials: list[str] = []

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        begun = time.perf_counter()
        found = call_directly(name, function, *arguments)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        if name.startswith("try "):
            trials.append(name)
        return found

    changeset = run_round(Session(workspace), by="Pia", run_step=timed).changeset
    assert changeset is not None
    with workspace.ledger().read() as work:
        named = {fault: work.correction(fault.correction_id) for fault in left_out(changeset)}
    return {
        "proposed": sum(result.status != "skipped" for result in changeset.results),
        "gates_passed": changeset.gate_passed,
        "left_out": [
            {"subject": c.subject, "target_new": c.target_new, "evidence": fault.evidence} for fault, c in named.items()
        ],
        "not_found": changeset.provenance.get(UNDECIDED) or changeset.provenance.get(NOTHING),
        "solves": len(trials),
        "seconds": {name: round(taken, 1) for name, taken in seconds.items()},
    }


def main() -> None:
    """Plants, plans and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corrections", type=int, default=50, help="of the round, at most 50; the bad one among them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=int, default=33, help="of the bad one in the order of filing")
    parser.add_argument("--bad", nargs=4, default=("France", "The capital of {} is", "Lyon", "Paris"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    subject, template, new, true = options.bad
    bad = EditRequest("bad", subject, template, new, true, "capital")
    requests = good_ones(options.corrections - 1, seed=options.seed, bad=bad)
    requests.insert(min(options.place, len(requests)), bad)
    with tempfile.TemporaryDirectory() as folder:
        workspace = workspace_in(Path(folder))
        file(workspace, requests)
        found = night(workspace)
    table = Table(title=f"one bad correction among {len(requests)}")
    for name in ("left out", "evidence", "proposed", "gates passed", "rounds tried", "seconds of the search", "of all"):
        table.add_column(name)
    names = "\n".join(f"{one['subject']}: {one['target_new']}" for one in found["left_out"])
    search = sum(taken for name, taken in found["seconds"].items() if name.startswith("try "))
    why = "\n".join(one["evidence"] for one in found["left_out"]) or str(found["not_found"])
    figures = (found["proposed"], "yes" if found["gates_passed"] else "NO", found["solves"], f"{search:.0f}")
    table.add_row(names, why, *map(str, figures), f"{sum(found['seconds'].values()):.0f}")
    Console(width=160).print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"corrections": len(requests), "seed": options.seed, **found}, indent=1))
    right = [(one["subject"], one["target_new"]) for one in found["left_out"]] == [(subject, new)]
    sys.exit(0 if right and found["gates_passed"] else 1)


if __name__ == "__main__":
    main()
