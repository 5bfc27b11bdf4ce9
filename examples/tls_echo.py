"""TLS: hand an SSLContext to the server and to the client, and the protocol stays as it was.

The protocol is that of echo_server.py, unchanged. Two things are different under TLS and worth
knowing: there is no half-close (can_write_eof() is False), and a true value from eof_received() has
no effect.

    python examples/tls_echo.py
    python -m cpploop examples/tls_echo.py
"""

import asyncio

from certificates import make_contexts
from echo_server import EchoServerProtocol


async def main() -> None:
    loop = asyncio.get_running_loop()
    server_context, client_context = make_contexts()
    gone = asyncio.Event()
    async with await loop.create_server(
        lambda: EchoServerProtocol(gone), "127.0.0.1", 0, ssl=server_context
    ) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context, server_hostname="localhost"
        )
        writer.write(b"A secret.\n")
        answer = await reader.readline()
        print(f"The client heard: {answer.decode().rstrip()}")

        tls = writer.get_extra_info("ssl_object")
        names = [name for _, name in writer.get_extra_info("peercert")["subjectAltName"]]
        print(f"Spoken over: {tls.version()}")
        print(f"The certificate is for: {', '.join(sorted(names))}")
        print(f"The context is ours: {writer.get_extra_info('sslcontext') is client_context}")
        print(f"Half-close is possible: {writer.can_write_eof()}")
        writer.close()
        await writer.wait_closed()
        await gone.wait()

        # A client that does not trust the certificate ends before a single byte of the protocol.
        try:
            await asyncio.open_connection("127.0.0.1", port, ssl=True, server_hostname="localhost")
        except OSError as exc:
            print(f"A stranger's client: {type(exc).__name__}")


if __name__ == "__main__":
    asyncio.run(main())
