"""How do commands reach a Redis Cluster? Each goes to the server that holds its key's slot, over one connection there.

Who holds which slot is asked of the servers, when it is not known or seems to be wrong. A server that does not hold a
slot any more says who does: MOVED for good, ASK for keys that have left already while their slot moves.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, ResponseError, TryAgainError

from quota.pipe import Argument, RedisPipe
from quota.reservation import QuotaOutage

_KEY_AT = {"EVAL": 3, "EVALSHA": 3, "XGROUP": 2, "XINFO": 2, "OBJECT": 2}
_STREAMS_NAMED_LATE = ("XREAD", "XREADGROUP")
_KEYLESS = frozenset(
    {"CLUSTER", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "INFO", "KEYS", "PING", "SCAN", "SCRIPT", "TIME"}
)
_REFRESH_SECONDS = 0.1
# A healthy cluster passes a command on once, or twice while a slot moves; what is passed on more often is slowed down.
_QUICK_HOPS = 4
_HOP_SECONDS = 0.01


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


Connect = Callable[[Address], AbstractConnection]
"""Makes a connection to a server, not open yet."""

_Redirection = AskError | ClusterDownError | TryAgainError


class ClusterPipe:
    """Every call ends within `deadline` seconds, however often it is passed on.

    `start` are servers of the cluster to begin with. A call whose server is gone is an outage, because it may have
    taken effect; it makes the pipe look who took that server's place, so that a later call goes there.
    """

    one_server = False

    def __init__(self, connect: Connect, start: Sequence[Address], *, deadline: float) -> None:
        self._connect = connect
        self._start = tuple(start)
        self._deadline = deadline
        self._pipes: dict[Address, RedisPipe] = {}
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._suspected: Address | None = None
        self._why = "none was asked"
        self._refreshing: asyncio.Task[None] | None = None
        self._next_refresh = 0.0
        self._retiring: set[asyncio.Task[None]] = set()

    async def call(self, *command: Argument) -> Any:
        """See `Pipe.call`. Raises ValueError for a command without a key."""
        due = asyncio.get_running_loop().time() + self._deadline
        slot = slot_of(command)
        redirection: _Redirection | None = None
        if (owner := self._owners[slot]) is not None:
            try:
                return await self._send(owner, command)
            except (AskError, ClusterDownError, TryAgainError) as error:
                redirection = error
        try:
            async with asyncio.timeout_at(due):
                return await self._follow(command, slot, redirection)
        except TimeoutError as error:
            raise QuotaOutage(f"Redis could not be asked: no answer within {self._deadline:g} s") from error

    async def aclose(self) -> None:
        """Close all connections; what is in flight is an outage."""
        tasks = [*self._retiring, *([self._refreshing] if self._refreshing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pipes, self._pipes = self._pipes, {}
        await asyncio.gather(*(pipe.aclose() for pipe in pipes.values()))

    async def _follow(self, command: Sequence[Argument], slot: int, redirection: _Redirection | None) -> Any:
        """Send a command to whom its refusals name, until it is carried out or cancelled."""
        hops = 0
        while True:
            try:
                return await self._send_on(command, slot, redirection)
            except (AskError, ClusterDownError, TryAgainError) as error:
                redirection = error
            hops += 1
            if hops > _QUICK_HOPS:
                await asyncio.sleep(_HOP_SECONDS)

    async def _send_on(self, command: Sequence[Argument], slot: int, redirection: _Redirection | None) -> Any:
        before = self._owners[slot]
        if isinstance(redirection, MovedError):
            self._owners[slot] = Address(*redirection.node_addr)
            self._refresh_soon()
        elif isinstance(redirection, AskError):
            return await self._send(Address(*redirection.node_addr), command, asking=True)
        elif isinstance(redirection, TryAgainError):  # some of its keys have moved, and some have not yet
            await asyncio.sleep(_HOP_SECONDS)
        else:
            await self._refreshed()
        owner = self._owners[slot]
        if owner is None:
            raise QuotaOutage(f"Redis could not be asked: no server is known for slot {slot}; {self._why}")
        if owner == before and isinstance(redirection, ClusterDownError):
            raise QuotaOutage(f"Redis could not be asked: {redirection}") from redirection
        return await self._send(owner, command)

    async def _send(self, address: Address, command: Sequence[Argument], *, asking: bool = False) -> Any:
        pipe = self._pipe(address)
        try:
            return await (_allowed(pipe, command) if asking else pipe.call(*command))
        except AskError as error:
            # Redis leaves the host out when it does not know under which name it is known.
            error.node_addr = _address(error.host, error.port, told_by=address)
            raise
        except (QuotaOutage, ReadOnlyError):
            self._suspected = address
            self._refresh_soon()
            raise

    def _pipe(self, address: Address) -> RedisPipe:
        pipe = self._pipes.get(address)
        if pipe is None:
            pipe = self._pipes[address] = RedisPipe(lambda: self._connect(address), deadline=self._deadline)
        return pipe

    async def _refreshed(self) -> None:
        self._refresh_soon()
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    def _refresh_soon(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._refreshing is None and now >= self._next_refresh:
            self._next_refresh = now + _REFRESH_SECONDS
            self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            for address in self._candidates():
                try:
                    ranges = await self._pipe(address).call("CLUSTER", "SLOTS")
                except (QuotaOutage, ResponseError) as error:
                    self._why = str(error)
                    continue
                if ranges:  # a server that was reset knows of none
                    self._adopt(ranges, told_by=address)
                    return
        finally:
            self._refreshing = None

    def _candidates(self) -> Iterator[Address]:
        """Whom to ask who holds what: the suspected server last."""
        known = dict.fromkeys([*self._pipes, *self._start])
        yield from sorted(known, key=lambda address: address == self._suspected)

    def _adopt(self, ranges: Sequence[Any], *, told_by: Address) -> None:
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master, *_ in ranges:
            address = _address(master[0], master[1], told_by=told_by)
            owners[first : last + 1] = [address] * (last + 1 - first)
        self._owners, self._why = owners, "the cluster serves it nowhere"
        for address in set(self._pipes) - set(owners) - set(self._start):
            task = asyncio.create_task(self._retire(self._pipes.pop(address)))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, pipe: RedisPipe) -> None:
        try:
            await asyncio.sleep(self._deadline)  # for what is in flight
        finally:
            await pipe.aclose()


def slot_of(command: Sequence[Argument]) -> int:
    """The slot of a command's first key. Raises ValueError for a command without a key."""
    name = command[0]
    if name in _KEYLESS:
        raise ValueError(f"{name!r} names no key: which server of the cluster is meant?")
    at = command.index("STREAMS") + 1 if name in _STREAMS_NAMED_LATE else _KEY_AT.get(str(name), 1)
    key = command[at]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


async def _allowed(pipe: RedisPipe, command: Sequence[Argument]) -> Any:
    """The answer of a server that has part of a moving slot. ASKING holds for the next command of its connection."""
    allowed, answer = pipe.call("ASKING"), pipe.call(*command)
    await asyncio.gather(allowed, answer, return_exceptions=True)
    return answer.result()


def _address(host: bytes | str | None, port: int, *, told_by: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    return Address(told_by.host if name in {None, "", "?"} else str(name), int(port))
