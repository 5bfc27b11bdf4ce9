"""Memory that cannot be had, at every allocation in turn: the interpreter's, and C++'s.

The interpreter's allocations are made by the binding or for it; those of C++, in the binding and
the engine, fail in a cpploop that was built with CPPLOOP_FAULTS (tests/core/allocation_test.cc has
the engine alone). Each operation runs in a process of its own, once for each allocation that it
comes to, with that one failing: what is told is a MemoryError or nothing, nobody crashes, and the
loop and its connections work afterwards.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest
import support

try:
    from cpploop import _native
except ImportError:
    _native = None  # type: ignore[assignment]

pytest.importorskip("_testcapi", reason="lets allocations fail")

# Each has prepare(), called with memory, and operate(its result), called without.
OPERATIONS = {
    "call_soon": """
        def prepare():
            return "some", "arguments", "and", "more"

        def operate(args):
            loop.call_soon(called.append, args)
            loop.call_soon(print_nothing, *args)
        """,
    "call_soon_threadsafe": """
        def operate(_):
            loop.call_soon_threadsafe(called.append, 1)
        """,
    "call_later": """
        def operate(_):
            loop.call_later(0, called.append, 1).cancel()
            loop.call_at(0, print_nothing, 1, 2, 3, 4)
        """,
    "turn": """
        def prepare():
            loop.call_soon(called.append, 1)
            loop.call_later(0, called.append, 2)
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "turn_with_io": """
        def prepare():
            far.send(b"some bytes")
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "turn_with_much_io": """
        def prepare():
            far.send(bytes(100_000))
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "write": """
        def operate(_):
            transport.write(b"some bytes")
        """,
    "write_much": """
        def prepare():
            return bytes(1 << 22)

        def operate(data):
            transport.write(data)
            transport.write(bytearray(10))
        """,
    "writelines": """
        def prepare():
            return [b"one", bytearray(b"two"), memoryview(b"three"), bytes(1 << 21)]

        def operate(pieces):
            transport.writelines(pieces)
            transport.writelines(tuple(pieces))
        """,
    "add_reader": """
        def prepare():
            pair = socket.socketpair()
            kept.append(pair)
            return pair[0]

        def operate(sock):
            loop.add_reader(sock, called.append, 1)
            loop.add_writer(sock, called.append, 1)
        """,
    "sock_recv": """
        def prepare():
            near, other = socket.socketpair()
            near.setblocking(False)
            other.send(b"x")
            kept.append((near, other))
            # The interpreter itself may crash where a coroutine of Python's cannot be made.
            return loop.sock_recv(near, 10)

        def operate(receiving):
            with contextlib.suppress(StopIteration):
                receiving.send(None)
        """,
    "sock_recv_that_waits": """
        def prepare():
            near, other = socket.socketpair()
            near.setblocking(False)
            kept.append((near, other))
            return loop.sock_recv(near, 10)

        def operate(receiving):
            try:
                receiving.send(None)
            finally:
                receiving.close()
        """,
    "sendto": """
        def prepare():
            return loop.run_until_complete(endpoint())

        def operate(made):
            made.sendto(b"to itself", made.get_extra_info("sockname"))
        """,
    "datagram": """
        def prepare():
            made = loop.run_until_complete(endpoint())
            made.sendto(b"to itself", made.get_extra_info("sockname"))
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "ask": """
        def operate(_):
            repr(transport), repr(loop)
            transport.get_extra_info("peername")
            transport.get_write_buffer_limits()
            loop.get_debug(), loop.time()
        """,
    "transport": """
        def prepare():
            pair = socket.socketpair()
            kept.append(pair)
            pair[0].setblocking(False)
            return pair[0], Protocol()

        def operate(given):
            loop._make_socket_transport(*given)
        """,
    "accept": """
        def prepare():
            server = loop.run_until_complete(loop.create_server(Protocol, "127.0.0.1", 0))
            kept.append((server, socket.create_connection(server.sockets[0].getsockname())))
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "new_loop": """
        def operate(_):
            factory().close()
        """,
    "lost": """
        def prepare():
            far.shutdown(socket.SHUT_WR)
            loop.stop()

        def operate(_):
            loop.run_forever()
            loop.stop()
            loop.run_forever()
        """,
    "close": """
        def operate(_):
            transport.write(b"the last bytes")
            transport.close()
            loop.stop()
            loop.run_forever()
        """,
    "abort": """
        def operate(_):
            transport.abort()
            loop.stop()
            loop.run_forever()
        """,
    "buffered": """
        class Buffered(asyncio.BufferedProtocol):
            def __init__(self):
                self.memory = bytearray(100)

            def get_buffer(self, sizehint):
                return self.memory

        def prepare():
            transport.set_protocol(Buffered())
            far.send(b"some bytes")
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "stream": """
        def prepare():
            near, other = socket.socketpair()
            kept.append((loop.run_until_complete(asyncio.open_connection(sock=near))[1], other))
            other.send(b"some bytes")
            loop.stop()

        def operate(_):
            loop.run_forever()
        """,
    "set_protocol": """
        def prepare():
            return Protocol()

        def operate(protocol):
            transport.set_protocol(protocol)
            transport.pause_reading()
            transport.resume_reading()
            transport.set_write_buffer_limits(100, 10)
        """,
    "pipes": """
        def prepare():
            pair = loop.run_until_complete(pipe_pair())
            pair[1].write(b"some bytes")
            loop.stop()
            return pair

        def operate(pair):
            pair[1].write(bytes(1 << 20))
            loop.run_forever()
        """,
    "pipe_transports": """
        def prepare():
            files = pipe_files()
            kept.append(files)
            return files

        def operate(files):
            loop._make_read_pipe_transport(files[0], Protocol())
            loop._make_write_pipe_transport(files[1], Protocol())
        """,
    "sock_sendall": """
        def prepare():
            near, other = socket.socketpair()
            near.setblocking(False)
            kept.append((near, other))
            return loop.sock_sendall(near, bytes(1 << 20))

        def operate(sending):
            try:
                sending.send(None)
            finally:
                sending.close()
        """,
    "sock_accept": """
        def prepare():
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            kept.append((listener, socket.create_connection(listener.getsockname())))
            return loop.sock_accept(listener)

        def operate(accepting):
            with contextlib.suppress(StopIteration):
                accepting.send(None)
            accepting.close()
        """,
    "tls_lost": """
        def prepare():
            pair = loop.run_until_complete(tls_pair())
            pair[0].close()
            loop.stop()

        def operate(_):
            for _ in range(4):
                loop.run_forever()
                loop.stop()
        """,
    "tls_turn": """
        def prepare():
            pair = loop.run_until_complete(tls_pair())
            pair[0].write(b"some bytes" * 2000)
            loop.stop()
            return pair

        def operate(_):
            loop.run_forever()
        """,
    "tls_write": """
        def prepare():
            # Free-threaded CPython 3.13 frees what is not its own where a list's array cannot be
            # had, so the list is here before.
            return loop.run_until_complete(tls_pair()), [b"more", b"of them"]

        def operate(given):
            (near, _), pieces = given
            near.write(b"some bytes" * 2000)
            near.writelines(pieces)
        """,
}

PROGRAM = """
    import asyncio, contextlib, ctypes, gc, os, socket, sys, tempfile, traceback, types, warnings
    from pathlib import Path
    import _testcapi

    warnings.simplefilter("ignore")
    if "tls" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            certificates = support.make_certificates(Path(folder))
            server_tls = certificates.server_context()
            client_tls = certificates.client_context()
    print_nothing = lambda *args: None
    called, kept, reports = [], [], []

    class Protocol(asyncio.Protocol):
        received = 0

        def data_received(self, data):
            self.received += len(data)

    async def endpoint():
        made, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        kept.append(made)
        return made

    async def tls_pair():
        near, other = socket.socketpair()
        accepting = loop.connect_accepted_socket(Protocol, other, ssl=server_tls)
        connecting = loop.create_connection(
            Protocol, sock=near, ssl=client_tls, server_hostname="localhost"
        )
        (one, _), (two, _) = await asyncio.gather(connecting, accepting)
        kept.append((one, two))
        return one, two

    def pipe_files():
        reader, writer = os.pipe()
        return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)

    async def pipe_pair():
        files = pipe_files()
        one, _ = await loop.connect_read_pipe(Protocol, files[0])
        two, _ = await loop.connect_write_pipe(Protocol, files[1])
        kept.append((one, two))
        return one, two

    def prepare():
        return None

    async def echo_works():
        near, other = socket.socketpair()
        other.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=near)
        writer.write(b"still there")
        assert await loop.sock_recv(other, 100) == b"still there"
        await loop.sock_sendall(other, b"yes")
        assert await reader.readexactly(3) == b"yes"
        writer.close()
        other.close()
        await asyncio.sleep(0)

    def is_the_interpreters(exc):
        # os.environ.get() may meet this where it would catch a KeyError. Of anybody else it would
        # be a mistake of the binding's; what these modules call is never cpploop's.
        words = ("error return without exception set", "returned NULL without setting an exception")
        if not (isinstance(exc, SystemError) and str(exc).endswith(words)):
            return False
        *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
        return frame.f_globals["__name__"] in ("os", "collections.abc")

    def keep_code():
        # Where a function cannot be made for want of memory, CPython 3.12.1 and 3.13.0 give up its
        # code twice, and crash when it is asked for the next time.
        for function in gc.get_objects():
            if type(function) is types.FunctionType:
                for constant in function.__code__.co_consts:
                    if type(constant) is types.CodeType:
                        for _ in range(200):
                            ctypes.pythonapi.Py_IncRef(ctypes.py_object(constant))

    if WHOSE == "interpreter":
        keep_code()

        def fail_from(number):
            _testcapi.set_nomemory(number, number + 1)

        fail_no_more = _testcapi.remove_mem_hooks
    else:
        from cpploop._native import _fail_allocations

        def fail_from(number):
            _fail_allocations(number, number + 1)

        fail_no_more = _fail_allocations

    def one(number):
        global loop, transport, far
        loop = factory()
        loop.set_exception_handler(lambda loop, context: reports.append(context))
        near, far = socket.socketpair()
        far.settimeout(5)

        async def attach():
            return (await loop.create_connection(Protocol, sock=near))[0]

        transport = loop.run_until_complete(attach())
        given = prepare()
        error = None
        gc.disable()
        fail_from(number)
        try:
            operate(given)
        except BaseException as exc:
            error = exc
        finally:
            fail_no_more()
        if sys.version_info < (3, 12):
            # asyncio allocates there to note that no loop runs any more, and may have failed to.
            asyncio._set_running_loop(None)
        gc.enable()
        seen = [error, *(context.get("exception") for context in reports)]
        reports.clear()
        for exc in seen:
            if not (exc is None or isinstance(exc, MemoryError) or is_the_interpreters(exc)):
                traceback.print_exception(exc)
                print("allocation", number, "led to", repr(exc))
        failed = any(exc is not None for exc in seen)
        # What was made ready by then must not end this round.
        loop.stop()
        loop.run_forever()
        try:
            loop.run_until_complete(asyncio.wait_for(echo_works(), 5))
        except BaseException as exc:
            traceback.print_exc()
            print("after allocation", number, "the loop is broken:", repr(exc))
        del error, seen
        transport.abort()
        for things in kept:
            for thing in things if isinstance(things, tuple) else [things]:
                getattr(thing, "abort", thing.close)()
        kept.clear()
        for _ in range(3):
            loop.stop()
            loop.run_forever()
        loop.close()
        far.close()
        return failed

    def main():
        one(1 << 30)
        failures, last, number = 0, -1, 0
        # One that nobody notices may lie before others; many in a row are behind the end.
        while number <= last + 25:
            if one(number):
                failures, last = failures + 1, number
            number += 1
            assert number < 1000
        print("end", last + 1, failures)

    # THE OPERATION
    main()
