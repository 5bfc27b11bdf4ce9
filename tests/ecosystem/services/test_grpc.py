"""grpc.aio on a loop that is not asyncio's own.

gRPC's core has threads of its own. Its completion queue writes a byte into a socket pair for every
event, and each loop that uses grpc.aio watches the other end with add_reader(): so much, and
call_soon_threadsafe(), is all that it asks of a loop. The messages here are plain bytes, so that
nothing has to be generated.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from loops import run_on, until


class Service:
    """What the server does; remembers how calls ended and on which loops they ran."""

    def __init__(self) -> None:
        self.waiting = 0
        self.waited = 0
        self.cancelled = 0
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }
        return grpc.method_handlers_generic_handler("Test", handlers)

    async def echo(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.loops.add(asyncio.get_running_loop())
        if request == b"refused":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked for")
        return request

    async def count(
        self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        for i in range(int(request)):
            yield b"%d" % i

    async def sum(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes:
        return b"%d" % sum([int(request) async for request in requests])

    async def chat(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"re: " + request

    async def wait(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.waiting += 1
        try:
            await asyncio.sleep(float(request))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.waited += 1
        return b"waited"


@asynccontextmanager
async def served(
    service: Service, authority: trustme.CA | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve SERVICE, and give a channel to it."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    if authority is None:
        port = server.add_insecure_port("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(authority))
        roots = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        channel = grpc.aio.secure_channel(f"localhost:{port}", roots)
    await server.start()
    try:
        async with channel:
            yield channel
    finally:
        await server.stop(None)


def server_credentials(authority: trustme.CA) -> grpc.ServerCredentials:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair])


async def test_unary() -> None:
    service = Service()
    async with served(service) as channel:
        echo = channel.unary_unary("/Test/Echo")
        for size in (0, 1, 1000, 3_000_000):
            assert await echo(b"x" * size) == b"x" * size
        requests = [b"%d" % i for i in range(500)]
        assert await asyncio.gather(*(echo(request) for request in requests)) == requests
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(b"refused")
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "as asked for"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/Test/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert service.loops == {asyncio.get_running_loop()}


async def test_streams_both_ways() -> None:
    async with served(Service()) as channel:
        counted = [int(answer) async for answer in channel.unary_stream("/Test/Count")(b"2000")]
        assert counted == list(range(2000))

        async def numbers() -> AsyncIterator[bytes]:
            for i in range(2000):
                yield b"%d" % i

        assert await channel.stream_unary("/Test/Sum")(numbers()) == b"%d" % sum(range(2000))
        chat = channel.stream_stream("/Test/Chat")()
        for i in range(200):
            await chat.write(b"%d" % i)
            assert await chat.read() == b"re: %d" % i
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert await chat.code() is grpc.StatusCode.OK


async def test_cancelled_call() -> None:
    """By its task, by itself, by its deadline: the server's side is cancelled each time."""
    service = Service()
    async with served(service) as channel:
        wait, echo = channel.unary_unary("/Test/Wait"), channel.unary_unary("/Test/Echo")

        async def called(times: int) -> None:
            async def arrived() -> bool:
                return service.waiting == times

            await until(arrived)

        async def cancelled(times: int) -> None:
            async def seen() -> bool:
                return service.cancelled == times

            await until(seen)

        async def call() -> bytes:
            answer: bytes = await wait(b"3600")
            return answer

        task = asyncio.create_task(call())
        await called(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await cancelled(1)
        itself = wait(b"3600")
        await called(2)
        assert itself.cancel()
        with pytest.raises(asyncio.CancelledError):
            await itself
        assert await itself.code() is grpc.StatusCode.CANCELLED
        await cancelled(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait(b"3600", timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await cancelled(3)
        assert await echo(b"as before") == b"as before"


async def test_cancelled_at_any_time() -> None:
    async with served(Service()) as channel:
        echo = channel.unary_unary("/Test/Echo")
        for i in range(100):
            call = echo(b"%d" % i)
            for _ in range(i % 10):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert await echo(b"after %d" % i) == b"after %d" % i


async def test_tls(authority: trustme.CA) -> None:
    async with served(Service(), authority) as channel:
        echo = channel.unary_unary("/Test/Echo")
        assert await echo(b"secret" * 100_000) == b"secret" * 100_000
        assert [await echo(b"%d" % i) for i in range(50)] == [b"%d" % i for i in range(50)]


async def test_tls_refuses_a_strangers_certificate(authority: trustme.CA) -> None:
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(trustme.CA()))
    await server.start()
    roots = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", roots) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/Test/Echo")(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_graceful_stop() -> None:
    """Calls in flight are carried out, and new ones refused.

    Answers are sent to all of them, but not all need arrive: on any loop, gRPC's core may reset the
    connection right behind the last one.
    """
    service = Service()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        wait = channel.unary_unary("/Test/Wait")
        calls = [asyncio.ensure_future(wait(b"0.5")) for _ in range(20)]

        async def all_wait() -> bool:
            return service.waiting == 20

        await until(all_wait)
        await server.stop(grace=30)
        assert (service.waited, service.cancelled) == (20, 0)
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is grpc.StatusCode.UNAVAILABLE
            else:
                assert answer == b"waited"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait(b"0")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_reconnects_after_the_server_is_gone() -> None:
    first = grpc.aio.server()
    first.add_generic_rpc_handlers((Service().handler(),))
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/Test/Echo")
        assert await echo(b"1") == b"1"
        await first.stop(None)
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(b"2")
        second = grpc.aio.server()
        second.add_generic_rpc_handlers((Service().handler(),))
        second.add_insecure_port(f"127.0.0.1:{port}")
        await second.start()
        assert await echo(b"3", wait_for_ready=True) == b"3"
        await second.stop(None)


def test_a_loop_in_each_of_several_threads(loop_name: str) -> None:
    """Threads, each with a loop, a server and a channel of its own, at the same time."""
    together = threading.Barrier(4)
    answers: dict[int, list[bytes]] = {}

    async def use(number: int) -> list[bytes]:
        async with served(Service()) as channel:
            echo = channel.unary_unary("/Test/Echo")
            await asyncio.to_thread(together.wait)
            requests = [b"%d of %d" % (i, number) for i in range(200)]
            return [await echo(request) for request in requests]

    def thread(number: int) -> None:
        answers[number] = run_on(loop_name, use(number))

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert answers == {n: [b"%d of %d" % (i, n) for i in range(200)] for n in range(4)}


@pytest.mark.filterwarnings("ignore:coroutine 'UnaryUnaryCall._invoke' was never awaited")
def test_a_channel_stays_with_its_loop(loop_name: str) -> None:
    """What grpc.aio supports on no loop: a channel that was made on another one."""

    async def make() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel("127.0.0.1:1")

    async def use(channel: grpc.aio.Channel) -> None:
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            await channel.unary_unary("/Test/Echo")(b"")

    run_on(loop_name, use(run_on(loop_name, make())))
