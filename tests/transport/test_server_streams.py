"""The contract of the seam, for streams: every message passes, in the order of the writes, whoever writes."""

import asyncio

import grpc
import pytest

from tests.transport.servers import MEGABYTE, Serving, echo_all, service
from tests.transport.waiting import until
from transport.service import Stream

LARGE = b"x" * (3 * MEGABYTE)


async def test_a_stream_passes_messages_in_order_and_ends_when_the_client_is_done(server: Serving) -> None:
    messages = [b"", b"a", LARGE, b"b"]
    async with server() as served:
        call = served.client.stream()
        for message in messages:
            assert await call.exchange(message) == message
        await call.end()
        assert await call.receive() is None
        assert await call.code() is grpc.StatusCode.OK
    assert served.errors == []


async def test_messages_that_come_at_once_are_read_one_by_one(server: Serving) -> None:
    messages = [str(number).encode() * (number % 7) for number in range(2000)]
    async with server() as served:
        call = served.client.stream()
        for message in messages:
            await call.send(message)
        await call.end()
        assert await call.receive_all() == messages


async def test_a_client_that_is_done_is_read_as_none_however_often(server: Serving) -> None:
    ends: list[bytes | None] = []

    async def twice(stream: Stream) -> None:
        ends.extend([await stream.read(), await stream.read(), await stream.read()])

    async with server(service(stream=twice)) as served:
        call = served.client.stream()
        await call.send(b"x")
        await call.end()
        assert await call.code() is grpc.StatusCode.OK
    assert ends == [b"x", None, None]


async def test_a_client_that_is_done_is_still_answered(server: Serving) -> None:
    async def afterwards(stream: Stream) -> None:
        await echo_all(stream)
        stream.write(b"after")
        await asyncio.sleep(0)
        stream.write(LARGE)

    async with server(service(stream=afterwards)) as served:
        call = served.client.stream()
        await call.send(b"x")
        await call.end()
        assert await call.receive_all() == [b"x", b"after", LARGE]


async def test_several_answers_to_one_message_leave_in_order(server: Serving) -> None:
    async def thrice(stream: Stream) -> None:
        while (message := await stream.read()) is not None:
            for number in range(3):
                stream.write(message + str(number).encode())

    async with server(service(stream=thrice)) as served:
        call = served.client.stream()
        for name in (b"a", b"b"):
            await call.send(name)
            assert [await call.receive() for _ in range(3)] == [name + b"0", name + b"1", name + b"2"]
        await call.end()
        assert await call.receive() is None


async def test_a_handler_may_speak_first(server: Serving) -> None:
    async def greeting(stream: Stream) -> None:
        stream.write(b"welcome")
        await echo_all(stream)

    async with server(service(stream=greeting)) as served:
        call = served.client.stream()
        assert await call.receive() == b"welcome"
        assert await call.exchange(b"x") == b"x"


async def test_what_is_written_last_is_sent_though_the_handler_reads_no_more(server: Serving) -> None:
    async def last_words(stream: Stream) -> None:
        await stream.read()
        stream.write(LARGE)
        stream.write(b"last")

    async with server(service(stream=last_words)) as served:
        call = served.client.stream()
        await call.send(b"go")
        assert await call.receive_all() == [LARGE, b"last"]
        assert await call.code() is grpc.StatusCode.OK


async def test_a_handler_may_end_at_once_without_a_word(server: Serving) -> None:
    async def silent(_: Stream) -> None:
        return

    async with server(service(stream=silent)) as served:
        call = served.client.stream()
        assert await call.receive() is None
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("count", [1, 2, 20])
async def test_what_another_task_writes_while_the_handler_reads_is_sent_at_once(server: Serving, count: int) -> None:
    streams: list[Stream] = []

    async def listening(stream: Stream) -> None:
        streams.append(stream)
        await echo_all(stream)

    async with server(service(stream=listening)) as served:
        call = served.client.stream()
        assert await call.exchange(b"open") == b"open"
        for number in range(count):
            streams[0].write(str(number).encode())
        assert [await call.receive() for _ in range(count)] == [str(number).encode() for number in range(count)]
        assert await call.exchange(b"still") == b"still"
        await call.end()
        assert await call.receive() is None
    assert served.errors == []


async def test_several_tasks_write_without_a_lock_and_all_leaves_in_the_order_of_the_writes(server: Serving) -> None:
    written: list[bytes] = []

    async def many(stream: Stream) -> None:
        async def one(name: int) -> None:
            for number in range(50):
                message = f"{name} {number} ".encode() * (1 + 40 * (number % 9))
                written.append(message)
                stream.write(message)
                for _ in range((name + number) % 3):
                    await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            for name in range(10):
                tasks.create_task(one(name))
            while await stream.read() is not None:
                pass

    async with server(service(stream=many)) as served:
        call = served.client.stream()
        await call.send(b"x")
        await call.end()
        assert await call.receive_all() == written
        assert len(written) == 500


async def test_a_task_that_writes_after_the_end_harms_nobody(server: Serving) -> None:
    streams: list[Stream] = []

    async def listening(stream: Stream) -> None:
        streams.append(stream)
        await echo_all(stream)

    async with server(service(stream=listening)) as served:
        done, left = served.client.stream(), served.client.stream()
        for call in (done, left):
            assert await call.exchange(b"x") == b"x"
        await done.end()
        assert await done.code() is grpc.StatusCode.OK
        left.cancel()
        for _ in range(3):
            for stream in streams:
                stream.write(b"late")
            assert await served.client.unary(b"x") == b"x"
    assert served.errors == []


async def test_a_handler_may_read_and_write_in_tasks_of_its_own(server: Serving) -> None:
    async def apart(stream: Stream) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def reading() -> None:
            while (message := await stream.read()) is not None:
                queue.put_nowait(message)
            queue.put_nowait(None)

        async def writing() -> None:
            while (message := await queue.get()) is not None:
                stream.write(message)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reading())
            tasks.create_task(writing())

    async with server(service(stream=apart)) as served:
        call = served.client.stream()
        for number in range(20):
            assert await call.exchange(str(number).encode()) == str(number).encode()
        await call.end()
        assert await call.receive() is None
        assert await call.code() is grpc.StatusCode.OK


async def test_a_read_that_is_given_up_does_not_keep_a_handler_from_writing(server: Serving) -> None:
    """As the health service does, whose watchers are silent."""
    change = asyncio.Event()
    waits = asyncio.Event()

    async def watching(stream: Stream) -> None:
        await stream.read()
        stream.write(b"before")
        reading = asyncio.ensure_future(stream.read())
        waits.set()
        await change.wait()
        reading.cancel()
        stream.write(b"after")

    async with server(service(stream=watching)) as served:
        call = served.client.stream()
        assert await call.exchange(b"watch") == b"before"
        await until(waits.is_set, served.client)
        change.set()
        assert await call.receive_all() == [b"after"]
        assert await call.code() is grpc.StatusCode.OK
