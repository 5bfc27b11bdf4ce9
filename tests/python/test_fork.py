"""A loop in a forked child refuses to work, and its parent's goes on."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest
import support
from forking import script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_new_loop_in_the_child(loop_name: str) -> None:
    """What prefork servers do: the parent has a loop, each child makes its own."""
    source = """
        loop = factory()
        loop.run_until_complete(asyncio.sleep(0))

        def child():
            own = factory()
            own.run_until_complete(asyncio.sleep(0.01))
            print("child's loop ran")
            own.close()

        print(in_child(child))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        print("parent's loop still runs")
        """
    out = script(source, loop_name)
    assert out == "(\"child's loop ran\\n\", 0)\nparent's loop still runs\n"


def test_the_child_of_a_running_loop_has_none(loop_name: str) -> None:
    source = """
        def child():
            print(asyncio._get_running_loop())
            own = factory()
            own.run_until_complete(asyncio.sleep(0.01))
            own.close()
            print("own loop ran")

        async def main():
            print(in_child(child))
            await asyncio.sleep(0.01)
            print("parent goes on")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """
    assert script(source, loop_name) == "('None\\nown loop ran\\n', 0)\nparent goes on\n"


def test_closing_the_inherited_loop_leaves_the_parents_alone(loop_name: str) -> None:
    """Registrations, timers, wake-ups and transports of the parent survive the child's close().

    uv#26.
    """
    source = """
        async def main():
            loop = asyncio.get_running_loop()
            first, second = socket.socketpair()
            third, fourth = socket.socketpair()
            for sock in (first, second, third, fourth):
                sock.setblocking(False)
            reads = []
            loop.add_reader(first, lambda: reads.append(first.recv(10)))
            reader, writer = await asyncio.open_connection(sock=third)

            def child():
                try:
                    loop.close()
                except RuntimeError:
                    # asyncio's own loop is still running, as far as it knows.
                    pass
                gc.collect()

            print(in_child(child)[1])
            second.send(b"reader")
            fourth.send(b"stream")
            print(await reader.readexactly(6))
            writer.write(b"written")
            await asyncio.sleep(0.05)
            print(reads, fourth.recv(100))
            done = loop.create_future()
            threading.Timer(0.02, loop.call_soon_threadsafe, (done.set_result, "woken")).start()
            print(await done)
            loop.remove_reader(first)
            writer.close()
            for sock in (first, second, fourth):
                sock.close()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """
    assert script(source, loop_name) == "0\nb'stream'\n[b'reader'] b'written'\nwoken\n"


def test_every_call_on_the_inherited_loop_raises(certs: support.Certificates) -> None:
    """Of the loop, and of its transports; and nobody gets a byte from the child, or loses one."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("asyncio's own loop does not look")
    source = """
        # All of TLS in asyncio's own Python, for one who asks for it, does not look.
        os.environ.pop("CPPLOOP_TLS", None)
        certificates = support.Certificates(*map(pathlib.Path, sys.argv[1:]))
        client_tls = certificates.client_context()
        options = {"ssl": client_tls, "server_hostname": "localhost"}
        loop = factory()
        free, full = support.unix_pair(), support.unix_pair()
        listener, silent = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        sibling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sibling.bind(("127.0.0.1", 0))
        for sock in (listener, silent, sibling):
            sock.setblocking(False)
        inlet, outlet = (os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb")))
        os.set_blocking(inlet.fileno(), False)
        try:
            while True:
                full[0].send(bytes(65536))
        except BlockingIOError:
            pass

        async def tls_pair():
            near, far = support.tcp_pair()
            accepting = loop.connect_accepted_socket(
                asyncio.Protocol, far, ssl=certificates.server_context()
            )
            connecting = loop.create_connection(asyncio.Protocol, sock=near, **options)
            return [transport for transport, _ in await asyncio.gather(connecting, accepting)]

        async def open_all():
            near, far = support.unix_pair()
            stream, _ = await loop.create_connection(asyncio.Protocol, sock=near)
            pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, outlet)
            datagram, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
            )
            return stream, far, pipe, datagram, *await tls_pair()

        stream, far, pipe, datagram, tls, other_tls = loop.run_until_complete(open_all())

        def scheduling():
            return {
                "call_soon": lambda: loop.call_soon(print),
                "call_soon_threadsafe": lambda: loop.call_soon_threadsafe(print),
                "call_later": lambda: loop.call_later(1, print),
                "call_at": lambda: loop.call_at(1, print),
                "run_forever": loop.run_forever,
                "run_until_complete": lambda: loop.run_until_complete(asyncio.Future(loop=loop)),
                "add_reader": lambda: loop.add_reader(free[0], print),
                "add_writer": lambda: loop.add_writer(free[0], print),
                "add_signal_handler": lambda: loop.add_signal_handler(signal.SIGUSR1, print),
                "run_in_executor": lambda: loop.run_in_executor(None, print),
            }

        def of_transports():
            everywhere = {"set_write_buffer_limits": [100], "close": [], "abort": []}
            writing = {"write": [b"from the child"], "writelines": [[b"from", b"the child"]]}
            exchange, end = {"set_protocol": [asyncio.Protocol()]}, {"write_eof": []}
            reading = {"pause_reading": [], "resume_reading": []}
            sending = {"sendto": [b"from the child", sibling.getsockname()]}
            methods = {
                "stream": (stream, everywhere | writing | exchange | end | reading),
                # Its other methods are asyncio's, and touch nothing but the child's own objects.
                "tls": (tls, everywhere | writing),
                "pipe": (pipe, everywhere | writing | exchange | end),
                "datagram": (datagram, everywhere | exchange | reading | sending),
            }
            return {
                f"{kind}.{name}": functools.partial(getattr(transport, name), *arguments)
                for kind, (transport, calls) in methods.items()
                for name, arguments in calls.items()
            }

        def coroutines():
            address, data = listener.getsockname(), bytes(65536)
            make, make_endpoint = asyncio.Protocol, asyncio.DatagramProtocol
            return {
                "create_connection": lambda: loop.create_connection(make, *address),
                "create_connection(sock=)": lambda: loop.create_connection(
                    make, sock=support.unix_pair()[0]
                ),
                "create_connection(ssl=)": lambda: loop.create_connection(
                    make, *address, **options
                ),
                "connect_accepted_socket": lambda: loop.connect_accepted_socket(
                    make, support.unix_pair()[0]
                ),
                "create_server": lambda: loop.create_server(make, "127.0.0.1", 0),
                "create_server(sock=)": lambda: loop.create_server(make, sock=listener),
                "create_datagram_endpoint": lambda: loop.create_datagram_endpoint(
                    make_endpoint, local_addr=("127.0.0.1", 0)
                ),
                "connect_read_pipe": lambda: loop.connect_read_pipe(make, inlet),
                "subprocess_exec": lambda: loop.subprocess_exec(asyncio.SubprocessProtocol, "true"),
                "start_tls": lambda: loop.start_tls(
                    stream, make(), client_tls, server_hostname="localhost"
                ),
                "getaddrinfo": lambda: loop.getaddrinfo("localhost", 80),
                "sendfile": lambda: loop.sendfile(stream, open(certificates.ca, "rb")),
                # Those that would have to wait.
                "sock_accept": lambda: loop.sock_accept(silent),
                "sock_recv": lambda: loop.sock_recv(free[0], 10),
                "sock_recv_into": lambda: loop.sock_recv_into(free[0], bytearray(10)),
                "sock_recvfrom": lambda: loop.sock_recvfrom(sibling, 10),
                "sock_sendall": lambda: loop.sock_sendall(full[0], data),
            }

        def child():
            own = factory()
            calls = {**scheduling(), **of_transports()}
            calls |= {
                name: lambda call=call: own.run_until_complete(asyncio.wait_for(call(), 5))
                for name, call in coroutines().items()
            }
            for name, call in calls.items():
                result = attempt(call)
                if not str(result).startswith("RuntimeError: Event loop was inherited"):
                    print(name, result)
            own.close()
            loop.close()
            print(loop.is_closed())

        print(in_child(child))
        # Nothing came from the child; and the parent's connections go on.
        for sock in (far, free[1], sibling):
            assert support.recv_now(sock) == b"", sock
        assert inlet.read(100) is None

        async def go_on():
            stream.write(b"from the parent")
            assert await support.recv_exactly(far, 15) == b"from the parent"
            pipe.write(b"and more")
            datagram.sendto(b"and more", sibling.getsockname())
            tls.write(b"and more")
            other_tls.set_protocol(rec := support.Recorder())
            assert await rec.until_received(8) == b"and more"
            assert inlet.read(100) == sibling.recv(100) == b"and more"
            for transport in (stream, pipe, datagram, tls, other_tls):
                transport.abort()

        loop.run_until_complete(go_on())
        loop.close()
        """
    out = script(source, "cpploop", str(certs.ca), str(certs.server))
    assert out == "('True\\n', 0)\n"


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_sock_calls_that_need_not_wait(debug: bool) -> None:
    """They are refused in the child, too, and what is there is left to the parent."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("asyncio's own loop does not look")
    source = f"""
        loop = factory()
        loop.set_debug({debug})
        near, far = support.tcp_pair()
        one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
        listener = socket.create_server(("127.0.0.1", 0))
        connected = socket.create_connection(listener.getsockname())
        for sock in (near, one, listener):
            sock.setblocking(False)
        far.send(b"the parent's")
        two.sendto(b"the parent's", one.getsockname())
        time.sleep(0.05)
        """
    source += """
        def child():
            own = factory()
            fresh = socket.socket()
            fresh.setblocking(False)
            calls = {
                "sock_accept": lambda: loop.sock_accept(listener),
                "sock_connect": lambda: loop.sock_connect(fresh, listener.getsockname()),
                "sock_recv": lambda: loop.sock_recv(near, 10),
                "sock_recv_into": lambda: loop.sock_recv_into(near, bytearray(10)),
                "sock_recvfrom": lambda: loop.sock_recvfrom(one, 10),
                "sock_recvfrom_into": lambda: loop.sock_recvfrom_into(one, bytearray(10)),
                "sock_sendall": lambda: loop.sock_sendall(near, b"the child's"),
                "sock_sendto": lambda: loop.sock_sendto(one, b"the child's", two.getsockname()),
                "sock_sendfile": lambda: loop.sock_sendfile(near, open(sys.executable, "rb")),
                "sock_sendfile by reading": lambda: loop.sock_sendfile(near, io.BytesIO(b"no")),
            }
            for name, call in calls.items():

                async def awaited():
                    return await call()

                result = attempt(lambda: own.run_until_complete(asyncio.wait_for(awaited(), 5)))
                if not str(result).startswith("RuntimeError: Event loop was inherited"):
                    print(name, result)
            own.close()
            print("asked")

        print(in_child(child))
        two.setblocking(False)
        assert near.recv(100) == one.recv(100) == b"the parent's"
        for sock in (far, two):
            assert support.recv_now(sock) == b"", sock
        listener.accept()
        loop.close()
        """
    assert script("import io\n" + textwrap.dedent(source), "cpploop") == "('asked\\n', 0)\n"


def test_what_is_given_up_in_the_child_stays_with_the_parent() -> None:
    """Clean-up there, after the fork, is answered and takes nothing from the parent."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("the child takes it out of the shared epoll set on asyncio's own loop")
    source = """
        loop = factory()
        (first, second), (third, _) = support.unix_pair(), support.unix_pair()
        seen = []

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                seen.append("accepted")
                transport.abort()

        async def main():
            server = await loop.create_server(Server, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            loop.add_reader(first, lambda: seen.append(first.recv(10)))

            def child():
                print(loop.remove_reader(first), loop.remove_writer(first), server.close())

            print(in_child(child))
            second.send(b"read")
            loop.add_writer(third, lambda: (seen.append("writable"), loop.remove_writer(third)))
            with socket.create_connection(address) as client:
                client.setblocking(False)
                while len(seen) < 3:
                    await asyncio.sleep(0.001)
            print(sorted(seen, key=str))
            loop.remove_reader(first)
            server.close()

        loop.run_until_complete(asyncio.wait_for(main(), 20))
        loop.close()
        """
    out = script(source, "cpploop")
    assert out == "('True False None\\n', 0)\n['accepted', b'read', 'writable']\n"


