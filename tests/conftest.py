"""What the tests of every package share: a PostgreSQL server and a pretrained model, had when a test first asks; no keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.fetch import FetchFailed, fetched
from tests.postgres import ledger_url, postgres

__all__ = ["ledger_url", "postgres"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is dear to make run in one process: those of a file, of a family in the conformance suite."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        family = callspec.params.get("family") if callspec and "conformance" in item.path.parts else None
        item.add_marker(pytest.mark.xdist_group(str(family or item.path)))
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.pretrained)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder; fetched once for this machine, if it is not in the cache."""
    try:
        return fetched("smollm2")
    except FetchFailed as error:
        pytest.skip(f"no pretrained model: {error}")


@pytest.fixture(scope="session", autouse=True)
def _keys_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the keys of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSE_KEYS", str(tmp_path_factory.mktemp("keys")))
        yield