"""


needs_cpploop = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="about cpploop's binding"
)


def run_program(operation: str, whose: str, kind: str = "plain") -> support.ScriptResult:
    program = textwrap.dedent(PROGRAM).replace("# THE OPERATION", textwrap.dedent(operation))
    program = f"WHOSE = {whose!r}\n{program}"
    return support.run_script(program, kind, loop="cpploop", timeout=60)


@needs_cpploop
@pytest.mark.parametrize(
    "whose",
    [
        "interpreter",
        pytest.param(
            "C++",
            marks=pytest.mark.skipif(
                not hasattr(_native, "_fail_allocations"),
                reason="cpploop was built without CPPLOOP_FAULTS",
            ),
        ),
    ],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_memory(name: str, whose: str, figure: Callable[[str], None]) -> None:
    result = run_program(OPERATIONS[name], whose, "tls" if name.startswith("tls") else "plain")
    words = result.stdout.split()
    # Nothing was said before the last line, and some allocations failed and were told of.
    assert words[0] == "end" and len(words) == 3, result.stdout + result.stderr
    figure(f"each of {words[1]} allocations failed, and {words[2]} of them were told of")


@needs_cpploop
@pytest.mark.parametrize(
    "message",
    [
        "<built-in method call_soon of Loop object> returned NULL without setting an exception",
        "error return without exception set",
    ],
)
def test_a_failure_without_an_error_is_noticed(message: str) -> None:
    """What a mistake of the binding's would look like."""
    operation = f"""
        raised = []

        def operate(_):
            if not raised:
                raised.append(True)
                raise SystemError({message!r})
        """
    assert "led to SystemError" in run_program(operation, "interpreter").stdout
