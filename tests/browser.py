"""A real browser for the tests: headless Chromium opens a page, and what it drew, said and asked the network for is kept."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib.image import imread

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--enable-logging=stderr", "--log-level=0", "--window-size=1200,1600"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing outside this machine is reached
)
OWN = "not an origin"
"""What the browser's log says of requests of its own, such as that for updates, and of the page itself."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of opening a page.

    Attributes:
        console: What the page, or the browser about it, wrote on the console: errors, and what its policy forbade.
        requests: The addresses that the page asked for over the network.
        picture: Pixels of the page, (height, width, 3) in 0..1.
    """

    console: list[str]
    requests: list[str]
    picture: "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"

    @property
    def background(self) -> float:
        """Brightness of the page's corner, 0 to 1."""
        return float(self.picture[0, 0].mean())

    @property
    def ink(self) -> float:
        """Share of pixels that differ clearly from the corner's: 0 of a blank page."""
        return float((numpy.abs(self.picture - self.picture[0, 0]).max(axis=2) > 0.2).mean())


def visit(address: str, folder: Path, *, dark: bool = False) -> Visit:
    """Opens a page for a reader who prefers light, or dark; without a Chromium on the path the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium on the path (Debian: apt-get install chromium)")
    picture, log = folder / "page.png", folder / "net.json"
    files = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--screenshot={picture}")
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    done = subprocess.run(
        [found, *FLAGS, *files, *scheme, address], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    return Visit(
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        requests=[params["url"] for params in asked if "url" in params and params.get("initiator", OWN) != OWN],
        picture=imread(picture)[..., :3],
    )
