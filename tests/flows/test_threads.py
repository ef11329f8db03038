"""How many threads compute: the mask, the quota of a container, the environment, a person's word and params.yaml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.threads import settle, usable

ROOT = Path(__file__).parents[2]
MASK = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A system's files: what /proc/self/cgroup says, and what stands in /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_without_a_quota_the_mask_counts(tmp_path: Path) -> None:
    assert usable(tmp_path) == MASK
    unlimited = system(tmp_path, "0::/user", {"cpu.max": "max 100000", "user/cpu.max": "max 100000"})
    assert usable(unlimited) == MASK
    old = system(tmp_path, "4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert usable(old) == MASK


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/", {"cpu.max": "100000 100000"}),
        ("0::/user/own", {"cpu.max": "max 100000", "user/cpu.max": "150000 100000", "user/own/cpu.max": "max 100000"}),
        ("0::/not/seen/inside", {"cpu.max": "50000 100000"}),
        ("1:memory:/x\n4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "120000", "cpu/x/cpu.cfs_period_us": "100000"}),
        ("4:cpu,cpuacct:/x", {"cpu,cpuacct/cpu.cfs_quota_us": "9000", "cpu,cpuacct/cpu.cfs_period_us": "10000"}),
    ],
    ids=["version 2", "a group around it", "a container", "version 1", "version 1 in a container"],
)
def test_a_quota_of_less_than_two_processors_is_one_thread(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert usable(system(tmp_path, cgroup, files)) == 1


def test_a_quota_above_the_mask_changes_nothing(tmp_path: Path) -> None:
    assert usable(system(tmp_path, "0::/", {"cpu.max": f"{(MASK + 3) * 100000} 100000"})) == MASK


def told(*arguments: str, **environment: str) -> str:
    """What a command leaves in the environment of a fresh process, in which it has loaded no torch."""
    code = "import os, sys, flows.cli as cli; cli.app(sys.argv[1:], standalone_mode=False)"
    code += "; print(os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "NSE_THREADS")
    clean = {k: v for k, v in os.environ.items() if k not in names} | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", code, *arguments, "policy", "--help"]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_the_command_line_settles_it_before_torch_is_loaded() -> None:
    assert told() == f"{usable()} PASSIVE False"
    assert told("--threads", "3", OMP_NUM_THREADS="1") == "3 PASSIVE False"
    assert told(OMP_NUM_THREADS="5", OMP_WAIT_POLICY="ACTIVE") == "5 ACTIVE False"


@pytest.mark.parametrize(
    ("given", "most", "expected"), [(None, 2, [2]), (None, 4, []), (None, None, []), ("4", 2, [4])], ids=str
)
def test_the_workspace_bounds_it_and_a_persons_word_counts_more(
    monkeypatch: pytest.MonkeyPatch, given: str | None, most: int | None, expected: list[int]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.delenv("NSE_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("NSE_THREADS", given)
    settle(most)
    assert asked == expected
