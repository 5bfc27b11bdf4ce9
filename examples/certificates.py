"""A certificate for 127.0.0.1 and localhost, made on the spot, for tls_echo.py.

`trustme` makes it where it is installed; else the `openssl` command does. Never a way to get a
certificate for anything but a test.
"""

import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path


def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a fresh certificate, and a client's context that trusts it."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    try:
        import trustme
    except ImportError:
        _with_openssl(server, client)
    else:
        authority = trustme.CA()
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
    return server, client


def _with_openssl(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise SystemExit("A certificate is needed: install the Python package trustme, or openssl.")
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-days", "2", "-subj", "/CN=cpploop example"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        # Strict verification, the default from Python 3.13 on, asks a trusted root for this.
        command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        server.load_cert_chain(certificate, key)
        client.load_verify_locations(certificate)
