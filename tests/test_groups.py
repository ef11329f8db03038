"""The tests of one file run in one process, so that what they share is made once."""

import pytest


def test_the_tests_of_a_file_are_a_group(request: pytest.FixtureRequest) -> None:
    # pytest 9.2 and pytest-xdist 3.8 together drop the groups without a word (pytest-dev/pytest-xdist, issue 1386)
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("these tests run in one process")
    assert request.node.nodeid.endswith(f"@{request.node.path}")
