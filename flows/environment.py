"""The environment that Prefect needs, set before it is imported, and the server that a schedule needs."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.errors import FlowError

STARTUP_SECONDS = 90
"""The first temporary server takes 13-20 s to start; Prefect's own limit is 20."""
PORT = 4200


def prepare(root: Path) -> None:
    """Sets what the user has not set already. Prefect reads it once, on import."""
    if "PREFECT_HOME" not in os.environ:
        home = root / ".nse" / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(STARTUP_SECONDS))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


@contextmanager
def server(root: Path) -> Iterator[str]:
    """Yields the URL of a Prefect server: the one that `PREFECT_API_URL` names, or one of our own until the block ends.

    Prefect's temporary servers run no scheduler, so a schedule needs a whole one.

    Raises:
        FlowError: If it does not come up.
    """
    prepare(root)
    if given := os.environ.get("PREFECT_API_URL"):
        yield given
        return
    url = f"http://127.0.0.1:{_free_port()}/api"
    log = root / ".nse" / "prefect-server.log"
    log.parent.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        url.split(":")[2][:-4],
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(url, process, log)
            os.environ["PREFECT_API_URL"] = url
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise FlowError("no port is free on this machine", "set PREFECT_API_URL to a server that runs")


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise FlowError("the Prefect server did not come up", f"see {log}")
