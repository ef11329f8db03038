"""The solve of one layer: dense algebra against a kept factor of C0, each in a process of its own, on the same random system.

Prints a table and writes JSON. One command; needs only `nse`. C0 has a decaying spectrum, keys are drawn from it:

    python -m benchmarks.solve --width 14336 --new 100 --past 2000 --json build/solve.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from nse.factors import FactorStore, PastKeys
from nse.solve import solve_update

LAMBDA = 15000.0
DIRECTIONS = 256
"""Strong directions of C0: the rest decays over four orders of magnitude."""


def make_system(folder: Path, options: argparse.Namespace) -> None:
    """Writes C0, the keys of earlier rounds (facts as rows, as deltas keep them) and those of some new rounds."""
    random = torch.Generator().manual_seed(options.seed)
    d = options.width
    strong = torch.randn(d, DIRECTIONS, generator=random) * (torch.arange(1, DIRECTIONS + 1) ** -0.7) * 0.3
    floor = torch.logspace(0, -4, d)[torch.randperm(d, generator=random)]
    second_moment = strong @ strong.T
    second_moment.diagonal().add_(floor)

    def keys(count: int) -> torch.Tensor:
        mixed = torch.randn(count, DIRECTIONS, generator=random) @ strong.T
        return mixed + torch.randn(count, d, generator=random) * floor.sqrt()

    past, size = keys(options.past), options.per_round
    blocks = {f"past {i:05}": past[i : i + size].contiguous() for i in range(0, options.past, size)}
    new = {f"new {i}": keys(options.new) for i in range(options.repeat)}
    save_file({"C0": second_moment, **blocks, **new}, folder / "system.safetensors")


def peak() -> int:
    """Most memory that this process has had since `forget_peak`, memory maps that it has touched included, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """Lets the high-water mark begin again."""
    Path("/proc/self/clear_refs").write_text("5")


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that an action takes, and what it gives."""
    begun = time.perf_counter()
    result = action()
    return time.perf_counter() - begun, result


def run_variant(variant: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs one variant in this process and writes its solutions."""
    system = load_file(folder / "system.safetensors")
    second_moment = system["C0"]
    second_moment.sum()  # touched: its memory is there before the measurement begins
    blocks = [system[name] for name in sorted(system) if name.startswith("past")]
    new = [system[f"new {i}"].T.double() for i in range(options.repeat)]
    residual, nothing = torch.ones(1, options.new), torch.zeros(options.width, 0)
    neurons = torch.arange(options.width)

    def solve(keys: torch.Tensor, previous: torch.Tensor, past: PastKeys | None) -> torch.Tensor:
        return solve_update(
            keys,
            residual,
            second_moment=second_moment,
            previous_keys=previous,
            neurons=neurons,
            mom2_update_weight=LAMBDA,
            past=past,
        )[1]

    forget_peak()
    before = peak()
    found: dict[str, float] = {}
    if variant == "dense":
        previous = torch.cat(blocks).T.double()
        found["round"], right = timed(partial(solve, new[0], previous, None))
        save_file({"0": right}, folder / "dense.safetensors")
    else:
        store = FactorStore(folder / "factors", smallest_width=1)
        found["factor"], _ = timed(store.past(second_moment, []).whitened)
        found["keys_before"], _ = timed(store.past(second_moment, blocks[:-1]).whitened)
        found["keys_of_last_round"], _ = timed(store.past(second_moment, blocks).whitened)
        seconds, rights = [], {}
        for number, keys in enumerate(new):
            past = store.past(second_moment, blocks)
            if not past.pays(0, options.new):
                raise SystemExit("dense algebra is the cheaper way at this size: nothing to compare")
            took, rights[str(number)] = timed(partial(solve, keys, nothing, past))
            seconds.append(took)
        found["round"], found["slowest_round"] = sorted(seconds)[len(seconds) // 2], max(seconds)
        save_file({name: right.contiguous() for name, right in rights.items()}, folder / f"{variant}.safetensors")
    return found | {"peak_bytes": peak() - before}


def in_a_process(variant: str, folder: Path) -> dict[str, float]:
    """Runs a variant in a fresh process, so that its peak is its own."""
    command = [sys.executable, "-m", "benchmarks.solve", *sys.argv[1:], "--variant", variant, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(results: dict[str, dict[str, float]], record: dict[str, Any]) -> Table:
    """The table."""
    table = Table(
        title=f"d_mlp {record['width']}, {record['new']} new and {record['past']} past facts, {record['threads']} threads"
    )
    for name in ("", "dense", "kept factor", "kept factor, next process"):
        table.add_column(name, justify="right" if name else "left")
    names = {
        "factor": "factor of C0 (s, once per model and layer)",
        "keys_before": "past keys, all but the last round's (s, once)",
        "keys_of_last_round": "past keys of the last round (s, once a round)",
        "round": "solve (s, median)",
        "peak_bytes": "peak memory without C0 (GB)",
    }
    for key, title in names.items():
        cells = []
        for variant in ("dense", "first", "again"):
            value = results[variant].get(key)
            cells.append("" if value is None else f"{value / 1e9:.2f}" if key == "peak_bytes" else f"{value:.2f}")
        table.add_row(title, *cells)
    table.add_row("faster: solve", "1", f"{record['ratio']:.1f}", "")
    table.add_row("faster: solve and keys of the last round", "1", f"{record['ratio_with_keys']:.1f}", "")
    table.add_row("largest relative difference", "", f"{record['difference']:.1e}", "")
    return table


def main() -> None:
    """Makes the system, runs the variants and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=14336)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--past", type=int, default=2000)
    parser.add_argument("--per-round", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--folder", type=Path, help="where the system and the factor are kept; a temporary one if not given"
    )
    parser.add_argument("--variant", choices=("dense", "first", "again"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.variant:
        print(json.dumps(run_variant(options.variant, options.folder, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_system(folder, options)
        results = {variant: in_a_process(variant, folder) for variant in ("dense", "first", "again")}
        dense, fast = (load_file(folder / f"{v}.safetensors")["0"] for v in ("dense", "first"))
        record = {name: getattr(options, name) for name in ("width", "new", "past", "per_round", "seed", "threads")}
        record["ratio"] = results["dense"]["round"] / results["first"]["round"]
        last = results["first"]["keys_of_last_round"]
        record["ratio_with_keys"] = results["dense"]["round"] / (results["first"]["round"] + last)
        record["difference"] = float((dense - fast).abs().max() / dense.abs().max())
        record["difference_norm"] = float((dense - fast).norm() / dense.norm())
    Console(width=140).print(report(results, record))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**record, "results": results, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
