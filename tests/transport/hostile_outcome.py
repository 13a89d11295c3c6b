"""What did an attack come to: the end of the connection, of a stream, or nothing?

The RFC lets an endpoint end a connection for any fault, and use a generic code for any other (sections 5.4 and 5.4.1).
Cases hold a server to more: to the class of error and the code that the text names, because a stream's fault must not
end the streams of others. Where the text leaves a choice, a case lists every answer that it allows.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.transport.hostile import Client, connected, greeted
from tests.transport.hostile_server import Attacked
from tests.transport.hostile_wire import Code

# Larger than those that attacks use.
GOOD_STREAM = 1_000_001


@dataclass(frozen=True, slots=True)
class Closed:
    """GOAWAY with this code, or none, and then the end of the connection."""

    code: Code | None


@dataclass(frozen=True, slots=True)
class Reset:
    """RST_STREAM, of this stream and no other; the connection goes on."""

    code: Code
    stream_id: int = 1


@dataclass(frozen=True, slots=True)
class Passed:
    """Nothing was ended; the connection goes on."""


Outcome = Closed | Reset | Passed
Attack = bytes | Callable[[Client], Awaitable[bytes]]
"""What is sent; or a coroutine that begins the attack and returns the bytes which decide it."""


@dataclass(frozen=True, slots=True)
class Case:
    """An attack, and what it may come to."""

    attack: Attack
    allowed: frozenset[Outcome]


def case(attack: Attack, *allowed: Outcome) -> Case:
    return Case(attack, frozenset(allowed))


async def outcome(victim: Attacked, client: Client, attack: Attack) -> Outcome:
    """Attack; where the connection goes on, that is proven by a call."""
    known = len(victim.errors)
    sent = attack if isinstance(attack, bytes) else await attack(client)
    if not await client.echo(sent):
        return Closed(Code(client.goaway.error_code) if client.goaway else None)
    assert client.goaway is None, "a GOAWAY of an error, and no end of the connection"
    resets = {number: reply.code for number, reply in client.streams.items() if reply.code is not None}
    if resets:
        await victim.idle()
    await client.is_good(GOOD_STREAM)
    assert len(victim.errors) == known, "a client's fault with a stream is none to observe"
    if not resets:
        return Passed()
    ((number, code),) = resets.items()
    return Reset(code, number)


async def holds(victim: Attacked, found: Case) -> None:
    """The case holds on a connection that has been greeted."""
    async with greeted(victim.path) as client:
        assert await outcome(victim, client, found.attack) in found.allowed, client


async def holds_from_the_start(victim: Attacked, found: Case) -> None:
    """The case holds where nothing has been said."""
    async with connected(victim.path) as client:
        assert await outcome(victim, client, found.attack) in found.allowed, client