def test_closing_while_the_loop_does_not_run() -> None:
    """The child's close() must not take the parent's registrations out of the shared epoll set."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("asyncio's own loop does just that")
    source = """
        loop = factory()
        first, second = socket.socketpair()
        first.setblocking(False)
        seen = []
        loop.add_reader(first, lambda: (seen.append(first.recv(10)), loop.stop()))
        loop.call_later(0.02, seen.append, "timer")
        loop.call_later(0.05, second.send, b"x")

        def child():
            loop.close()
            loop.close()
            print(loop.is_closed(), "closed=True" in repr(loop))

        print(in_child(child))
        loop.call_later(20, loop.stop)
        loop.run_forever()
        print(seen)
        loop.remove_reader(first)
        loop.close()
        """
    assert script(source, "cpploop") == "('True True\\n', 0)\n['timer', b'x']\n"


def test_dropping_the_inherited_loop(loop_name: str) -> None:
    """Deallocation in the child only closes the child's descriptors."""
    source = """
        loop = factory()
        called = []
        loop.call_later(0.05, called.append, "timer")
        first, second = socket.socketpair()
        loop.add_reader(first, lambda: (called.append(first.recv(10)), loop.stop()))

        def child():
            global loop, first
            loop = None
            gc.collect()
            print("dropped")

        print(in_child(child))
        loop.call_later(0.1, second.send, b"x")
        loop.run_forever()
        print(called)
        loop.close()
        """
    assert script(source, loop_name) == "('dropped\\n', 0)\n['timer', b'x']\n"


