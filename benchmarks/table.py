"""What all benchmarks share: the machine they ran on, the device, peak memory, a process of its own, the table and its JSON."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from nse.architecture import EditableModel, load_model

HERE = Path(__file__).resolve().parent.parent


def device_of(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator where there is one, else the processor."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device(name)


def load(path: Path, device: torch.device, *, dtype: torch.dtype = torch.float32) -> EditableModel:
    """Loads a model onto `device`."""
    editable = load_model(path, dtype=dtype)
    if device.type == "cpu":
        return editable
    return replace(editable, model=editable.model.to(device))  # type: ignore[arg-type]  # made anew: its base lies there


def machine(device: torch.device) -> dict[str, Any]:
    """What computes: processor or accelerator, threads, memory in GiB, versions."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "accelerator": torch.get_device_module(device).get_device_name(device) if device.type != "cpu" else None,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def peak_bytes() -> int:
    """Most memory that this process has held so far, in bytes; not what the process that started it held."""
    if (status := Path("/proc/self/status")).is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak_bytes(device: torch.device) -> int:
    """Most memory of an accelerator that tensors have held so far, in bytes; 0 on the processor."""
    return 0 if device.type == "cpu" else torch.accelerator.max_memory_allocated(device)


def matmul_rate(editable: EditableModel, *, rows: int = 128) -> float:
    """Floating-point operations in a processor second of the product that a model of this size is made of, at its best.

    `rows` tokens through a weight of the size of an MLP's, in the model's dtype, by the threads that torch has. On an
    accelerator by the clock.
    """
    weight = editable.base_weight(editable.parameter_name(0))
    tokens = torch.ones(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    amount, best = 2 * rows * weight.numel(), 0.0
    clock = time.process_time if weight.device.type == "cpu" else time.perf_counter
    until = time.perf_counter() + 1
    while time.perf_counter() < until:
        begun = clock()
        for _ in range(8):
            tokens @ weight.T
        if weight.device.type != "cpu":
            torch.accelerator.synchronize()
        best = max(best, 8 * amount / (clock() - begun))
    return best


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of all products that `run` makes. It is slower than by itself: not to be timed."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def in_a_process(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs `python -m module arguments` and reads the JSON in its last line.

    Raises:
        RuntimeError: If the process fails.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, cwd=HERE)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}: see its output above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], where: dict[str, Any]) -> None:
    """Prints a table under its title, and the machine below it."""
    caption = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in where.items() if value is not None)
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Writes a record as JSON, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
