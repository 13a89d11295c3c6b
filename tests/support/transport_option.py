"""With which gRPC server do the gateways run that tests start? With the one that pytest's option --transport names."""

from dataclasses import dataclass

import pytest

from sidecar.listening import Transport


@dataclass(slots=True)
class Choice:
    """What this test process was started with."""

    transport: str = Transport.LEAN.value


CHOSEN = Choice()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=[transport.value for transport in Transport],
        default=Transport.LEAN.value,
        help="the gRPC server of every gateway that a test starts",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The processes of xdist are started with the options of the one that started them.
    CHOSEN.transport = config.getoption("--transport")


def pytest_report_header() -> str:
    return f"transport: {CHOSEN.transport}"