def test_queued_bytes_are_sent_once(loop_name: str) -> None:
    """What the parent has buffered is not sent by the child as well."""
    source = """
        async def main():
            first, second = socket.socketpair()
            second.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=first)
            size = 4 << 20
            writer.write(bytes(range(256)) * (size // 256))

            def child():
                gc.collect()

            print(in_child(child)[1])
            received = bytearray()
            while len(received) < size:
                try:
                    received += second.recv(1 << 20)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            try:
                received += second.recv(1 << 20)
            except BlockingIOError:
                pass
            print(received == bytes(range(256)) * (size // 256))
            writer.close()
            second.close()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """
    assert script(source, loop_name) == "0\nTrue\n"


def test_prefork_accepting(loop_name: str) -> None:
    """gunicorn's shape: one listening socket, several children, each with its own loop (uv#39)."""
    source = """
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        address = listener.getsockname()

        async def serve():
            async def answer(reader, writer):
                writer.write(b"%d:" % os.getpid() + await reader.readexactly(4))
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(answer, sock=listener)
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            os.write(ready, b"x")
            await stop.wait()
            server.close()

        children = []
        started, ready = os.pipe()
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with asyncio.Runner(loop_factory=factory) as runner:
                        runner.run(serve())
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        for _ in children:
            os.read(started, 1)
        answers = []
        for number in range(30):
            with socket.create_connection(address) as client:
                client.settimeout(20)
                client.sendall(b"%04d" % number)
                data = b""
                while chunk := client.recv(100):
                    data += chunk
                pid, _, echoed = data.partition(b":")
                answers.append(int(pid) in children and echoed == b"%04d" % number)
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        print(all(answers), [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        """
    assert script(source, loop_name) == "True [0, 0, 0]\n"


