"""Do the end-to-end tests run on the server that pytest's option names?"""

import psutil
import pytest

from tests.support.gateway import Gateway


@pytest.mark.parametrize("module", ["sidecar.worker", "sidecar.recorder"])
def test_the_gateway_runs_on_the_server_that_was_asked_for(
    gateway: Gateway, pytestconfig: pytest.Config, module: str
) -> None:
    pids = gateway.pids(module)
    assert pids
    found = {psutil.Process(pid).environ()["GATEWAY_TRANSPORT"] for pid in pids}
    assert found == {pytestconfig.getoption("--transport")}
