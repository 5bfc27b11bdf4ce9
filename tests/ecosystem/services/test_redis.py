"""redis-py's asyncio client, on a Redis server: over TCP, over TLS and on a Unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import databases
import pytest
import redis.asyncio as redis
import trustme
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from loops import until


def client_of(server: databases.Redis, way: str = "tcp", **settings: Any) -> redis.Redis:
    # Waits for nothing but the test's own time limit, and has a connection for each who asks.
    settings = {"socket_timeout": None, "max_connections": 250, **settings}
    if way == "unix":
        return redis.Redis(unix_socket_path=server.unix_socket, **settings)
    if way == "tls":
        settings = {"ssl_ca_certs": str(server.certificates.authority), **settings}
        return redis.Redis(host="localhost", port=int(server.tls_port), ssl=True, **settings)
    return redis.Redis(port=int(server.port), **settings)


@pytest.mark.parametrize("way", ["tcp", "tls", "unix"])
async def test_commands_and_pipelines(redis_server: databases.Redis, way: str) -> None:
    async with client_of(redis_server, way) as client:
        await client.flushall()
        large = bytes(range(256)) * 8192
        assert await client.set("large", large)
        assert await client.get("large") == large
        async with client.pipeline(transaction=False) as pipe:
            for i in range(2000):
                pipe.set(f"key {i}", i).get(f"key {i}")
            answers = await pipe.execute()
        assert answers == [part for i in range(2000) for part in (True, b"%d" % i)]
        answers = await asyncio.gather(*(client.incr("counter") for _ in range(200)))
        assert sorted(answers) == list(range(1, 201))


async def test_transactions(redis_server: databases.Redis) -> None:
    async with client_of(redis_server) as client, client_of(redis_server) as other:
        await client.set("watched", 1)
        async with client.pipeline() as pipe:
            await pipe.watch("watched")
            await other.set("watched", 2)
            pipe.multi()
            pipe.set("watched", 3)
            with pytest.raises(redis.WatchError):
                await pipe.execute()
        assert await client.get("watched") == b"2"


@pytest.mark.parametrize("way", ["tcp", "tls"])
async def test_publish_and_subscribe(redis_server: databases.Redis, way: str) -> None:
    async with client_of(redis_server, way) as client, client.pubsub() as subscriber:
        await subscriber.subscribe("news")
        await subscriber.psubscribe("weather.*")
        heard: list[bytes] = []

        async def listen() -> None:
            async for message in subscriber.listen():
                if message["type"] in ("message", "pmessage"):
                    heard.append(message["data"])
                    if len(heard) == 600:
                        return

        listening = asyncio.create_task(listen())

        async def subscribed() -> bool:
            return bool(await client.pubsub_numpat()) and bool(
                dict(await client.pubsub_numsub("news"))[b"news"]
            )

        await until(subscribed)
        for i in range(300):
            assert await client.publish("news", i) == 1
            assert await client.publish(f"weather.{i}", -i) == 1
        await listening
        assert heard == [b"%d" % number for i in range(300) for number in (i, -i)]


async def test_cancelled_command(redis_server: databases.Redis) -> None:
    """One that waits at the server; what it waited for goes to the next who asks."""
    async with client_of(redis_server) as client:
        await client.delete("queue")
        waiting = asyncio.create_task(client.blpop("queue"))

        async def blocked(wanted: int) -> bool:
            info = await client.info("clients")
            return bool(info["blocked_clients"] == wanted)

        await until(lambda: blocked(1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: blocked(0))
        await client.rpush("queue", "for the next")
        assert list(await client.blpop("queue")) == [b"queue", b"for the next"]


@pytest.mark.parametrize("way", ["tcp", "tls"])
async def test_cancelled_at_any_time(redis_server: databases.Redis, way: str) -> None:
    """Wherever a cancellation falls, nobody gets an answer to another's question."""
    async with client_of(redis_server, way, max_connections=4) as client:
        for i in range(200):
            await client.set(f"own {i}", i)
        for i in range(200):
            asked = asyncio.create_task(client.get(f"own {i}"))
            for _ in range(i % 12):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            other = (i + 77) % 200
            assert await client.get(f"own {other}") == b"%d" % other


async def test_tls_refuses_a_strangers_certificate(
    redis_server: databases.Redis, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    async with client_of(redis_server, "tls", ssl_ca_certs=str(stranger)) as client:
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            await client.ping()


@pytest.mark.parametrize("way", ["tcp", "tls"])
async def test_many_connections(redis_server: databases.Redis, way: str) -> None:
    """Two hundred that wait for a value at the same time, each on its connection."""
    async with client_of(redis_server, way) as client:
        waiting = [asyncio.create_task(client.blpop(f"queue {i}")) for i in range(200)]

        async def all_wait() -> bool:
            info = await client.info("clients")
            return bool(info["blocked_clients"] == 200)

        await until(all_wait)
        for i in reversed(range(200)):
            await client.rpush(f"queue {i}", i)
        answers = [tuple(answer) for answer in await asyncio.gather(*waiting)]
        assert answers == [(b"queue %d" % i, b"%d" % i) for i in range(200)]


async def test_reconnects_after_the_server_was_killed(redis_server: databases.Redis) -> None:
    patient = Retry(ConstantBackoff(0.1), retries=100)
    async with (
        client_of(redis_server, retry=patient) as client,
        client_of(redis_server, retry=Retry(ConstantBackoff(0), retries=0)) as hasty,
    ):
        assert await client.ping() and await hasty.ping()
        waiting = asyncio.create_task(hasty.blpop("never"))
        await asyncio.sleep(0.1)
        # In a thread: the loop has to see its connections break meanwhile.
        await asyncio.to_thread(redis_server.kill)
        with pytest.raises(redis.ConnectionError):
            await waiting
        with pytest.raises(redis.ConnectionError):
            await hasty.ping()
        # Asked while nobody serves: it is answered when somebody does again.
        asked = asyncio.create_task(client.set("after", "the crash"))
        await asyncio.to_thread(redis_server.start)
        assert await asked
        assert await hasty.get("after") == b"the crash"
