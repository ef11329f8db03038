"""A stream of batches, end to end: `nse edit` against the oracle of the tests, in seconds and in what the edited models answer.

`nse edit` runs twice, and its files must be the same bytes (its report less the seconds). The oracle takes z by the layout of
the published code, keys one text at a time and dense solves. Both use the published method: each z alone. One command; needs
only `nse` and this checkout's `tests/nse/oracle.py`. On the demo model, and on another with requests that bring their own probes:

    python -m benchmarks.stream --facts 100 --batch 50
    python -m benchmarks.stream --model DIR --requests FILE --corpus FILE --hparams benchmarks/bios.yaml --facts 500 --batch 50
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.nights import random_corrections
from benchmarks.table import HERE, device_of, machine, show, write
from nse.architecture import EditableModel, load_model
from nse.command import EditFiles, StreamOptions, edit_stream
from nse.contexts import ContextTemplates
from nse.delta import Delta
from nse.evaluation.metrics import shares
from nse.evaluation.probes import Probe, request_probes
from nse.evaluation.run import ask, probes_of
from nse.evaluation.suites import read_suite
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.patch import Weights, compose, patched
from nse.request import EditRequest, read_requests
from nse.statistics import collect_second_moments, read_second_moments
from tests.nse import oracle

KINDS = ("efficacy", "generalization", "specificity")


def requests_and_probes(options: argparse.Namespace) -> tuple[list[EditRequest], list[Probe]]:
    """The stream, and the questions about all of it after its end; what the stream corrects is no neighbour."""
    if options.requests:
        requests = read_requests(options.requests)[: options.facts]
        nothing: dict[str, Any] = {"facts": (), "templates": (), "edited": set(), "neighbours": 0}
        probes = [probe for request in requests for probe in request_probes(request, **nothing)]
    else:
        suite = replace(read_suite(HERE / "demo/suite.yaml"), untouched=0)
        requests = random_corrections(suite, count=options.facts, seed=options.seed)
        probes = probes_of(suite, requests, [])
    corrected = {r.prompt for r in requests}
    return requests, [p for p in probes if p.kind in KINDS and not (p.kind == "specificity" and p.prompt in corrected)]


def ours(
    files: EditFiles, options: argparse.Namespace, folder: Path
) -> tuple[list[float], dict[str, Any], dict[str, bool]]:
    """Runs `nse edit` twice: seconds of both, the first report, and per file whether both gave the same bytes."""
    seconds, reports = [], []
    for number in range(2):
        begun = time.perf_counter()
        reports.append(
            edit_stream(files, output=folder / str(number), options=StreamOptions(options.batch, options.seed))
        )
        seconds.append(time.perf_counter() - begun)
    same = {
        name: _digest(folder / "0" / name) == _digest(folder / "1" / name)
        for name in ("delta.safetensors", "values.safetensors")
    }
    for report in reports:
        for batch in report["batches"]:
            batch.pop("seconds")
    return seconds, reports[0], {**same, "report.json less seconds": reports[0] == reports[1]}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def naive(
    files: EditFiles, requests: Sequence[EditRequest], contexts: ContextTemplates, hp: Hyperparameters, batch: int
) -> tuple[dict[str, float], Weights, torch.Tensor]:
    """The oracle's stream: seconds by part, the edited weights by name, and its z's."""
    begun = time.perf_counter()
    editable = load_model(files.model)
    assert files.second_moment is not None
    moments = read_second_moments(files.second_moment)
    c0 = {la: moments.of(editable.projection_name(la)) for la in hp.layers}
    base = {la: editable.base_weight(editable.parameter_name(la)).double() for la in hp.layers}
    updates = {la: torch.zeros_like(w) for la, w in base.items()}
    keys = {la: torch.zeros(w.shape[1], 0, dtype=torch.float64) for la, w in base.items()}
    z = torch.stack(
        [oracle.compute_z_as_published(editable, r, contexts=contexts, hyperparameters=hp) for r in requests]
    )
    between = time.perf_counter()
    for start in range(0, len(requests), batch):
        done = oracle.nse_round(
            editable,
            requests[start : start + batch],
            z=z[start : start + batch],
            contexts=contexts,
            hyperparameters=hp,
            second_moments=c0,
            earlier_updates=updates,
            previous_keys=keys,
        )
        names = {la: editable.parameter_name(la) for la in hp.layers}
        updates = {la: done.weights[name].double() - base[la] for la, name in names.items()}
        keys = {la: torch.cat([keys[la], done.keys[name]], dim=1) for la, name in names.items()}
    weights = {name: editable.canonical(weight).contiguous() for name, weight in done.weights.items()}
    return {"values": between - begun, "rounds": time.perf_counter() - between}, weights, z


def scores(editable: EditableModel, weights: Weights, probes: Sequence[Probe]) -> dict[str, float]:
    """Efficacy, generalization and specificity by probability, by argmax and by free generation, with `weights` in force."""
    with patched(editable, weights):
        return shares(ask(editable, probes))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs both streams and scores both models."""
    requests, probes = requests_and_probes(options)
    (folder / "requests.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in requests), encoding="utf-8")
    given = read_hyperparameters(options.hparams).settings
    # what the published code does not have is left out
    settings = replace(given, joint_values=False, value_contexts="all", context_spread_weight=0.0)
    plain = {key: value for key, value in settings.to_dict().items() if value != float("inf")}
    (folder / "hparams.json").write_text(json.dumps(plain), encoding="utf-8")
    editable = load_model(options.model)
    collect_second_moments(editable, options.corpus, layers=settings.layers).save(folder / "moments.safetensors")
    contexts = options.contexts or (None if options.requests else HERE / "demo/contexts.json")
    files = EditFiles(
        options.model,
        folder / "requests.jsonl",
        folder / "hparams.json",
        second_moment=folder / "moments.safetensors",
        contexts=contexts,
    )
    seconds, report, same = ours(files, options, folder)
    count = min(options.oracle_facts or len(requests), len(requests))
    templates = tuple(map(tuple, report["contexts"]))
    slow, weights, z = naive(files, requests[:count], templates, settings, options.batch)
    fast_z = load_file(folder / "0" / "values.safetensors")["z"][:count].double()
    record = {
        "facts": len(requests),
        "oracle_facts": count,
        "batch": options.batch,
        "seconds": seconds,
        "oracle_seconds": slow,
        "ratio": sum(slow.values()) / count / (min(seconds) / len(requests)),
        "same_bytes": same,
        "z_difference_median": float(((fast_z - z.double()).norm(dim=1) / z.double().norm(dim=1)).median()),
        "statuses": {
            s: sum(r["status"] == s for r in report["requests"]) for s in ("edited", "unconverged", "skipped")
        },
        "base": scores(editable, {}, probes),
        "ours": scores(editable, compose(editable, [Delta.load(folder / "0" / "delta.safetensors")]), probes),
    }
    if count == len(requests):
        record["oracle"] = scores(editable, weights, probes)
    return record


def report_tables(record: dict[str, Any], where: dict[str, Any]) -> None:
    """Prints seconds and scores."""
    facts, count, slow = record["facts"], record["oracle_facts"], record["oracle_seconds"]
    whole = f"{sum(slow.values()) / count * facts:.0f}" + ("" if count == facts else f" (from {count} facts)")
    rows = [
        ("ours, first run", f"{record['seconds'][0]:.1f}", f"{record['seconds'][0] / facts:.3f}"),
        ("ours, second run", f"{record['seconds'][1]:.1f}", f"{record['seconds'][1] / facts:.3f}"),
        ("oracle", whole, f"{sum(slow.values()) / count:.3f}"),
        ("oracle: values, rounds", f"{slow['values']:.1f}, {slow['rounds']:.1f}", ""),
        ("ours is faster", f"{record['ratio']:.1f}", ""),
        ("z: relative difference, median", f"{record['z_difference_median']:.1e}", ""),
        *((f"same bytes: {name}", "yes" if same else "NO", "") for name, same in record["same_bytes"].items()),
    ]
    show(f"{facts} facts in batches of {record['batch']}", ("", "s", "s per fact"), rows, where)
    models = [name for name in ("base", "ours", "oracle") if name in record]
    cells = [[name, *(f"{100 * record[m][name]:.1f}" for m in models)] for name in record["ours"]]
    show("all facts after the end of the stream, %", ("", *models), cells, record["statuses"])


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "demo/model")
    parser.add_argument(
        "--requests", type=Path, help="a file with the requests; random corrections of the demo if not given"
    )
    parser.add_argument("--corpus", type=Path, default=HERE / "demo/corpus.txt", help="text for the second moments")
    parser.add_argument("--hparams", type=Path, default=HERE / "demo/at_subjects.yaml")
    parser.add_argument("--contexts", type=Path, help="context templates; the demo's, or sampled for another model")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument(
        "--oracle-facts", type=int, help="first facts that the oracle edits; all if not given, else no scores"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = machine(device_of("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        record = run(options, Path(folder))
    report_tables(record, where)
    write(options.json, {"machine": where, **record})


if __name__ == "__main__":
    main()
