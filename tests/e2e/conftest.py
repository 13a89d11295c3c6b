"""Which gateway do the end-to-end tests share? One per test process; a test that breaks something starts its own."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import Gateway, running


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A running gateway. Tests share it: each makes a tenant of its own."""
    with running() as gateway:
        yield gateway
