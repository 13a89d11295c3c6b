"""Signatures of webhooks: those of the specification, and of nobody who has not the secret."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sidecar.webhook_signature import headers

# The example that the libraries of Standard Webhooks are tested with.
SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
ID, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_the_example_of_the_specification() -> None:
    assert headers(ID, _at(AT), BODY, [SECRET]) == [
        ("webhook-id", ID),
        ("webhook-timestamp", str(AT)),
        ("webhook-signature", SIGNATURE),
    ]


def test_two_secrets_make_two_signatures_the_newest_first() -> None:
    other = b"another secret, of 32 random byte"
    (_, _, (_, both)) = headers(ID, _at(AT), BODY, [other, SECRET])
    assert both.split(" ")[1] == SIGNATURE
    assert both.split(" ")[0] == dict(headers(ID, _at(AT), BODY, [other]))["webhook-signature"]


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=200), st.integers(0, 2**33))
def test_a_receiver_that_reckons_by_itself_comes_to_the_same(secret: bytes, body: bytes, at: int) -> None:
    found = dict(headers("id/completed", _at(at), body, [secret]))
    mac = hmac.new(secret, b"id/completed." + found["webhook-timestamp"].encode() + b"." + body, hashlib.sha256)
    assert found["webhook-signature"] == "v1," + base64.b64encode(mac.digest()).decode()
