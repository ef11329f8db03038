"""A process of its own for one part of a benchmark, `python -m nse.bench.worker JOB`: its memory and its crashes are its own.

It writes JSON lines on standard output: `{"progress": [stage, done, total]}` on its way, and last `{"record": ...}` or
`{"error": ...}`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nse.architecture import load_model
from nse.batch import Progress
from nse.bench.job import Job, torch_dtype
from nse.bench.part import run_part
from nse.description import read_architecture
from nse.errors import NseError


def run_apart(job: Job, *, progress: Progress) -> dict[str, Any]:
    """Runs a part in a process of its own; a process that dies leaves a record that says how."""
    with tempfile.TemporaryDirectory(prefix="nse-bench-") as folder:
        path, errors = Path(folder) / "job.json", Path(folder) / "stderr"
        path.write_text(job.to_json(), encoding="utf-8")
        record: dict[str, Any] | None = None
        reason = ""
        command = [sys.executable, "-m", __name__, str(path)]
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    told = json.loads(line)
                    if "progress" in told:
                        progress(*told["progress"])
                    record, reason = told.get("record", record), told.get("error", reason)
                code = process.wait()
            finally:
                process.kill()  # where it is left in the middle; nothing to do where it has ended
        if record is not None:
            return record
        lines = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        ended = f"killed by signal {-code}: is there memory enough?" if code < 0 else f"ended with {code}"
        said = reason or (f"{lines[-1].strip()} ({ended})" if lines else ended)
        return {"method": job.method, "order": job.order, "failed": {"edits": None, "reason": said}, "checkpoints": []}


def main(arguments: list[str]) -> int:
    """Runs the job in the file that the one argument names."""
    job = Job.from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        described = read_architecture(job.architecture) if job.architecture else None
        editable = load_model(
            job.model, dtype=torch_dtype(job.dtype), architecture=described, device_map=job.device_map
        )
        record = run_part(editable, job, progress=lambda *told: _tell({"progress": told}))
    except NseError as error:
        _tell({"error": " ".join(str(error).split())})
        return 2
    _tell({"record": record})
    return 0


def _tell(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
