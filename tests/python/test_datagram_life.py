"""What callbacks may do to a datagram transport, and how one ends: in batches, paused, exchanged,
interrupted, closed, dropped, collected, forked."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import time
import warnings
import weakref
from typing import Any

import pytest
import support
from datagrams import (
    DatagramRecorder,
    Echo,
    abstract_name,
    address_of,
    endpoint,
    fill,
    narrow_pair,
    plain_socket,
)
from parity import logged, plain, reported
from support import Env, Recorder, eventually, turns
from thief import fd_thief


def send_batch(transport: Any, *datagrams: bytes) -> None:
    """Put several datagrams into the transport's queue before the loop looks at it."""
    with plain_socket() as peer:
        for datagram in datagrams:
            peer.sendto(datagram, address_of(transport))


# --------------------------------------------------------------------------- within a batch


@pytest.mark.parametrize("how", ["close", "abort"])
def test_nothing_comes_after_the_end(how: str) -> None:
    """After close() or abort() nothing further of a batch is delivered."""

    async def scenario(env: Env) -> None:
        def ends(recorder: Any, data: bytes) -> None:
            if data == b"2":
                getattr(recorder.transport, how)()

        recorder = DatagramRecorder(env, on={"datagram_received": ends})
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1", b"2", b"3", b"4")
            await recorder.until("connection_lost")
            await turns(3)

    assert support.compare(scenario)[:-1] == [
        ("connection_made", "<transport>"),
        ("datagram_received", b"1"),
        ("datagram_received", b"2"),
        ("connection_lost", None),
    ]


def test_pausing_within_a_batch() -> None:
    """zuv#26: pause_reading() on datagrams. What was read already waits for the resume."""

    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(
            env, on={"datagram_received": lambda rec, data: rec.transport.pause_reading()}
        )
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1", b"2", b"3")
            for number in range(1, 4):
                await recorder.until("datagram_received", number)
                await turns(5)
                env.log("reading", transport.is_reading(), recorder.datagrams)
                if number == 2:
                    send_batch(transport, b"4")
                transport.resume_reading()
            await recorder.until("datagram_received", 4)

    support.compare(scenario)


def test_closing_while_something_waits_for_a_resume() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(
            env, on={"datagram_received": lambda rec, data: rec.transport.pause_reading()}
        )
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1", b"2", b"3")
            await recorder.until("datagram_received")
            transport.close()
            transport.resume_reading()
            await turns(5)

    support.compare(scenario)


def test_paused_it_is_quiet(run: Any) -> None:
    """A paused endpoint with something to read, or an error to hear, does not spin."""

    async def main() -> None:
        peer = plain_socket()
        async with endpoint(remote_addr=peer.getsockname()) as (transport, recorder):
            peer.sendto(b"x", address_of(transport))
            transport.pause_reading()
            transport.pause_reading()
            peer.close()
            transport.sendto(b"refused")
            await support.assert_idle()
            assert recorder.names() == ["connection_made"]
            transport.resume_reading()
            await recorder.until("datagram_received")
            assert recorder.count("error_received") == 1

    run(main)


def test_pausing_before_the_first_read() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(
            env, on={"connection_made": lambda rec, transport: transport.pause_reading()}
        )
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"x")
            await turns(5)
            env.log(transport.is_reading())
            transport.resume_reading()
            await recorder.until("datagram_received")

    support.compare(scenario)


def test_another_protocol_within_a_batch() -> None:
    async def scenario(env: Env) -> None:
        second = DatagramRecorder(env, "second")
        first = DatagramRecorder(
            env,
            "first",
            on={"datagram_received": lambda rec, data: rec.transport.set_protocol(second)},
        )
        async with endpoint(first) as (transport, _):
            send_batch(transport, b"1", b"2", b"3")
            await second.until("datagram_received", 2)
            env.log(transport.get_protocol() is second)
            transport.close()
            await turns(2)

    support.compare(scenario)


def test_answers_from_within_keep_their_order(run: Any) -> None:
    async def main() -> None:
        async with endpoint(Echo()) as (transport, _):
            with plain_socket() as peer:
                for number in range(50):
                    peer.sendto(b"%d" % number, address_of(transport))
                answers = []
                while len(answers) < 50:
                    await eventually(lambda: support.readable(peer))
                    answers.append(peer.recv(10))
                assert answers == [b"%d" % number for number in range(50)]

    run(main)


