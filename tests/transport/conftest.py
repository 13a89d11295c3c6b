"""On which servers do the tests of the seam run? On each; and on the event loop that workers run on."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.transport.servers import server

__all__ = ["server"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    del config, item
    return {"uvloop": uvloop.new_event_loop}
