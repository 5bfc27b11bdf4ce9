"""SQLAlchemy's asynchronous engine on PostgreSQL, by way of psycopg and of asyncpg.

The two drivers ask different things of a loop: psycopg watches libpq's descriptor, and asyncpg is a
protocol on the loop's own transports, which it puts TLS on with start_tls().
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from databases import PostgreSQL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from loops import until

pytestmark = pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])


def table(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("text", sa.String),
        prefixes=["TEMPORARY"],
    )


@asynccontextmanager
async def engine_of(
    postgres: PostgreSQL, driver: str, *, tls: bool = False, **options: Any
) -> AsyncIterator[AsyncEngine]:
    url = f"postgresql+{driver}://tester@localhost:{postgres.port}/postgres"
    arguments: dict[str, Any]
    if driver == "asyncpg":
        context = ssl.create_default_context(cafile=postgres.certificates.authority)
        arguments = {"ssl": context if tls else False}
    else:
        authority = str(postgres.certificates.authority)
        arguments = {"sslmode": "verify-full", "sslrootcert": authority, "hostaddr": "127.0.0.1"}
        if not tls:
            arguments = {"sslmode": "disable", "hostaddr": "127.0.0.1"}
    engine = create_async_engine(url, connect_args=arguments, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def ask(engine: AsyncEngine, text: str) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(sa.text(text))


async def test_queries_and_transactions(postgres: PostgreSQL, driver: str) -> None:
    words = table("words")
    async with engine_of(postgres, driver) as engine, engine.connect() as connection:
        await connection.run_sync(words.create)
        await connection.execute(words.insert(), [{"id": i, "text": "w" * i} for i in range(500)])
        await connection.commit()
        with pytest.raises(sa.exc.IntegrityError):
            async with connection.begin():
                await connection.execute(words.delete().where(words.c.id > 10))
                await connection.execute(words.insert(), {"id": 7, "text": "again"})
        result = await connection.stream(sa.select(words).order_by(words.c.id))
        seen = [(row.id, len(row.text)) async for row in result]
        assert seen == [(i, i) for i in range(500)]


async def test_tls(postgres: PostgreSQL, driver: str) -> None:
    async with engine_of(postgres, driver, tls=True) as engine:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await ask(engine, query) is True
        assert len(await ask(engine, "SELECT repeat('x', 3000000)")) == 3_000_000
        answers = await asyncio.gather(*(ask(engine, f"SELECT {i}") for i in range(50)))
        assert answers == list(range(50))


async def test_pool_under_many_tasks(postgres: PostgreSQL, driver: str) -> None:
    async with engine_of(postgres, driver, pool_size=20, max_overflow=0) as engine:
        answers = await asyncio.gather(*(ask(engine, f"SELECT {i}") for i in range(400)))
        assert answers == list(range(400))
        pids = await asyncio.gather(
            *(ask(engine, "SELECT pg_backend_pid() FROM pg_sleep(0.05)") for _ in range(20))
        )
        assert len(set(pids)) == 20


async def test_cancelled_query(postgres: PostgreSQL, driver: str) -> None:
    """The server stops it, and the pool serves on, with what it has or with new connections."""
    name = f"asleep on {driver}"
    asleep = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE wait_event = 'PgSleep' AND query LIKE '%{name}'"
    )
    async with (
        engine_of(postgres, driver, pool_size=4, max_overflow=0) as engine,
        engine_of(postgres, driver) as observer,
    ):
        query = f"SELECT pg_sleep(3600) -- {name}"
        doomed = [asyncio.create_task(ask(engine, query)) for _ in range(4)]

        async def sleeping(wanted: int) -> bool:
            return bool(await ask(observer, asleep) == wanted)

        await until(lambda: sleeping(4))
        for task in doomed:
            task.cancel()
        ended = await asyncio.gather(*doomed, return_exceptions=True)
        assert {type(end) for end in ended} == {asyncio.CancelledError}
        await until(lambda: sleeping(0))
        answers = await asyncio.gather(*(ask(engine, f"SELECT {i}") for i in range(40)))
        assert answers == list(range(40))


async def test_reconnects_after_the_server_was_killed(postgres: PostgreSQL, driver: str) -> None:
    async with engine_of(postgres, driver, pool_pre_ping=True) as engine:
        first = await ask(engine, "SELECT pg_backend_pid()")
        assert await ask(engine, "SELECT pg_backend_pid()") == first
        with pytest.raises(sa.exc.DBAPIError):
            async with engine.connect() as connection:
                await connection.scalar(sa.text("SELECT 1"))
                await asyncio.to_thread(postgres.kill)
                await connection.scalar(sa.text("SELECT 1"))
        await asyncio.to_thread(postgres.start)
        assert await ask(engine, "SELECT 7") == 7
