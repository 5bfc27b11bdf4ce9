"""asyncio.BaseTransport, method by method, over every kind of stream transport and both loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import support
from contract import ALL, DUPLEX, WRITERS, attempt, opened
from support import BufferedRecorder, Env, Recorder, turns


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_is_what_it_says(run: Any, certs: Any, kind: str) -> None:
    """isinstance() holds, the class has __dict__ and weak references like any other's."""
    expected: dict[str, type] = {
        "read pipe": asyncio.ReadTransport,
        "write pipe": asyncio.WriteTransport,
    }

    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            assert isinstance(transport, asyncio.BaseTransport)
            assert isinstance(transport, expected.get(kind, asyncio.Transport))
            assert repr(transport).startswith("<")
            transport.note = 5
            assert transport.note == 5

    run(main)


@pytest.mark.parametrize(
    "method", ["is_closing", "close", "get_extra_info", "set_protocol", "get_protocol"]
)
def test_the_base_class_itself(method: str) -> None:
    """The abstract methods raise NotImplementedError; extra information is a dictionary's."""
    base = asyncio.BaseTransport({"key": "value"})
    if method == "get_extra_info":
        assert base.get_extra_info("key") == "value"
        assert base.get_extra_info("other") is None
        assert base.get_extra_info("other", 5) == 5
        return
    args = (asyncio.Protocol(),) if method == "set_protocol" else ()
    with pytest.raises(NotImplementedError):
        getattr(base, method)(*args)


def test_get_extra_info(certs: Any, kind: str) -> None:
    """What a kind knows, the default for what it does not, and positional or by keyword."""

    async def scenario(env: Env) -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            for name in ("socket", "sockname", "peername", "pipe", "sslcontext", "ssl_object"):
                env.log(name, transport.get_extra_info(name) is not None)
            for name in ("cipher", "compression", "peercert", "subprocess", "nothing of the kind"):
                env.log(name, transport.get_extra_info(name) is not None)
                env.log(name, transport.get_extra_info(name, "default") == "default")
            env.log(transport.get_extra_info(name="socket", default=None) is not None)
            attempt(env, "no name", transport.get_extra_info)
            attempt(env, "a name that is none", transport.get_extra_info, None)
            try:
                transport.get_extra_info([])
            except TypeError:
                env.log("a list is no name")
            transport.close()
            env.log("while closing", transport.get_extra_info("nothing", 7))

    # TypeError's text names the class.
    trace = support.compare(scenario_without_texts(scenario))
    assert ("nothing of the kind", True) in trace


def scenario_without_texts(scenario: Any) -> Any:
    """The same scenario, whose refusals are compared by their type alone."""

    async def shortened(env: Env) -> None:
        log = env.log

        def short(*entry: Any) -> None:
            log(*(entry[:3] if len(entry) > 3 and entry[1] == "raised" else entry))

        env.log = short  # type: ignore[method-assign]
        await scenario(env)

    return shortened


def test_extra_info_after_the_end(certs: Any) -> None:
    """Names stay known when the connection is lost; so do default values."""

    async def scenario(env: Env) -> None:
        for kind in DUPLEX:
            rec = Recorder()
            async with opened(kind, rec, certs) as (transport, _):
                peername = transport.get_extra_info("peername")
                transport.abort()
                await rec.until("connection_lost")
                await turns(3)
                env.log(kind, transport.get_extra_info("peername") == peername)
                env.log(kind, transport.get_extra_info("socket") is not None)
                env.log(kind, transport.get_extra_info("nothing", "default"))

    support.compare(scenario)


def test_close(certs: Any, kind: str) -> None:
    """close() tells connection_lost(None) later, once; calling it again does nothing."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, _):
            env.log("closing", transport.is_closing())
            attempt(env, "close", transport.close)
            env.log("closing", transport.is_closing(), "lost", rec.count("connection_lost"))
            attempt(env, "close again", transport.close)
            await rec.until("connection_lost")
            env.log("closing", transport.is_closing())
            attempt(env, "close after the end", transport.close)
            await turns(3)

    trace = support.compare(scenario)
    assert trace.count(("connection_lost", None)) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_close_sends_what_is_queued(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            data = bytes(range(256)) * 8192
            transport.write(data)
            transport.close()
            assert transport.is_closing()
            assert await peer.recv_to_end() == data
            await rec.until("connection_lost")
            assert rec.exc is None

    run(main)


def test_close_in_each_callback(certs: Any, kind: str) -> None:
    """From within connection_made and connection_lost too."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        rec.on["connection_made"] = lambda rec, transport: transport.close()
        rec.on["connection_lost"] = lambda rec, exc: rec.transport.close()
        async with opened(kind, rec, certs) as (transport, _):
            await rec.until("connection_lost")
            env.log(transport.is_closing())

    trace = support.compare(scenario)
    assert trace.count(("connection_lost", None)) == 1


def test_set_and_get_protocol(certs: Any, kind: str) -> None:
    """The next callback is the new protocol's, connection_lost too; the first hears no more."""

    async def scenario(env: Env) -> None:
        first, second = Recorder(env, "first"), Recorder(env, "second")
        async with opened(kind, first, certs) as (transport, peer):
            env.log(transport.get_protocol() is first)
            attempt(env, "set", transport.set_protocol, second)
            env.log(transport.get_protocol() is second)
            if kind != "write pipe":
                await peer.send(b"data")
                await second.until_received(4)
            transport.close()
            await second.until("connection_lost")
        env.log(first.names(), second.names())

    trace = support.compare(scenario)
    assert ("second", "connection_lost", None) in trace


def test_set_protocol_of_the_other_kind(run: Any, certs: Any) -> None:
    """A BufferedProtocol may follow a Protocol, and the other way round."""

    async def main() -> None:
        for kind in DUPLEX:
            first, second, third = Recorder(), BufferedRecorder(), Recorder()
            async with opened(kind, first, certs) as (transport, peer):
                await peer.send(b"first")
                await first.until_received(5)
                transport.set_protocol(second)
                await peer.send(b"second")
                await second.until_received(6)
                transport.set_protocol(third)
                await peer.send(b"third")
                await third.until_received(5)
                assert (first.received, second.received, third.received) == (
                    b"first",
                    b"second",
                    b"third",
                )

    run(main)


def test_set_protocol_in_connection_lost(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        first, second = Recorder(env, "first"), Recorder(env, "second")
        first.on["connection_lost"] = lambda rec, exc: rec.transport.set_protocol(second)
        async with opened(kind, first, certs) as (transport, _):
            transport.close()
            await first.until("connection_lost")
            await turns(2)
            env.log(second.names())
            transport.set_protocol(first)

    support.compare(scenario)


def test_wrong_arguments(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            for name in ("is_closing", "close", "get_protocol"):
                with pytest.raises(TypeError):
                    getattr(transport, name)(1)
                with pytest.raises(TypeError):
                    getattr(transport, name)(unknown=1)
            with pytest.raises(TypeError):
                transport.set_protocol()
            with pytest.raises(TypeError):
                transport.set_protocol(Recorder(), 1)
            with pytest.raises(TypeError):
                transport.get_extra_info("a", "b", "c")
            assert not transport.is_closing()

    run(main)
