"""How does a receiver know that a webhook is the gateway's, and fresh? Standard Webhooks: three signed headers.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hmac
from collections.abc import Sequence
from datetime import datetime

ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
_VERSION = "v1"


def headers(message_id: str, at: datetime, body: bytes, secrets: Sequence[bytes]) -> list[tuple[str, str]]:
    """The headers of one attempt at `at`, an aware time.

    The id is the same in all attempts, the time is not. With two secrets there are two signatures, and a receiver that
    knows either of them is served.
    """
    timestamp = str(int(at.timestamp()))
    content = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = " ".join(f"{_VERSION},{_signed(content, secret)}" for secret in secrets)
    return [(ID_HEADER, message_id), (TIMESTAMP_HEADER, timestamp), (SIGNATURE_HEADER, signatures)]


def _signed(content: bytes, secret: bytes) -> str:
    return base64.b64encode(hmac.digest(secret, content, "sha256")).decode()
