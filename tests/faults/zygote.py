"""A process that has imported everything and forks: a child starts in milliseconds where Python with torch takes seconds.

It reads jobs, a line of JSON each, and answers each with a line. A job is a list of runs that go on at the same time, each
in a child of its own; `tests.faults.actions` says what a run can be. It never runs a parallel operation itself, so that
torch may be used after the fork.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 600
"""Only what hangs takes so long: on a machine that is busy with other things a run takes minutes instead of seconds."""


def main(workspace: str) -> None:
    import torch

    from tests.faults import actions

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    actions.warm(workspace)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        children = [(_fork(actions.perform, run), Path(run["out"])) for run in job]
        answers.write(json.dumps([_wait(pid, out) for pid, out in children]) + "\n")
        answers.flush()


def _fork(function: Any, run: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    out = Path(run["out"])
    code = 70
    try:
        with (out / "said").open("w") as said:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
        code = function(run)
    finally:  # whatever happens, the child must not read the next job
        if code == 70:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            (out / "trace").write_text(traceback.format_exc())
        os._exit(code)


def _wait(pid: int, out: Path) -> dict[str, Any]:
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            answer, trace = out / "answer.json", out / "trace"
            return {
                "code": os.waitstatus_to_exitcode(status),
                "said": (out / "said").read_text(errors="replace"),
                "trace": trace.read_text() if trace.exists() else "",
                "answer": json.loads(answer.read_text()) if answer.exists() else None,
            }
        time.sleep(0.003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"code": None, "said": (out / "said").read_text(errors="replace"), "trace": "timeout", "answer": None}


if __name__ == "__main__":
    main(sys.argv[1])
