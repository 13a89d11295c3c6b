"""What does the benchmark show at the door? A JWT and a session beside the API key, and a million keys of others."""

import ssl
import time
from typing import TYPE_CHECKING

import httpx
import msgspec

from authz.principal import Metering
from store.database import opened
from tests.support.oidc import SigningKey

if TYPE_CHECKING:
    from tests.bench.stage import Stage

MILLION = 1_000_000
_ISSUER, _AUDIENCE = "https://issuer.bench.test", "inference-gateway"
_LIFETIME_SECONDS = 3600
# Triggers would announce each of them; a hash that no key has opens nothing.
_FILL = """
INSERT INTO api_keys (id, tenant_id, name, tag, hash, roles, version)
SELECT 'm' || lpad(n::text, 11, '0'), $1, 'filler', 'bench', sha256(n::text::bytea), '{inference}', 1
FROM generate_series(1, $2::int) AS n"""


def issuers(key: SigningKey) -> str:
    """The setting GATEWAY_JWT_ISSUERS that trusts this key."""
    issuer = {"issuer": _ISSUER, "audiences": [_AUDIENCE], "keys": {"keys": [key.jwk]}}
    return msgspec.json.encode([issuer]).decode()


async def made(stage: "Stage") -> dict[str, str]:
    """A JWT and a session of the tenant that is metered natively."""
    now = int(time.time())
    claims = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": "bench", "iat": now, "exp": now + _LIFETIME_SECONDS}
    jwt = stage.issuer.sign({**claims, "tenant": stage.tenants[Metering.NATIVE], "scope": "models:read"})
    tls = ssl.create_default_context(cafile=stage.certificates.ca)
    headers = {"authorization": f"Bearer {stage.keys[Metering.NATIVE]}"}
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{stage.ports['gateway']}", verify=tls) as client:
        answer = await client.post("/v1/sessions", json={}, headers=headers)
    answer.raise_for_status()
    return {"jwt": jwt, "session": str(answer.json()["token"])}


async def fill(stage: "Stage") -> None:
    """Put a million keys of somebody else into the database."""
    async with opened(stage.postgres.dsn()) as pool, pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(_FILL, stage.tenants[Metering.INLINE], MILLION, timeout=120)
        await connection.execute("ANALYZE api_keys")
