"""psycopg's asynchronous connections and pools, on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from databases import PostgreSQL
from psycopg_pool import AsyncConnectionPool

from loops import until

# Long enough that a query which is not cancelled fails the test by its time limit.
ENDLESS = "SELECT pg_sleep(3600)"


async def connect(dsn: str, **settings: Any) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True, **settings)


async def value(connection: psycopg.AsyncConnection[Any], query: str, *parameters: Any) -> Any:
    """Return the one value that QUERY selects."""
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


async def is_asleep(connection: psycopg.AsyncConnection[Any], pid: int) -> bool:
    """Whether the server's process PID runs a query."""
    query = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
    return bool(await value(connection, query, pid))


async def test_queries_and_transactions(postgres: PostgreSQL) -> None:
    async with await connect(postgres.dsn) as connection:
        await connection.execute("CREATE TEMPORARY TABLE points (x int, name text, raw bytea)")
        large = bytes(range(256)) * 8192
        async with connection.cursor() as cursor:
            rows = [(i, f"n{i}", large if i == 7 else b"") for i in range(500)]
            await cursor.executemany("INSERT INTO points VALUES (%s, %s, %s)", rows)
        assert await value(connection, "SELECT sum(x) FROM points") == sum(range(500))
        # Two mebibytes, which no read of a socket returns whole.
        assert await value(connection, "SELECT raw FROM points WHERE x = 7") == large
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection.transaction():
                await connection.execute("DELETE FROM points")
                await connection.execute("SELECT 1/0")
        assert await value(connection, "SELECT count(*) FROM points") == 500


async def test_copy_and_stream(postgres: PostgreSQL) -> None:
    async with await connect(postgres.dsn) as connection, connection.cursor() as cursor:
        await cursor.execute("CREATE TEMPORARY TABLE numbers (i int, text text)")
        async with cursor.copy("COPY numbers FROM STDIN") as into:
            for i in range(20_000):
                await into.write_row((i, "x" * (i % 50)))
        seen = [row async for row in cursor.stream("SELECT i FROM numbers ORDER BY i")]
        assert seen == [(i,) for i in range(20_000)]
        async with cursor.copy("COPY numbers TO STDOUT") as out:
            size = sum([len(block) async for block in out])
        assert size == sum(len(f"{i}\t{'x' * (i % 50)}\n") for i in range(20_000))


async def test_pipeline(postgres: PostgreSQL) -> None:
    async with await connect(postgres.dsn) as connection:
        await connection.execute("CREATE TEMPORARY TABLE piped (i int PRIMARY KEY)")
        async with connection.pipeline():
            cursors = [
                await connection.execute("INSERT INTO piped VALUES (%s) RETURNING i", (i,))
                for i in range(1000)
            ]
            answers = [await cursor.fetchone() for cursor in cursors]
        assert answers == [(i,) for i in range(1000)]
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with connection.pipeline():
                await connection.execute("INSERT INTO piped VALUES (1000)")
                await connection.execute("INSERT INTO piped VALUES (7)")
                await connection.execute("INSERT INTO piped VALUES (1001)")
        assert await value(connection, "SELECT count(*) FROM piped") >= 1000


async def test_listen_and_notify(postgres: PostgreSQL) -> None:
    async with await connect(postgres.dsn) as listener, await connect(postgres.dsn) as sender:
        await listener.execute("LISTEN news")
        heard: list[str] = []

        async def listen() -> None:
            async for notification in listener.notifies(stop_after=200):
                heard.append(notification.payload)

        listening = asyncio.create_task(listen())
        for i in range(200):
            await sender.execute("SELECT pg_notify('news', %s)", (str(i),))
        await listening
        assert heard[:200] == [str(i) for i in range(200)]
        # Waiting for news is what a task is cancelled in; the connection serves on.
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        assert await value(listener, "SELECT 1") == 1


async def test_cancelled_query(postgres: PostgreSQL) -> None:
    """The server stops it, and the connection serves on."""
    async with await connect(postgres.dsn) as connection, await connect(postgres.dsn) as observer:
        pid = connection.info.backend_pid
        query = asyncio.create_task(connection.execute(ENDLESS))
        await until(lambda: is_asleep(observer, pid))
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        assert await value(connection, "SELECT 42") == 42
        assert not await is_asleep(observer, pid)


async def test_cancelled_at_any_time(postgres: PostgreSQL) -> None:
    """Wherever a cancellation falls, the connection gives the right answers after, or is closed."""
    connection = await connect(postgres.dsn)
    for i in range(100):
        query = asyncio.create_task(value(connection, "SELECT %s::int", i))
        for _ in range(i % 10):
            await asyncio.sleep(0)
        query.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await query == i
        if connection.closed:
            connection = await connect(postgres.dsn)
        assert await value(connection, "SELECT %s::int", -i) == -i
    await connection.close()


async def test_pool_outlives_cancellations(postgres: PostgreSQL) -> None:
    async with AsyncConnectionPool(postgres.dsn, min_size=4, max_size=4) as pool:

        async def ask(query: str) -> Any:
            async with pool.connection() as connection:
                return await value(connection, query)

        # Four are in flight, and as many wait for their turn.
        doomed = [asyncio.create_task(ask(ENDLESS)) for _ in range(8)]
        await asyncio.sleep(0.2)
        for task in doomed:
            task.cancel()
        ended = await asyncio.gather(*doomed, return_exceptions=True)
        assert {type(end) for end in ended} == {asyncio.CancelledError}
        answers = await asyncio.gather(*(ask(f"SELECT {i}") for i in range(40)))
        assert answers == list(range(40))
        assert pool.get_stats()["pool_size"] == 4


async def test_tls(postgres: PostgreSQL) -> None:
    async with await connect(postgres.tls_dsn()) as connection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await value(connection, query) is True
        text = "€" * 500_000
        assert await value(connection, "SELECT %s::text || 'end'", text) == text + "end"
        answers = [await value(connection, "SELECT %s::int", i) for i in range(100)]
        assert answers == list(range(100))


async def test_tls_refuses_a_strangers_certificate(postgres: PostgreSQL, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        await connect(postgres.tls_dsn(stranger))


async def test_many_connections(postgres: PostgreSQL) -> None:
    """A hundred at once, each with a process of the server's own."""
    everybody = asyncio.Barrier(100)

    async def one() -> int:
        async with await connect(postgres.dsn) as connection:
            await everybody.wait()
            pid: int = await value(connection, "SELECT pg_backend_pid()")
            assert pid == connection.info.backend_pid
            return pid

    pids = await asyncio.gather(*(one() for _ in range(100)))
    assert len(set(pids)) == 100


async def test_reconnects_after_the_server_was_killed(postgres: PostgreSQL) -> None:
    pool = AsyncConnectionPool(
        postgres.dsn, min_size=2, open=False, check=AsyncConnectionPool.check_connection
    )
    async with pool, await connect(postgres.dsn) as connection:
        await pool.wait()
        waiting = asyncio.create_task(connection.execute(ENDLESS))
        await asyncio.sleep(0.1)
        # In a thread: the loop has to see its connections break meanwhile.
        await asyncio.to_thread(postgres.kill)
        with pytest.raises(psycopg.OperationalError):
            await waiting
        assert connection.closed and connection.broken
        with pytest.raises(psycopg.OperationalError):
            await connect(postgres.dsn)
        await asyncio.to_thread(postgres.start)
        async with pool.connection() as fresh:
            assert await value(fresh, "SELECT 7") == 7