def test_fork_with_executor_threads() -> None:
    """close() in the child never joins threads that exist only in the parent, and leaves the
    parent's loop able to wake up, which asyncio's own close() does not."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("the child's close() edits the parent's epoll set on asyncio's own loop")
    source = """
        loop = factory()
        loop.run_until_complete(loop.run_in_executor(None, int))
        loop.run_until_complete(loop.getaddrinfo("localhost", 80))

        def child():
            loop.close()
            print("closed")

        print(in_child(child))
        loop.run_until_complete(loop.run_in_executor(None, int))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """
    assert script(source, "cpploop") == "('closed\\n', 0)\n"


def test_fork_while_other_threads_schedule(loop_name: str) -> None:
    """The inbox's lock may be held by a thread that the child does not have."""
    source = """
        loop = factory()
        stop = threading.Event()

        def hammer():
            while not stop.is_set():
                loop.call_soon_threadsafe(int)

        threads = [threading.Thread(target=hammer) for _ in range(2)]
        for thread in threads:
            thread.start()

        def child():
            own = factory()
            own.call_soon_threadsafe(own.stop)
            own.run_forever()
            own.close()

        statuses = set()
        for _ in range(20):
            statuses.add(in_child(child)[1])
            loop.stop()
            loop.run_forever()
        stop.set()
        for thread in threads:
            thread.join()
        loop.close()
        print(statuses)
        """
    assert script(source, loop_name) == "{0}\n"


def test_fork_inside_a_callback_and_going_on_in_the_child(loop_name: str) -> None:
    """A child that returns into the loop's own code must end, not run the parent's loop."""
    source = """
        def fork():
            if os.fork() == 0:
                signal.alarm(20)
                os._exit(7)
            _, status = os.wait()
            print(os.waitstatus_to_exitcode(status))
            loop.stop()

        loop = factory()
        loop.call_soon(fork)
        loop.run_forever()
        loop.close()
        """
    assert script(source, loop_name) == "7\n"


