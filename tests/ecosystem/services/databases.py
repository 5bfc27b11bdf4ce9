"""PostgreSQL and Redis as processes of the tests' own, on loopback, with their data in a folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from processes import eventually, find_program, free_port, kill, start

USER = "tester"


@dataclass(frozen=True)
class Certificates:
    """The files of a throw-away authority and of the certificate it gave the servers."""

    authority: Path
    certificate: Path
    key: Path


class Database:
    """A server that is started, killed and started again."""

    command: list[str]

    def __init__(self, folder: Path, account: dict[str, Any]) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        # What subprocess is told, so that the server runs as the user who owns the folder.
        self.account = account
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        try:
            eventually(self._started, "an answer")
        except AssertionError:
            raise AssertionError(
                f"{self.command[0]} does not run: {self.log.read_text()}"
            ) from None

    def _started(self) -> bool:
        # After a kill the first attempt may find that the one before has not quite gone.
        if self.process is None or self.process.poll() is not None:
            self.process = start(self.command, self.log, cwd=self.folder, **self.account)
        return self.answers()

    def answers(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        if self.process is not None:
            kill(self.process)


class PostgreSQL(Database):
    """Two ways in: in the clear, and over TLS with a certificate that is checked."""

    def __init__(self, folder: Path, account: dict[str, Any], certificates: Certificates) -> None:
        super().__init__(folder, account)
        self.certificates = certificates
        data = folder / "data"
        initdb = [required("initdb"), f"--pgdata={data}", f"--username={USER}", "--auth=trust"]
        initdb += ["--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **account)
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "max_connections": 150,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": certificates.certificate,
            "ssl_key_file": certificates.key,
        }
        self.command = [required("postgres"), "-D", str(data)]
        self.command += [f"--{name}={value}" for name, value in settings.items()]

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user={USER} dbname=postgres sslmode=disable"

    def tls_dsn(self, authority: Path | None = None) -> str:
        return (
            f"host=localhost hostaddr=127.0.0.1 port={self.port} user={USER} dbname=postgres"
            f" sslmode=verify-full sslrootcert={authority or self.certificates.authority}"
        )

    def answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn):
            return True
        return False

    def kill(self) -> None:
        # Its children are in groups of their own. Told so, it ends them at once and tidies nothing.
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()


class Redis(Database):
    """Three ways in: TCP in the clear, TCP over TLS, a Unix socket."""

    def __init__(self, folder: Path, account: dict[str, Any], certificates: Certificates) -> None:
        super().__init__(folder, account)
        self.certificates = certificates
        self.tls_port = free_port()
        self.unix_socket = str(folder / "socket")
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.unix_socket,
            "tls-port": self.tls_port,
            "tls-cert-file": certificates.certificate,
            "tls-key-file": certificates.key,
            "tls-ca-cert-file": certificates.authority,
            "tls-auth-clients": "no",
            "dir": folder,
            "save": "",
        }
        self.command = [required("redis-server")]
        for name, value in settings.items():
            self.command += [f"--{name}", str(value)]

    def answers(self) -> bool:
        import redis

        with contextlib.suppress(redis.ConnectionError):
            with redis.Redis(port=int(self.port)) as client:
                return bool(client.ping())
        return False


class MissingError(Exception):
    """A program is not installed; the text says which."""


def required(program: str) -> str:
    if found := find_program(program):
        return found
    raise MissingError(f"{program} is not installed here")


@contextlib.contextmanager
def running(kind: type[PostgreSQL | Redis], authority: trustme.CA) -> Iterator[Any]:
    """Run a database in a temporary folder, which goes with it."""
    account: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="cpploop-services-"))
    try:
        certificates = write_certificates(folder, authority)
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (folder, *folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        database = kind(folder, account, certificates)
        try:
            database.start()
            yield database
        finally:
            database.kill()
    finally:
        shutil.rmtree(folder)


def write_certificates(folder: Path, authority: trustme.CA) -> Certificates:
    """Have a certificate for loopback made."""
    files = Certificates(*(folder / name for name in ("authority.pem", "server.pem", "server.key")))
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(files.authority)
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    issued.private_key_pem.write_to_path(files.key)
    files.key.chmod(0o600)
    return files
