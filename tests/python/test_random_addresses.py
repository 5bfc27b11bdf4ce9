"""Addresses made at random: what a loop makes of each is what the socket module makes of it.

The engine never parses an address, so what a fuzzer would feed is fed to the loop: host names to
its resolver, destinations to sendto(), and names of Unix sockets as the kernel gives them. The
socket module is asked the same, and has to say the same. The seed is in every failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

SEEDS = range(200) if support.LONG else range(4)

ADDRESSES = (
    "127.0.0.1",
    "127.255.255.254",
    "127.1",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "2130706433",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "fe80::1%lo",
    "::1%1",
    "255.255.255.255",
    "1.2.3.4.5",
    "localhost",
)
LETTERS = "0123456789abcdefABCDEFxX.:%-[]/ \0é"


def mutated(chance: random.Random) -> str:
    """An address written out with a few letters changed, doubled, swapped or gone."""
    text = list(chance.choice(ADDRESSES))
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(text) + 1)
        text[at : at + chance.randrange(3)] = chance.choices(LETTERS, k=chance.randrange(3))
    return "".join(text)


def same_error(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


def answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return same_error(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_hosts_given_to_the_resolver(run: Any, seed: int) -> None:
    """AI_NUMERICHOST keeps the look-ups from any name server, whatever the text has become."""

    async def main() -> None:
        chance, loop = random.Random(seed), asyncio.get_running_loop()
        for _ in range(150):
            host: Any = mutated(chance)
            if chance.randrange(8) == 0:
                host = host.encode("utf-8", "surrogateescape")
            port: Any = chance.choice([0, 80, 65535, 65536, -1, "80", "http", b"80", None, 2**40])
            options: dict[str, Any] = {
                "family": chance.choice([0, socket.AF_INET, socket.AF_INET6, 999]),
                "type": chance.choice([0, socket.SOCK_STREAM, socket.SOCK_DGRAM]),
                "flags": socket.AI_NUMERICHOST
                | chance.choice([0, socket.AI_PASSIVE, socket.AI_NUMERICSERV]),
            }
            expected = answer(lambda a=(host, port), o=options: socket.getaddrinfo(*a, **o))
            try:
                found: Any = await loop.getaddrinfo(host, port, **options)
            except Exception as error:
                found = same_error(error)
            assert found == expected, f"seed {seed}: {host!r}, {port!r}, {options}"

    run(main)


# --------------------------------------------------------------------------- destinations


def stays_here(host: Any) -> bool:
    """Whether a datagram to HOST cannot leave the machine, nor its name be asked of anybody."""
    if not isinstance(host, str) or "\0" in host:
        return True
    try:
        found = socket.getaddrinfo(host, 9, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return all(
        str(address[0]).removeprefix("::ffff:").startswith("127.") or address[0] == "::1"
        for *_, address in found
    )


class Text(str):
    """Looks like a text, and may be more."""


def destination(chance: random.Random, port: int) -> Any:
    """Something to pass to sendto(): nearly an address, or exactly one."""
    host: Any = mutated(chance)
    while not stays_here(host):
        host = mutated(chance)
    host = chance.choices([host, Text(host), host.encode(), None, 1], [12, 1, 1, 1, 1])[0]
    number: Any = chance.choices(
        [port, -1, 65536 + port, str(port), float(port), True, 2**70, None],
        [12, 1, 1, 1, 1, 1, 1, 1],
    )[0]
    more = [0, 0, 7, 1 << 20, -1, 2**40, "x"]
    address = [host, number, *chance.choices(more, k=chance.choices([0, 1, 2, 3], [6, 2, 2, 1])[0])]
    return chance.choices(
        [tuple(address), address, (host,), (), host, number], [12, 1, 1, 1, 1, 1]
    )[0]


@contextlib.contextmanager
def receiver(family: int) -> Iterator[socket.socket]:
    """A socket that hears what is sent to any address of this machine's own."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        sock.setblocking(False)
        yield sock


class Errors(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.errors: list[Any] = []

    def error_received(self, exc: Exception) -> None:
        self.errors.append(same_error(exc))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_destinations_of_datagrams(run: Any, family: int, seed: int) -> None:
    """Each is delivered where a plain socket delivers it, or is refused with the same words."""
    if family == socket.AF_INET6 and not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def by_the_loop(target: Any, env: support.Env) -> Any:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            Errors, sock=socket.socket(family, socket.SOCK_DGRAM)
        )
        try:
            transport.sendto(b"data", target)
            await support.turns(2)
            # What is no OSError ends the transport, and is reported.
            fatal = [same_error(context["exception"]) for context in env.take_contexts()]
            return (protocol.errors + fatal or [4])[0]
        finally:
            transport.close()
            await support.turns(2)

    async def main(env: support.Env) -> None:
        chance = random.Random(seed)
        with receiver(family) as peer, socket.socket(family, socket.SOCK_DGRAM) as plain:
            for _ in range(80):
                target = destination(chance, peer.getsockname()[1])
                if not target:
                    continue  # asyncio takes it for "no address".
                expected = answer(lambda target=target: plain.sendto(b"data", target))
                arrived = support.recv_now(peer)
                found = await by_the_loop(target, env)
                assert (found, support.recv_now(peer)) == (expected, arrived), (
                    f"seed {seed}: {target!r}"
                )

    run(main)


# --------------------------------------------------------------------------- Unix names


def unix_name(chance: random.Random, folder: Path) -> bytes:
    """A path of any bytes and length that fits, or an abstract name of any bytes at all."""
    if chance.randrange(2):
        return b"\0" + chance.randbytes(chance.randrange(4, 107))
    letters = [byte for byte in range(1, 256) if byte != ord("/")]
    room = 107 - len(os.fsencode(folder)) - 1
    name = bytes(chance.choices(letters, k=chance.choice([4, 10, room])))
    return os.fsencode(folder) + b"/" + name


@pytest.mark.parametrize("seed", SEEDS)
def test_names_of_unix_sockets(run: Any, seed: int, short_tmp: Path) -> None:
    """As getsockname() and recvfrom() show them: in peername, sockname and datagram_received."""

    async def main(env: support.Env) -> None:
        chance, loop = random.Random(seed), asyncio.get_running_loop()
        seen: list[Any] = []

        class Hears(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                seen.append(addr)

        for number in range(40):
            own = short_tmp / f"s{number}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
                name = unix_name(chance, short_tmp)
                plain.bind(name)
                endpoint, _ = await loop.create_datagram_endpoint(
                    Hears, local_addr=str(own), family=socket.AF_UNIX
                )
                plain.sendto(b"data", str(own))
                await support.eventually(lambda number=number: len(seen) > number)
                endpoint.close()
                assert seen[-1] == plain.getsockname(), f"seed {seed}: {name!r}"
                await support.turns(2)
            await accepted_from(unix_name(chance, short_tmp), seed)

    async def accepted_from(name: Any, seed: int) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
        made = asyncio.get_running_loop().create_future()

        class Tells(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                made.set_result(transport)

        expected = listener.getsockname()
        server = await asyncio.get_running_loop().create_unix_server(Tells, sock=listener)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(expected)
            transport = await made
            assert transport.get_extra_info("sockname") == expected, f"seed {seed}: {name!r}"
            assert transport.get_extra_info("peername") == client.getsockname()
            transport.close()
            await support.turns(2)
        server.close()
        await server.wait_closed()

    run(main)
