"""What the stress run holds to be wrong: it must notice what it is there to notice.

It runs in a process of its own, because its modules have names that others could have as well.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import support

PRELUDE = f"""
import asyncio, os, random, ssl, sys, tempfile
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).resolve().parent.parent / "stress")!r})
import run as stress
from clients import Asking, Clients
from servers import Answering, Servers
from tagged import Account, has_a_reason

def foreign(transport):
    # As if somebody else's bytes came to this connection's descriptor.
    os.write(transport.get_extra_info("socket").fileno(), b"somebody else's bytes" * 10)

"""

ONE_CONNECTION = """
side, way, hard, debug = sys.argv[1], sys.argv[2], sys.argv[3] == "hard", sys.argv[4] == "debug"

class Meddled:
    def connection_made(self, transport):
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext") is not None:
            # When the handshake's last words are out.
            asyncio.get_running_loop().call_soon(foreign, transport)

class MeddledClient(Meddled, Asking):
    pass

class MeddledServer(Meddled, Answering):
    pass

import clients, servers
if side == "client":
    clients.Asking = MeddledClient
elif side == "server":
    servers.Answering = MeddledServer

async def main():
    with tempfile.TemporaryDirectory() as folder:
        certificates = support.make_certificates(Path(folder))
        tls = certificates.server_context(), certificates.client_context()
        account.hard = hard
        phase = stress.Phase(type("Run", (), {"account": account}), random.Random(1), hard)
        asyncio.get_running_loop().set_exception_handler(phase._on_error)
        serving = Servers(account, random.Random(1), Path(folder), tls[0])
        await serving.start()
        asking = Clients(account, random.Random(1), serving, tls[1])
        if side == "handshake":
            reader, writer = await asyncio.open_connection(*serving.addresses["tls"])
            foreign(writer.transport)
            await reader.read()
            writer.close()
        else:
            task = asyncio.ensure_future(asking.ways[way](1))
            await asyncio.wait({task}, timeout=20)
            # As if it was to be cancelled: that alone is no excuse.
            phase._judge(way, task, cancels=True)
            await phase._all_lost(asking, serving)
        await serving.stop()

account = Account()
with asyncio.Runner(loop_factory=factory, debug=debug) as runner:
    runner.run(main())
print(*account.problems, sep="\\n")
"""


@pytest.mark.parametrize("kind", ["cancelled", "hard"])
@pytest.mark.parametrize("way", ["tls", "start_tls"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_foreign_bytes_within_tls_are_noticed(
    loop_name: str, side: str, way: str, kind: str
) -> None:
    """Neither the cancellation of a connection nor system calls that fail excuse them."""
    source = PRELUDE + ONE_CONNECTION
    result = support.run_script(source, side, way, kind, "", loop=loop_name)
    assert "without a reason" in result.stdout, result.stdout + result.stderr
    assert "ssl.SSLError" in result.stdout


@pytest.mark.parametrize("kind", ["cancelled", "hard"])
def test_foreign_bytes_in_a_handshake_are_noticed(loop_name: str, kind: str) -> None:
    """A server tells of a handshake that failed in debug mode alone."""
    result = support.run_script(
        PRELUDE + ONE_CONNECTION, "handshake", "", kind, "debug", loop=loop_name
    )
    assert "Error on transport creation" in result.stdout, result.stdout + result.stderr
    assert "ssl.SSLError" in result.stdout


def test_which_errors_have_a_reason() -> None:
    source = """
    def tls_error(reason, kind=ssl.SSLError):
        exc = kind(1, reason)
        exc.reason = reason
        return exc

    never = [
        tls_error(reason)
        for reason in (
            "WRONG_VERSION_NUMBER",
            "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
            "BAD_RECORD_TYPE",
            "UNEXPECTED_MESSAGE",
            "SSLV3_ALERT_BAD_RECORD_MAC",
            "CERTIFICATE_VERIFY_FAILED",
        )
    ]
    assert not any(has_a_reason(exc, hard) for exc in never for hard in (False, True))
    always = [
        None,
        ConnectionResetError(),
        BrokenPipeError(),
        tls_error("UNEXPECTED_EOF_WHILE_READING", ssl.SSLEOFError),
        tls_error("APPLICATION_DATA_AFTER_CLOSE_NOTIFY"),
    ]
    assert all(has_a_reason(exc, hard) for exc in always for hard in (False, True))
    with_faults = [OSError(24, "too many files"), TimeoutError()]
    assert [has_a_reason(exc, hard) for exc in with_faults for hard in (False, True)] == [
        False, True, False, True,
    ]
    assert not has_a_reason(ValueError(), True)
    """
    support.run_script(PRELUDE + textwrap.dedent(source))
