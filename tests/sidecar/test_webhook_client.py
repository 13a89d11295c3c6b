"""Every way in which an endpoint can disappoint, over real connections, and where the gateway does not go at all."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpcore
import pytest
import trustme

from sidecar.embedded.ports import free_port
from sidecar.public_network import PublicNetwork, Resolver
from sidecar.webhook_client import WebhookClient
from sidecar.webhook_retries import Answer
from tests.sidecar.embedded.processes import until
from tests.support.webhook_endpoint import Endpoint, listening, status

HEADERS = [("webhook-id", "1")]
BODY = b'{"subject":"r"}'
REDIRECT = status(302, "location: http://169.254.169.254/")
NOT_PUBLIC = "the host has an address that is not public"
NO_CONNECTION = "no connection"
HERE, PUBLIC = ["127.0.0.1"], "93.184.215.14"


class Names:
    """A name server whose answers a test chooses: each question the next one, the last again and again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, _: int, /) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextlib.asynccontextmanager
async def client(
    names: Names | None = None, *, allow_private: bool = True, tls: ssl.SSLContext | None = None, seconds: float = 20
) -> AsyncIterator[WebhookClient]:
    network = PublicNetwork(names or Names(HERE), allow_private=allow_private)
    async with WebhookClient(network, connections=4, tls=tls, deadline_seconds=seconds) as made:
        yield made


async def _post(endpoint: Endpoint, answer: bytes) -> Answer:
    endpoint.answers.append(answer)
    async with client() as post:
        return await post(endpoint.url, HEADERS, BODY)


async def test_it_is_posted_with_its_headers() -> None:
    async with listening() as endpoint, client() as post:
        assert (await post(f"{endpoint.url}?key=a%20b", HEADERS, BODY)).status == 204
        [got] = endpoint.got
    assert (got.path, got.body) == ("/in?key=a%20b", BODY)
    assert got.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert got.headers["host"] == f"localhost:{endpoint.port}"
    assert got.headers["webhook-id"] == "1"


async def test_a_connection_is_used_again() -> None:
    async with listening() as endpoint, client() as post:
        for _ in range(3):
            await post(endpoint.url, HEADERS, BODY)
        assert (len(endpoint.got), endpoint.connections) == (3, 1)


@pytest.mark.parametrize("code", [200, 204, 301, 400, 404, 410, 429, 500, 503])
async def test_whatever_the_status_it_is_told(code: int) -> None:
    async with listening() as endpoint:
        answer = await _post(endpoint, status(code, "Retry-After: 7"))
    assert answer == Answer(status=code, error=f"status {code}", retry_after="7")


async def test_no_redirect_is_followed() -> None:
    async with listening() as endpoint:
        assert (await _post(endpoint, REDIRECT)).status == 302
        assert endpoint.connections == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\n\r\n" + b"x" * 100_000])
async def test_of_a_long_answer_only_the_beginning_is_read(answer: bytes) -> None:
    async with listening() as endpoint:
        assert (await _post(endpoint, answer)).status == 200


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"", "the answer is no HTTP"), (b"SSH-2.0-OpenSSH\r\n\r\n", "the answer is no HTTP")],
    ids=["closed", "no http"],
)
async def test_what_is_no_answer_is_said_in_our_words(answer: bytes, error: str) -> None:
    async with listening() as endpoint:
        found = await _post(endpoint, answer)
    assert found == Answer(error=error)


async def test_an_endpoint_that_hangs_is_left_in_time() -> None:
    async with listening() as endpoint, client(seconds=0.3) as post:
        endpoint.hanging = True
        assert await post(endpoint.url, HEADERS, BODY) == Answer(error="no answer in time")


async def test_nobody_at_the_port() -> None:
    async with client() as post:
        assert await post(f"http://localhost:{free_port()}/in", HEADERS, BODY) == Answer(error=NO_CONNECTION)


@pytest.mark.parametrize("url", ["ftp://localhost/in", "http://local host/in"])
async def test_a_url_that_cannot_be_used(url: str) -> None:
    async with client() as post:
        found = await post(url, HEADERS, BODY)
    assert found.status is None
    assert found.error


