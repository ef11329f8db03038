"""Peak memory of a piece of work, on the processor and on accelerators."""

import contextlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The most memory that was held inside `watched` blocks, in bytes, whatever else the process held included.

    Attributes:
        process: Resident memory of the process. Where the system cannot start a count anew, that of its whole life.
        device: Memory of tensors on accelerators; 0 where there is none.
    """

    process: int = 0
    device: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Counts what is held inside the block."""
        accelerated = torch.accelerator.is_available()
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            CLEAR.write_text("5")
        if accelerated:
            torch.accelerator.reset_peak_memory_stats()
        try:
            yield
        finally:
            self.process = max(self.process, _resident_peak())
            if accelerated:
                self.device = max(self.device, torch.accelerator.max_memory_allocated())


def _resident_peak() -> int:
    if STATUS.is_file():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