def test_multiprocessing_fork_from_a_running_loop(loop_name: str) -> None:
    """cpy#66285"""
    source = f"""
        import multiprocessing
        sys.path.insert(0, {support.__file__.rpartition("/")[0]!r})

        def child(queue):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(asyncio.sleep(0.01))
            queue.put("child ran its own loop")

        async def main():
            context = multiprocessing.get_context("fork")
            queue = context.SimpleQueue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, process.join)
            print(process.exitcode, queue.get())

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """
    assert script(source, loop_name) == "0 child ran its own loop\n"


def test_the_wakeup_fd_is_not_shared(loop_name: str) -> None:
    """A signal in the child must not wake the parent's loop through an inherited descriptor."""
    source = """
        loop = factory()
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "parent")

        def child():
            signal.signal(signal.SIGUSR1, lambda *args: print("child's own handler"))
            os.kill(os.getpid(), signal.SIGUSR1)

        print(in_child(child))
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        print(seen)
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.close()
        """
    out = script(source, loop_name)
    first, second = out.splitlines()
    assert first == '("child\'s own handler\\n", 0)'
    # asyncio takes the descriptor back in the child from 3.12 on.
    if sys.version_info >= (3, 12):
        assert second == "[]"


def test_no_warning_about_the_parents_loop_in_the_child(loop_name: str) -> None:
    source = """
        loop = factory()

        def child():
            warnings.simplefilter("always")
            caught = []
            warnings.showwarning = lambda message, *rest: caught.append(str(message))
            loop.close()
            gc.collect()
            print(caught)

        print(in_child(child))
        loop.close()
        """
    out = script(source, loop_name)
    assert out == "('[]\\n', 0)\n"


def test_a_closed_loop_in_the_parent(loop_name: str) -> None:
    """It is closed in the child, too; closing it again, or dropping it, takes nothing from others.

    Its numbers may be somebody else's by then.
    """
    source = """
        loop = factory()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        others = socket.socketpair() + socket.socketpair()

        def child():
            global loop
            print(loop.is_closed(), attempt(lambda: loop.call_soon(print)).partition(":")[0])
            loop.close()
            loop = None
            gc.collect()
            others[0].send(b"still there")
            print(others[1].recv(100))
            own = factory()
            own.run_until_complete(asyncio.sleep(0.001))
            own.close()

        print(in_child(child))
        own = factory()
        own.run_until_complete(asyncio.sleep(0.001))
        own.close()
        """
    expected = "True RuntimeError\\nb'still there'\\n"
    assert script(source, loop_name) == f'("{expected}", 0)\n'


def test_fork_with_everything_under_way(loop_name: str) -> None:
    """Bytes queued for a socket and a pipe, a living child, timers, a thread's result.

    The forked process runs a loop of its own and takes the inherited one apart; the parent's bytes
    arrive once, its child's end is told, and everything else comes to its end.
    """
    support.needs_cpploop(loop_name, "a forked asyncio loop shares its parent's epoll set")
    source = """
        SIZE = 2 << 20
        DATA = bytes(range(256)) * (SIZE // 256)

        def child():
            own = factory()
            own.run_until_complete(asyncio.sleep(0.02))
            own.close()
            loop.close()
            gc.collect()
            print("child's own loop ran")

        def read_all(fd):
            received = bytearray()
            while chunk := os.read(fd, 1 << 20):
                received += chunk
            return bytes(received)

        async def main():
            first, second = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=first)
            inlet, outlet = os.pipe()
            pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(outlet, "wb", 0))
            process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
            timer = loop.create_future()
            loop.call_later(0.01, timer.set_result, "timer")
            thread = loop.run_in_executor(None, time.sleep, 0.05)
            writer.write(DATA)
            pipe.write(DATA)

            print(in_child(child))

            results = [loop.run_in_executor(None, read_all, fd) for fd in (second.fileno(), inlet)]
            writer.close()
            pipe.close()
            print([await result == DATA for result in results], await timer, await thread)
            print(process.returncode)
            process.stdin.close()
            print(await process.wait())
            second.close()
            os.close(inlet)

        with asyncio.Runner(loop_factory=factory) as runner:
            loop = runner.get_loop()
            runner.run(main())
        """
    out = script(source, loop_name)
    assert out == ('("child\'s own loop ran\\n", 0)\n[True, True] timer None\nNone\n0\n')
