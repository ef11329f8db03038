"""Runs the benchmarks one after the other, in settings small enough for a few minutes; needs `nse` and its libraries alone.

    python -m benchmarks [names] [--device auto] [--json FOLDER]

Each runs in a process of its own. For the figures of the documentation run a module by itself with its full settings.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks.table import HERE, device_of, machine


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Arguments of a short run, and whether the module can be told its device; those that cannot run on the processor alone."""

    arguments: tuple[str, ...]
    on_device: bool = False


BENCHMARKS = {
    "values": Benchmark(("--facts", "32", "--oracle-facts", "2"), on_device=True),
    "keys": Benchmark(("--facts", "20", "--repeat", "1"), on_device=True),
    "solve": Benchmark(("--width", "3072", "--past", "400")),
    "compose": Benchmark(("--d-out", "1024", "--d-in", "3584", "--layers", "2", "--rounds", "60")),
    "evaluation": Benchmark(("--requests", "10"), on_device=True),
    "stream": Benchmark(("--facts", "40", "--batch", "20")),
    "nights": Benchmark(("--nights", "2", "--batch", "10")),
}


def existing() -> list[str]:
    """Names of the benchmarks that this checkout has."""
    return [name for name in BENCHMARKS if find_spec(f"benchmarks.{name}") is not None]


def command(name: str, device: str, folder: Path) -> list[str]:
    """The command line of a short run that writes its JSON into `folder`."""
    benchmark = BENCHMARKS[name]
    arguments = [*benchmark.arguments, "--json", str(folder / f"{name}.json")]
    if benchmark.on_device:
        arguments += ["--device", device]
    if name == "nights":
        arguments += ["--values", str(folder / "values")]
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


def main() -> int:
    """Runs what is asked for; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*existing(), []], metavar="name", help="all if none is named")
    parser.add_argument("--device", default="auto", help="where models run, as torch names it")
    parser.add_argument("--json", type=Path, help="folder for the records")
    options = parser.parse_args()
    device = device_of(options.device)
    console, failed = Console(width=140), []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names or existing():
            console.rule(name)
            console.print(machine(device) if BENCHMARKS[name].on_device else machine(device_of("cpu")))
            begun = time.perf_counter()
            line = command(name, str(device), (options.json or Path(temporary)).resolve())
            if subprocess.run(line, cwd=HERE).returncode:
                failed.append(name)
            console.print(f"{time.perf_counter() - begun:.0f} s")
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
