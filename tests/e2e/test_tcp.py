"""Does the gateway work the same when Envoy reaches the sidecar over TCP, in plaintext or with certificates?"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from authz.principal import Metering
from sidecar.embedded.ports import free_port
from tests.support.gateway import Gateway, running, until

HOST = "127.0.0.1"
WORKERS = 2
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
STEERING = {"x-demo-usage": "100,50", "x-demo-events": "5", "x-demo-interval-ms": "1"}
EXACT = ("completed", "exact", 100, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Files of one side's certificate and key, and of the CA that it believes."""

    certificate: Path
    key: Path
    peers_ca: Path


def _ports(count: int) -> int:
    """The first of so many ports in a row that nobody uses at this moment."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind((HOST, port))
            return first


def _on_tcp(first: int, envoy: Pair | None = None) -> Callable[[str], str]:
    """What is changed in Envoy's configuration: the addresses, and how it speaks there."""

    def change(text: str) -> str:
        config = yaml.safe_load(text)
        workers = [_endpoint(first + index) for index in range(WORKERS)]
        recorder = [_endpoint(first + WORKERS)]
        for cluster in config["static_resources"]["clusters"]:
            if cluster["name"] not in {"sidecar", "access_log"}:
                continue
            groups = [workers] if cluster["name"] == "sidecar" else [recorder, workers]
            for group, endpoints in zip(cluster["load_assignment"]["endpoints"], groups, strict=True):
                group["lb_endpoints"] = endpoints
            if envoy is not None:
                cluster["transport_socket"] = _over_tls(envoy)
        return str(yaml.safe_dump(config, sort_keys=False))

    return change


def _endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": HOST, "port_value": port}}}}


def _over_tls(envoy: Pair) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(envoy.certificate)},
                        "private_key": {"filename": str(envoy.key)},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": str(envoy.peers_ca)},
                    "match_typed_subject_alt_names": [{"san_type": "IP_ADDRESS", "matcher": {"exact": HOST}}],
                },
            },
        },
    }


def _certificates(folder: Path) -> tuple[Pair, Pair]:
    """The sidecar's and Envoy's, each of a CA of its own."""
    made = []
    for name, other in ((HOST, "envoy.test"), ("envoy.test", HOST)):
        ca = trustme.CA()
        issued = ca.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        ca.cert_pem.write_to_path(folder / f"{name}-ca.pem")
        made.append(
            Pair(certificate=folder / f"{name}.pem", key=folder / f"{name}.key", peers_ca=folder / f"{other}-ca.pem")
        )
    sidecar, envoy = made
    return sidecar, envoy


@pytest.fixture(scope="module", params=["plaintext", "certificates"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """On the server that the tests run on; over TLS on the one that has it."""
    first = _ports(WORKERS + 1)
    env = {"GATEWAY_LISTEN": f"{HOST}:{first}"}
    envoy = None
    if request.param == "certificates":
        sidecar, envoy = _certificates(tmp_path_factory.mktemp("certificates"))
        env |= {
            "GATEWAY_TRANSPORT": "grpcio",
            "GATEWAY_LISTEN_CERTIFICATE": str(sidecar.certificate),
            "GATEWAY_LISTEN_KEY": str(sidecar.key),
            "GATEWAY_LISTEN_CLIENT_CA": str(sidecar.peers_ca),
        }
    with running(workers=WORKERS, env=env, change_envoy=_on_tcp(first, envoy)) as gateway:
        yield gateway


@pytest.mark.parametrize("metering", list(Metering))
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_request_passes_and_is_settled_exactly(gateway: Gateway, *, metering: Metering, stream: bool) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=STEERING)
    assert answer.status_code == 200, answer.text
    assert answer.text.count("data: ") == (6 if stream else 0)
    ending = (await gateway.row(answer.headers["x-request-id"])).ending
    assert (ending.state, ending.usage_source, ending.input_tokens, ending.output_tokens) == EXACT
    # By its end, not by the sweep: the recorder heard it.
    assert ending.cause == "finished"
    assert len(await gateway.rows(tenant)) == 1
    assert await gateway.slots_held(tenant) == 0


async def test_envoy_finds_every_process_healthy_and_logs_at_the_recorder(gateway: Gateway) -> None:
    async def all_workers() -> bool:
        return await gateway.healthy_workers() == WORKERS

    await until(all_workers)
    [recorder, *others] = await gateway._hosts("access_log", "health_flags")
    assert recorder.endswith("::healthy"), (recorder, others)
    where = recorder.split("::")[1]

    async def both_threads() -> bool:
        return await gateway.access_log_streams_at(where) == 2

    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        # A thread of Envoy opens its stream with its first entry.
        async def spoken() -> bool:
            await client.post("/v1/chat/completions", json=CHAT, headers={"connection": "close"})
            return await both_threads()

        await until(spoken)


async def test_nothing_answers_for_envoy_at_the_unix_sockets(gateway: Gateway) -> None:
    over_tls = "GATEWAY_LISTEN_KEY" in gateway.env
    found = {path.name for path in gateway.socket_dir.iterdir()}
    # Over TLS each worker tells the supervisor its health there.
    assert found == {"control.sock", *({"worker-0.sock", "worker-1.sock"} if over_tls else set())}