def test_an_exception_costs_nothing_but_its_datagram() -> None:
    """It goes to the exception handler, under the words asyncio has for it; the transport lives."""

    async def scenario(env: Env) -> None:
        def fails(_: Any, data: bytes) -> None:
            if data == b"2":
                raise ZeroDivisionError("in datagram_received")

        recorder = DatagramRecorder(env, on={"datagram_received": fails})
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1", b"2", b"3")
            await recorder.until("datagram_received", 3)
            env.log("closing", transport.is_closing())

    trace = support.compare(scenario)
    assert any(entry[:2] == ("exception handler", "Exception in callback …") for entry in trace)


def test_the_report_names_the_callback(run: Any) -> None:
    async def main(env: Env) -> None:
        def fails(_: Any, data: bytes) -> None:
            raise ZeroDivisionError

        recorder = DatagramRecorder(on={"datagram_received": fails})
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1")
            await recorder.until("datagram_received")
            await turns(1)
        [context] = env.take_contexts()
        # And no line of cpploop's, which has nothing to do with it.
        assert context["message"].endswith("DatagramTransport._read_ready()"), context["message"]
        assert isinstance(context["handle"], asyncio.Handle)

    run(main)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_leave_the_loop_and_the_rest_comes_later(
    loop_factory: support.LoopFactory, error: Any
) -> None:
    loop = loop_factory()

    def interrupts(recorder: Any, data: bytes) -> None:
        if data == b"1":
            raise error("stop")

    recorder = DatagramRecorder(on={"datagram_received": interrupts})
    transport, _ = loop.run_until_complete(
        loop.create_datagram_endpoint(lambda: recorder, local_addr=("127.0.0.1", 0))
    )
    send_batch(transport, b"1", b"2", b"3")
    with pytest.raises(error):
        loop.run_until_complete(asyncio.sleep(5))
    assert recorder.datagrams == [b"1"]
    loop.run_until_complete(recorder.until("datagram_received", 3))
    assert recorder.datagrams == [b"1", b"2", b"3"]
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_stopping_within_a_batch(loop_factory: support.LoopFactory) -> None:
    """After stop() the rest of what was received waits for the next run, in order."""
    loop = loop_factory()
    recorder = DatagramRecorder(
        on={"datagram_received": lambda rec, data: loop.stop() if data == b"1" else None}
    )
    transport, _ = loop.run_until_complete(
        loop.create_datagram_endpoint(lambda: recorder, local_addr=("127.0.0.1", 0))
    )
    send_batch(transport, b"1", b"2", b"3")
    loop.run_forever()
    assert recorder.datagrams == [b"1"]
    loop.run_until_complete(recorder.until("datagram_received", 3))
    assert recorder.datagrams == [b"1", b"2", b"3"]
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_loop_closed_over_an_interrupted_batch(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    recorder = DatagramRecorder(on={"datagram_received": lambda rec, data: loop.stop()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        transport, _ = loop.run_until_complete(
            loop.create_datagram_endpoint(lambda: recorder, local_addr=("127.0.0.1", 0))
        )
        send_batch(transport, b"1", b"2", b"3")
        loop.run_forever()
        loop.close()
        alive = weakref.ref(transport)
        recorder.transport = None
        del transport
        gc.collect()
        assert alive() is None


def test_callbacks_by_name_are_looked_up_once_per_protocol(run: Any, loop_name: str) -> None:
    support.needs_cpploop(loop_name, "it looks datagram_received up for each datagram")
    looked_up = []

    class Watched(DatagramRecorder):
        def __getattribute__(self, name: str) -> Any:
            if name == "datagram_received":
                looked_up.append(name)
            return super().__getattribute__(name)

    async def main() -> None:
        recorder = Watched()
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, b"1", b"2", b"3")
            await recorder.until("datagram_received", 3)
            assert len(looked_up) == 1
            transport.set_protocol(recorder)
            send_batch(transport, b"4")
            await recorder.until("datagram_received", 4)
            assert len(looked_up) == 2

    run(main)


def test_a_protocol_without_the_method() -> None:
    async def scenario(env: Env) -> None:
        class Deaf(asyncio.BaseProtocol):
            pass

        async with endpoint(Deaf()) as (transport, _):
            send_batch(transport, b"1")
            await turns(5)
            env.log("closing", transport.is_closing())
            transport.sendto(bytes(65507), ("127.0.0.1", 9))
            try:
                transport.sendto(bytes(65508), ("127.0.0.1", 9))
            except AttributeError as exc:
                env.log(exc)

    support.compare(scenario)


# --------------------------------------------------------------------------- fairness


def test_a_flood_does_not_starve_a_neighbour(run: Any) -> None:
    """One read of a batch per turn: a connection beside a flood is served at once."""

    async def main(env: Env) -> None:
        loop = env.loop
        flooding = threading.Event()
        sock = plain_socket()
        name = sock.getsockname()

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                while not flooding.is_set():
                    for _ in range(20):
                        peer.sendto(bytes(100), name)

        thread = threading.Thread(target=flood)
        near, far = support.tcp_pair()
        echo = Recorder(on={"data_received": lambda rec, data: rec.transport.write(data)})
        reply = Recorder()
        async with endpoint(sock=sock) as (_, recorder):
            echo_transport, _ = await support.attach(near, echo)
            reply_transport, _ = await support.attach(far, reply)
            thread.start()
            try:
                await recorder.until("datagram_received", 100)
                longest = 0.0
                for number in range(1, 51):
                    started = time.monotonic()
                    reply_transport.write(b"x")
                    await reply.until_received(number)
                    longest = max(longest, time.monotonic() - started)
                # The flood goes on, too.
                await recorder.until("datagram_received", recorder.count("datagram_received") + 1)
            finally:
                flooding.set()
                thread.join()
            assert longest < 2.0 * support.TIME_SCALE
            echo_transport.abort()
            reply_transport.abort()
            await turns(2)
            assert loop.is_running()

    run(main)


def test_a_batch_is_bounded(run: Any, loop_name: str) -> None:
    """However many wait, a callback queued behind the first is not kept waiting by all."""
    support.needs_cpploop(loop_name, "it delivers one a turn")

    async def main(env: Env) -> None:
        between: list[int] = []

        def first(recorder: Any, data: bytes) -> None:
            if data == b"0":
                env.loop.call_soon(lambda: between.append(len(recorder.datagrams)))

        recorder = DatagramRecorder(on={"datagram_received": first})
        async with endpoint(recorder) as (transport, _):
            send_batch(transport, *(b"%d" % number for number in range(100)))
            await recorder.until("datagram_received", 100)
        assert 1 <= between[0] <= 64

    run(main)


# --------------------------------------------------------------------------- what it tells


def test_repr() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair() as (transport, _, peer):
            env.log(repr(transport))
            transport.pause_reading()
            env.log(repr(transport))
            transport.resume_reading()
            fill(transport)
            env.log(repr(transport))
            transport.close()
            env.log(repr(transport))
            while support.readable(peer):
                peer.recv(10)
                await turns(1)
            await turns(2)
            env.log(repr(transport))

    trace = support.compare(scenario)
    assert trace[0] == ("<transport fd=… read=polling write=<idle, bufsize=0>>",)
    assert trace[4] == ("<transport closed fd=…>",)


def test_debug_mode_logs_what_asyncio_logs() -> None:
    async def scenario(env: Env) -> None:
        with logged(logging.DEBUG) as records:
            async with endpoint() as (transport, _):
                transport.pause_reading()
                transport.pause_reading()
                transport.resume_reading()
                transport.resume_reading()
                transport.sendto(b"x", 5)
                await turns(2)
        env.take_errors()
        for level, text in records:
            if "took" not in text:
                env.log(level, plain(text).replace("_SelectorDatagram", "Datagram"))

    support.compare(scenario, debug=True)


def test_a_slow_callback_is_logged_in_debug_mode(run: Any) -> None:
    async def main(env: Env) -> None:
        env.loop.slow_callback_duration = 0.01
        recorder = DatagramRecorder(on={"datagram_received": lambda *_: time.sleep(0.03)})
        with logged() as records:
            async with endpoint(recorder) as (transport, _):
                send_batch(transport, b"x")
                await recorder.until("datagram_received")
                await turns(1)
        assert any("DatagramTransport" in text and "took" in text for _, text in records)

    run(main, debug=True)


def test_call_soon_of_a_subclass_is_asked(loop_name: str) -> None:
    """Overrides are honoured: asyncio goes through loop.call_soon() for each of these."""
    seen = []

    base = asyncio.SelectorEventLoop
    if loop_name == "cpploop":
        import cpploop

        base = cpploop.Loop

    class Watched(base):  # type: ignore[misc, valid-type]
        def call_soon(self, callback: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(getattr(callback, "__name__", ""))
            return super().call_soon(callback, *args, **kwargs)

    async def main() -> None:
        async with endpoint() as (transport, _):
            transport.close()
            await turns(2)

    support.run(Watched, main)
    assert "connection_made" in seen
    assert "_call_connection_lost" in seen


# --------------------------------------------------------------------------- the end


def test_connection_lost_raises() -> None:
    async def scenario(env: Env) -> None:
        def fails(_: Any, exc: Any) -> None:
            raise ZeroDivisionError("in connection_lost")

        recorder = DatagramRecorder(env, on={"connection_lost": fails})
        async with endpoint(recorder) as (transport, _):
            transport.close()
            await turns(3)
            env.log(transport.get_protocol() is None)

    support.compare(scenario)


def test_a_dropped_endpoint_lives_until_it_is_closed(run: Any) -> None:
    """C7: a protocol that stores nothing survives a collection."""

    async def main(env: Env) -> None:
        got = []

        class Forgetful(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                got.append(data)

        transport, protocol = await env.loop.create_datagram_endpoint(
            Forgetful, local_addr=("127.0.0.1", 0)
        )
        name = address_of(transport)
        alive = weakref.ref(transport)
        del transport, protocol
        gc.collect()
        with plain_socket() as peer:
            peer.sendto(b"x", name)
            await eventually(lambda: got)
        found = alive()
        assert found is not None
        found.close()
        del found
        await turns(3)
        gc.collect()
        assert alive() is None

    run(main)


def test_an_unclosed_transport_warns(loop_factory: support.LoopFactory) -> None:
    before = support.open_fds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = loop_factory()
        transport, _ = loop.run_until_complete(
            loop.create_datagram_endpoint(DatagramRecorder, local_addr=("127.0.0.1", 0))
        )
        alive = weakref.ref(transport)
        name = type(transport).__name__
        loop.close()
        del transport, _
        gc.collect()
    texts = [str(item.message) for item in caught if "unclosed transport" in str(item.message)]
    assert len(texts) == 1
    assert plain(texts[0]) == f"unclosed transport <{name} fd=…>"
    caught.clear()  # A warning's source is the very object.
    gc.collect()
    assert alive() is None
    assert support.new_fds(before) == {}


def test_cycles_through_a_transport_are_collected(run: Any) -> None:
    async def main(env: Env) -> None:
        class Thing(asyncio.DatagramProtocol):
            transport: Any = None

            def connection_made(self, transport: Any) -> None:
                self.transport = transport
                transport.mine = self

        transport, protocol = await env.loop.create_datagram_endpoint(
            Thing, local_addr=("127.0.0.1", 0)
        )
        alive = weakref.ref(transport), weakref.ref(protocol)
        transport.close()
        del transport, protocol
        await turns(3)
        gc.collect()
        assert [item() for item in alive] == [None, None]

    run(main)


def test_a_cycle_through_a_queued_address_is_collected(loop_factory: support.LoopFactory) -> None:
    """Any object may wait in the queue as an address, also one that leads to the transport."""

    async def main() -> Any:
        with plain_socket(socket.AF_UNIX, abstract_name("full")) as peer:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, sock=plain_socket(socket.AF_UNIX)
            )
            fill(transport, peer.getsockname())
            transport.sendto(b"x", [transport])
            return weakref.ref(transport)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop = loop_factory()
        alive = loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()
        assert alive() is None


def test_queued_objects_are_let_go(run: Any) -> None:
    """What waits in the queue when it is aborted, or sent, is not kept."""

    class Name(str):
        pass

    async def main() -> None:
        for ends in (True, False):
            async with narrow_pair(connected=False) as (transport, _, peer):
                count = fill(transport, peer.getsockname())
                address = Name(peer.getsockname().decode())
                alive = weakref.ref(address)
                transport.sendto(b"x", address)
                del address
                assert alive() is not None
                if ends:
                    transport.abort()
                else:
                    for _ in range(count + 2):
                        await eventually(lambda: support.readable(peer))
                        peer.recv(10)
                        await turns(2)
                assert alive() is None

    run(main)


def test_descriptors_are_closed_once_however_it_ends(run: Any) -> None:
    """C2: with somebody else taking each freed number at once."""

    async def main() -> None:
        with fd_thief():
            for number in range(60):
                async with endpoint() as (transport, recorder):
                    sock = transport.get_extra_info("socket")
                    number_of_it = sock.fileno()
                    way = number % 4
                    if way == 0:
                        transport.close()
                    elif way == 1:
                        transport.abort()
                    elif way == 2:
                        transport.close()
                        transport.abort()
                    else:
                        transport.sendto(b"x", 5)  # Fatal.
                    await recorder.until("connection_lost")
                    assert sock.fileno() == -1
                    assert number_of_it >= 0

    async def scenario(env: Env) -> None:
        await main()
        env.take_errors()

    run(scenario)


def test_the_socket_closed_behind_its_back(run: Any) -> None:
    """The number may be another file's by then, and is not ours to close."""

    async def main() -> None:
        sock = plain_socket()
        async with endpoint(sock=sock) as (transport, recorder):
            number = sock.fileno()
            transport.pause_reading()
            await turns(2)
            sock.close()
            other = os.open("/dev/null", os.O_RDONLY)
            assert other == number
            transport.abort()
            await recorder.until("connection_lost")
            os.fstat(other)
            os.close(other)

    run(main)


def test_use_from_another_thread(run: Any) -> None:
    """Refused on free-threaded builds, else not at all: asyncio does not look either.

    is_closing() is answered everywhere: finalisers ask it wherever the collector runs.
    """

    async def main(env: Env) -> None:
        async with endpoint() as (transport, _):
            outcome = []

            def elsewhere() -> None:
                outcome.append(transport.is_closing())
                try:
                    outcome.append(transport.get_write_buffer_size())
                except RuntimeError as exc:
                    outcome.append(str(exc))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            ours = type(transport).__module__ == "cpploop._native"
            assert outcome[0] is False
            assert (outcome[1] == 0) is not (ours and support.FREE_THREADED)

    run(main)


FORK = """
import asyncio, os, socket, sys

class Protocol(asyncio.DatagramProtocol):
    got = 0
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, addr):
        self.got += 1

async def main():
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        Protocol, local_addr=("127.0.0.1", 0))
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            transport.sendto(b"from the child", transport.get_extra_info("sockname"))
        except RuntimeError as exc:
            print("child:", exc)
            sys.stdout.flush()
        import gc
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", transport.get_extra_info("sockname"))
        while protocol.got == 0:
            await asyncio.sleep(0.001)
    print("parent got", protocol.got)
    transport.close()

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


def test_in_a_forked_child_every_call_is_refused() -> None:
    output = support.run_script(FORK, loop="cpploop").stdout.splitlines()
    assert output[0].startswith("child: ")
    assert output[1] == "parent got 1"


AT_EXIT = """
import asyncio, sys
loop = factory()
asyncio.set_event_loop(loop) if sys.version_info < (3, 14) else None
transport, protocol = loop.run_until_complete(
    loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)))
keep = [loop, transport, protocol]
keep.append(keep)
transport.sendto(b"x", transport.get_extra_info("sockname"))
print("done")
"""


def test_left_open_at_the_end_of_the_process(loop_name: str) -> None:
    result = support.run_script(AT_EXIT, loop=loop_name)
    assert result.stdout == "done\n"
    assert "Fatal" not in result.stderr and "Traceback" not in result.stderr


def test_many_endpoints_cost_no_large_buffers(run: Any) -> None:
    """No endpoint has a receive buffer of its own."""
    if support.SANITIZED:
        pytest.skip("memory growth says nothing under AddressSanitizer")

    async def main(env: Env) -> None:
        loop = env.loop
        transports: list[Any] = []

        async def make(count: int) -> None:
            for _ in range(count):
                transport, recorder = await loop.create_datagram_endpoint(
                    DatagramRecorder, local_addr=("127.0.0.1", 0)
                )
                send_batch(transport, bytes(60000))
                await recorder.until("datagram_received")
                recorder.datagrams.clear()
                transports.append(transport)

        await make(20)
        before = support.rss_kib()
        await make(200)
        grown = support.rss_kib() - before
        for transport in transports:
            transport.abort()
        await turns(3)
        assert grown < 200 * 32

    run(main)


def test_reports_name_transport_and_protocol(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    with reported(loop) as contexts:
        recorder = DatagramRecorder()
        transport, _ = loop.run_until_complete(
            loop.create_datagram_endpoint(lambda: recorder, local_addr=("127.0.0.1", 0))
        )
        transport.sendto(b"x", ("127.0.0.1", 99999))
        loop.run_until_complete(recorder.until("connection_lost"))
    [context] = contexts
    assert context["transport"] is transport
    assert context["protocol"] is recorder
    assert isinstance(context["exception"], OverflowError)
    assert recorder.exc is context["exception"]
    loop.close()
