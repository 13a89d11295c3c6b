"""The code that docs/identity-token.md gives to the authors of Routers: it runs, and believes the right tokens only."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest

from authz.identity_token import IdentityTokens
from authz.key_ring import KeyRing, SigningKey, generate
from authz.principal import Handle, PrincipalKind
from tests.support.values import grant

DOCUMENT = Path(__file__).parents[2] / "docs" / "identity-token.md"
PUBLISHED_AT = "https://gateway.example/.well-known/jwks.json"


def key() -> SigningKey:
    since = datetime.now(UTC) - timedelta(hours=1)
    return generate(created_at=since, active_from=since)


@pytest.fixture
def published() -> SigningKey:
    return key()


@pytest.fixture
def address(published: SigningKey) -> Iterator[str]:
    body = msgspec.json.encode(KeyRing((published,)).jwks(datetime.now(UTC)))

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep still."""

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/.well-known/jwks.json"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def caller(address: str) -> Callable[[str], dict[str, Any]]:
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert PUBLISHED_AT in code
    names: dict[str, Any] = {}
    exec(compile(code.replace(PUBLISHED_AT, address), str(DOCUMENT), "exec"), names)  # noqa: S102 - our own text
    found: Callable[[str], dict[str, Any]] = names["caller"]
    return found


def signed_by(key: SigningKey, *, age: float = 0) -> IdentityTokens:
    made_at = time.time() - age
    tokens = IdentityTokens(now=lambda: made_at)
    tokens.use(KeyRing((key,)))
    return tokens


def test_a_router_believes_the_gateway(caller: Callable[[str], dict[str, Any]], published: SigningKey) -> None:
    token = signed_by(published).for_router(grant(session_id="ses_1"))
    assert token is not None
    claims = caller(token.text)
    documented = set(re.findall(r"^\| (`.*?`) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert set(claims) == {name for names in documented for name in re.findall(r"`(\w+)`", names)}
    assert (claims["sub"], claims["org"], claims["tenant"]) == ("key_k", "org_a", "ten_a")


def test_a_router_believes_nobody_else(caller: Callable[[str], dict[str, Any]], published: SigningKey) -> None:
    control = signed_by(published).for_control(grant(), Handle(PrincipalKind.API_KEY, "k"), frozenset())
    for token in (signed_by(key()).for_router(grant()), control, signed_by(published, age=70).for_router(grant())):
        assert token is not None
        with pytest.raises(jwt.PyJWTError):
            caller(token.text)
