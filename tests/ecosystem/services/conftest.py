"""The databases that the tests share, one of each for the whole run, and the loop of each test."""

from __future__ import annotations

from collections.abc import Iterator

import databases
import pytest
import trustme

pytest_plugins = ["loops"]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that nobody trusts but these tests."""
    return trustme.CA()


@pytest.fixture(scope="session")
def postgres(authority: trustme.CA) -> Iterator[databases.PostgreSQL]:
    yield from shared(databases.PostgreSQL, authority)


@pytest.fixture(scope="session")
def redis_server(authority: trustme.CA) -> Iterator[databases.Redis]:
    yield from shared(databases.Redis, authority)


def shared(
    kind: type[databases.PostgreSQL | databases.Redis], authority: trustme.CA
) -> Iterator[databases.Database]:
    try:
        with databases.running(kind, authority) as database:
            yield database
    except databases.MissingError as error:
        pytest.skip(f"no test of {kind.__name__}: {error}")