@pytest.mark.parametrize(
    "addresses",
    [
        *(["127.0.0.1"], ["::1"], ["10.0.0.5"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["fd00::1"]),
        # One that is public beside it makes it no better.
        [PUBLIC, "127.0.0.1"],
    ],
)
async def test_a_name_that_leads_to_a_private_address_is_not_followed(addresses: list[str]) -> None:
    names = Names(addresses)
    async with listening() as endpoint, client(names, allow_private=False) as post:
        found = await post(f"http://hooks.example:{endpoint.port}/in", HEADERS, BODY)
        assert endpoint.connections == 0
    assert found == Answer(error=NOT_PUBLIC)
    assert names.asked == ["hooks.example"]
    assert not [address for address in addresses if address in found.error]


async def test_an_address_in_the_url_is_checked_as_well() -> None:
    async with listening() as endpoint, contextlib.AsyncExitStack() as stack:
        resolver = stack.enter_context(contextlib.closing(Resolver(threads=1)))
        network = PublicNetwork(resolver)
        post = await stack.enter_async_context(WebhookClient(network, connections=1))
        for host in ("127.0.0.1", "127.1", "2130706433", "localhost", "[::1]", "[::ffff:127.0.0.1]"):
            found = await post(f"http://{host}:{endpoint.port}/in", HEADERS, BODY)
            assert found.error in {NOT_PUBLIC, NO_CONNECTION}, host
        assert endpoint.connections == 0


class _Rerouted(httpcore.AnyIOBackend):
    """The internet: its addresses are all on this machine. Keeps which were connected to."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return await super().connect_tcp(HERE[0], *args, **options)


async def test_a_name_is_asked_for_once_and_what_was_checked_is_what_is_connected_to() -> None:
    # The second answer is what a rebinding name server would give to whoever asks again.
    names, internet = Names([PUBLIC], HERE), _Rerouted()
    network = PublicNetwork(names, network=internet)
    async with listening() as endpoint, WebhookClient(network, connections=1) as post:
        endpoint.answers.append(status(204, "connection: close"))
        assert (await post(f"http://hooks.example:{endpoint.port}/in", HEADERS, BODY)).status == 204
        assert (names.asked, internet.connected) == (["hooks.example"], [PUBLIC])
        again = await post(f"http://hooks.example:{endpoint.port}/in", HEADERS, BODY)
        assert (again.error, internet.connected) == (NOT_PUBLIC, [PUBLIC])


async def test_of_several_addresses_the_next_is_tried() -> None:
    async with listening() as endpoint, client(Names(["127.0.0.2", "127.0.0.1"])) as post:
        assert (await post(endpoint.url, HEADERS, BODY)).status == 204


@pytest.mark.parametrize("host", ["nothing.invalid", "a..b", f"{'a' * 64}.example"])
async def test_a_name_that_leads_nowhere(host: str) -> None:
    with contextlib.closing(Resolver(threads=1)) as resolver:
        async with WebhookClient(PublicNetwork(resolver), connections=1, deadline_seconds=20) as post:
            found = await post(f"https://{host}/in", HEADERS, BODY)
    assert found.error in {NO_CONNECTION, "no answer in time"}


def _served_by(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_the_certificate_is_that_of_the_name_not_of_the_address() -> None:
    authority = trustme.CA()
    async with listening(_served_by(authority, "hooks.example")) as endpoint:
        async with client(tls=_trusting(authority)) as post:
            assert (await post(f"https://hooks.example:{endpoint.port}/in", HEADERS, BODY)).status == 204
            assert endpoint.got[0].headers["host"] == f"hooks.example:{endpoint.port}"
            other = await post(f"https://other.example:{endpoint.port}/in", HEADERS, BODY)
            assert "certificate is not valid" in other.error
        async with client() as post:
            stranger = await post(f"https://hooks.example:{endpoint.port}/in", HEADERS, BODY)
            assert "certificate is not valid" in stranger.error
        assert len(endpoint.got) == 1


async def test_cancelled_in_the_middle_it_leaves_nothing_behind() -> None:
    async with listening() as endpoint, client() as post:
        endpoint.hanging = True
        posting = [asyncio.create_task(post(endpoint.url, HEADERS, BODY)) for _ in range(4)]
        await until(lambda: endpoint.at_once == len(posting))
        for task in posting:
            task.cancel()
        await asyncio.gather(*posting, return_exceptions=True)
        endpoint.hanging = False
        assert (await post(endpoint.url, HEADERS, BODY)).status == 204
