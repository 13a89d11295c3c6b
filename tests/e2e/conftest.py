"""Which gateway do the end-to-end tests share? One per test process; a test that breaks something starts its own."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import Gateway, running
from tests.support.oidc import OidcIssuer, running_issuer


@pytest.fixture(scope="session")
def issuer() -> Iterator[OidcIssuer]:
    """An identity provider that the shared gateway trusts."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="session")
def gateway(issuer: OidcIssuer) -> Iterator[Gateway]:
    """A running gateway. Tests share it: each makes a tenant of its own."""
    # The endpoints of the tests' webhooks are on this machine.
    with running(env={"GATEWAY_JWT_ISSUERS": issuer.setting(), "GATEWAY_WEBHOOK_ALLOW_PRIVATE": "true"}) as gateway:
        yield gateway
