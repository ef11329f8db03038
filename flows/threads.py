"""How many threads a process computes with: what it may really use, unless someone says otherwise; and how they wait.

A processor that a process may not use, by its mask or its container's quota, makes every other thread wait at each barrier. So
does one that somebody else computes on; a thread that waits shall then sleep, not spin. Nothing here loads torch: its OpenMP
reads the environment once, when it is loaded.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

GIVEN = "NSE_THREADS"
"""The number that a person gave on the command line, or there by environment; it is handed on to processes that are started."""
WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""For GNU's OpenMP, which torch's wheels for the processor bring, and for Intel's and LLVM's."""


def prepare(given: int | None = None) -> None:
    """Sets the environment of this process and of those that it starts; before torch is loaded.

    What the user has set stays: `OMP_NUM_THREADS`, and how threads wait.

    Args:
        given: Number of threads that a person asks for, whatever else is set.
    """
    for name, value in WAIT.items():
        os.environ.setdefault(name, value)
    if given is not None:
        os.environ[GIVEN] = os.environ["OMP_NUM_THREADS"] = str(given)
        if "torch" in sys.modules:  # a command that another one runs in its own process
            settle(given)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable()))


def settle(most: int | None) -> None:
    """Keeps torch to `most` threads, those of `params.yaml`; what a person gave on the command line counts more.

    Never more than this process has by its environment: `params.yaml` is shared by machines of all sizes.
    """
    import torch

    if given := os.environ.get(GIVEN):
        torch.set_num_threads(int(given))
    elif most is not None and most < torch.get_num_threads():
        torch.set_num_threads(most)


def usable(root: Path = Path("/")) -> int:
    """Processors that this process may use at a time: those of its mask, or fewer if its control groups have a quota.

    Args:
        root: Where the system's files are.
    """
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([masked, *_quotas(root)])))  # a part of a processor would be waited for at each barrier


def _quotas(root: Path) -> Iterator[float]:
    """Processors' time per time that this process's control groups, and those around them, may use, where they are limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            tops, read = [mounted], _version_2
        elif "cpu" in controllers.split(","):
            tops, read = [mounted / "cpu", mounted / controllers], _version_1
        else:
            continue
        # a container may see its own group as the root, whatever the path says
        for top in tops:
            for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
                if folder.is_relative_to(top) and (quota := read(folder)) is not None:
                    yield quota


def _version_2(folder: Path) -> float | None:
    return _ratio(*_words(folder / "cpu.max"))


def _version_1(folder: Path) -> float | None:
    return _ratio(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us"))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _ratio(*words: str) -> float | None:
    """Quota by period, both in microseconds; nothing if there is none ("max" in version 2, -1 in version 1)."""
    if len(words) != 2 or not words[0].isdigit() or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])
