"""What a loop counts of its own work, and who exports it (uv#322, ray#45097)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import support

cpploop = pytest.importorskip("cpploop")

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="asyncio's loops count nothing"
)


@pytest.fixture
def loop() -> Iterator[Any]:
    loop = cpploop.new_event_loop()
    yield loop
    loop.close()


def test_a_new_loop_has_done_nothing(loop: Any) -> None:
    metrics = loop.metrics()
    for field in dataclasses.fields(metrics):
        value = getattr(metrics, field.name)
        if field.name == "busy_periods":
            assert all(count == 0 for _, count in value)
        else:
            assert not value, field.name
    assert metrics.utilisation == 0
    assert metrics.lag(0.99) == 0


def test_counts_of_one_connection(loop: Any) -> None:
    async def echo(reader: Any, writer: Any) -> None:
        writer.write(await reader.readexactly(1000))
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(bytes(1000))
        await reader.readexactly(1000)
        metrics = loop.metrics()
        assert metrics.accepted == 1
        assert metrics.bytes_received == 2000
        assert metrics.bytes_sent == 2000
        assert metrics.transports == {"stream": 2}
        assert metrics.events >= 3
        assert metrics.callbacks > metrics.events
        assert metrics.waits <= metrics.turns
        writer.close()
        await writer.wait_closed()
        await support.eventually(lambda: loop.metrics().transports == {})
        server.close()

    loop.run_until_complete(main())


def test_datagrams_and_pipes_count(loop: Any) -> None:
    async def main() -> None:
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        transport.sendto(bytes(100), transport.get_extra_info("sockname"))
        await support.eventually(lambda: loop.metrics().bytes_received == 100)
        assert loop.metrics().bytes_sent == 100
        assert loop.metrics().transports == {"datagram": 1}
        transport.close()

        read_end, write_end = os.pipe()
        reading, _ = await loop.connect_read_pipe(asyncio.Protocol, open(read_end, "rb", 0))
        writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, open(write_end, "wb", 0))
        writing.write(bytes(50))
        await support.eventually(lambda: loop.metrics().bytes_received == 150)
        assert loop.metrics().bytes_sent == 150
        assert loop.metrics().transports == {"read_pipe": 1, "write_pipe": 1}
        writing.close()
        reading.close()
        await support.eventually(lambda: loop.metrics().transports == {})

    loop.run_until_complete(main())


class OwnSocket(socket.socket):
    """One with a method of its own, which the engine leaves to asyncio's transport."""

    def recv(self, *args: Any) -> bytes:
        return super().recv(*args)


def own(sock: socket.socket) -> OwnSocket:
    return OwnSocket(sock.family, sock.type, fileno=sock.detach())


def test_transports_of_asyncio_count(loop: Any) -> None:
    async def main() -> None:
        (ours, peer), (datagrams, other) = (
            socket.socketpair(socket.AF_UNIX, kind)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        )
        with peer, other:
            stream, _ = await loop.create_connection(asyncio.Protocol, sock=own(ours))
            assert not isinstance(stream, cpploop._native.StreamTransport)
            datagram, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, sock=own(datagrams)
            )
            assert loop.metrics().transports == {"stream": 1, "datagram": 1}
            # Their bytes do not pass the engine.
            stream.write(b"out")
            assert peer.recv(10) == b"out"
            assert (loop.metrics().bytes_received, loop.metrics().bytes_sent) == (0, 0)
            stream.abort()
            await support.eventually(lambda: loop.metrics().transports == {"datagram": 1})
            # The loop's list still has it, since this frame has.
            assert stream in loop._transports.values()
            datagram.abort()
            await support.eventually(lambda: loop.metrics().transports == {})

    loop.run_until_complete(main())


@pytest.mark.parametrize("tier", ["asyncio", "bio", "auto"])
def test_tls_is_told_from_plain_streams(
    loop: Any, certs: support.Certificates, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    """Whoever encrypts it."""
    monkeypatch.setenv("CPPLOOP_TLS", tier)

    async def main() -> None:
        server = await loop.create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=certs.server_context()
        )
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname(), ssl=certs.client_context()
        )
        await support.eventually(lambda: loop.metrics().transports.get("stream") == 2)
        assert loop.metrics().transports == {"stream": 2, "tls": 2}
        transport.abort()
        server.close()
        await support.eventually(lambda: loop.metrics().transports == {})

    loop.run_until_complete(main())


def test_timers_and_what_is_ready(loop: Any) -> None:
    for delay in range(5):
        loop.call_later(3600 + delay, int)
    loop.call_later(3600, int).cancel()
    for _ in range(3):
        loop.call_soon(int)
    assert loop.metrics().timers == 5
    assert loop.metrics().ready == 3
    loop.call_later(0, loop.stop)
    loop.run_forever()
    metrics = loop.metrics()
    assert (metrics.ready, metrics.timers, metrics.timers_fired) == (0, 5, 1)
    assert metrics.ready_peak == 4


def test_time_is_split_into_busy_and_waiting(loop: Any) -> None:
    async def main() -> None:
        await asyncio.sleep(0.1)
        time.sleep(0.05)
        await asyncio.sleep(0)

    # Nobody has asked yet.
    loop.run_until_complete(asyncio.sleep(0.02))
    assert loop.metrics().waited == loop.metrics().busy == 0
    loop.run_until_complete(main())
    # What happens while the loop does not run is nobody's time.
    time.sleep(0.1)
    loop.run_until_complete(asyncio.sleep(0))
    metrics = loop.metrics()
    assert 0.09 < metrics.waited < 0.1 * support.TIME_SCALE + 0.1
    assert 0.05 <= metrics.busy < metrics.waited + 0.05 * support.TIME_SCALE
    assert 0 < metrics.utilisation < 1
    assert metrics.utilisation == metrics.busy / (metrics.busy + metrics.waited)
    # The one long period among the short ones.
    assert metrics.lag(1.0) >= 0.05


def test_lag_is_a_bound(loop: Any) -> None:
    loop.run_until_complete(asyncio.sleep(0))
    metrics = dataclasses.replace(
        loop.metrics(), busy_periods=((1e-6, 0), (2e-6, 90), (4e-6, 99), (math.inf, 100))
    )
    assert [metrics.lag(q) for q in (0, 0.5, 0.9, 0.91, 0.99, 1)] == [
        *(1e-6, 2e-6, 2e-6, 4e-6, 4e-6, math.inf)
    ]
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="quantile must be between 0 and 1"):
            metrics.lag(wrong)


def test_lag_is_infinite_from_where_it_is_said_to_be(loop: Any) -> None:
    metrics = loop.metrics()
    *finite, last = (bound for bound, _ in metrics.busy_periods)
    assert finite == [2**power / 1e6 for power in range(23)]
    assert last == math.inf
    assert f" {finite[-1]:.6f} seconds or more" in cpploop.LoopMetrics.lag.__doc__

    def lag_of(bucket: int) -> float:
        counts = [(bound, int(n >= bucket)) for n, (bound, _) in enumerate(metrics.busy_periods)]
        lag: float = dataclasses.replace(metrics, busy_periods=tuple(counts)).lag(1.0)
        return lag

    assert (lag_of(22), lag_of(23)) == (4.194304, math.inf)


def test_wake_ups_by_other_threads(loop: Any) -> None:
    async def main() -> None:
        for _ in range(3):
            await asyncio.to_thread(time.sleep, 0.01)

    loop.run_until_complete(main())
    # Some may find the loop awake.
    assert loop.metrics().wake_ups >= 1


@pytest.mark.skipif(support.FREE_THREADED, reason="there another thread may not look")
def test_another_thread_may_look_while_the_loop_is_blocked(loop: Any) -> None:
    looks = []

    def look() -> None:
        time.sleep(0.05)
        looks.append(loop.metrics())

    async def main() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    loop.run_until_complete(main())
    assert looks[0].turns >= 1


@pytest.mark.skipif(not support.FREE_THREADED, reason="with the lock other threads may look")
def test_another_thread_is_refused_without_the_lock(loop: Any) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(loop.metrics)

    loop.run_until_complete(main())


def test_metrics_after_close() -> None:
    loop = cpploop.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    metrics = loop.metrics()
    assert metrics.turns >= 1
    assert (metrics.ready, metrics.timers, metrics.transports) == (0, 0, {})


def test_prometheus(loop: Any) -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from cpploop.prometheus import LoopCollector

    other = cpploop.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0.01))
    registry = prometheus_client.CollectorRegistry()
    registry.register(LoopCollector(api=loop, jobs=other))

    def value(name: str, **labels: str) -> float | None:
        result: float | None = registry.get_sample_value(name, labels)
        return result

    metrics = loop.metrics()
    assert value("cpploop_turns_total", loop="api") == metrics.turns
    assert value("cpploop_turns_total", loop="jobs") == 0
    assert value("cpploop_busy_period_seconds_count", loop="api") == metrics.busy_periods[-1][1]
    assert value("cpploop_busy_period_seconds_sum", loop="api") == metrics.busy
    other.close()
    assert value("cpploop_turns_total", loop="jobs") is None
    text = prometheus_client.generate_latest(registry).decode()
    assert "# TYPE cpploop_bytes_received_total counter" in text


def test_exporters_ask_from_their_own_thread(loop: Any) -> None:
    """While the loop runs, as a scrape does; one that is blocked is no reason to fail."""
    prometheus_client = pytest.importorskip("prometheus_client")
    from cpploop.prometheus import LoopCollector

    registry = prometheus_client.CollectorRegistry()
    registry.register(LoopCollector(api=loop))

    def turns() -> float | None:
        found: float | None = registry.get_sample_value("cpploop_turns_total", {"loop": "api"})
        return found

    async def main() -> None:
        first = await asyncio.to_thread(turns)
        second = await asyncio.to_thread(turns)
        assert first is not None and second is not None and second > first > 0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(turns).result(timeout=20)
        assert (blocked is None) == support.FREE_THREADED

    loop.run_until_complete(main())


def test_opentelemetry(loop: Any) -> None:
    pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from cpploop.opentelemetry import observe

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe(provider.get_meter("test"), api=loop)
    # Times are measured from the first look on.
    loop.metrics()

    async def connect() -> tuple[Any, Any]:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname()
        )
        transport.write(bytes(1000))
        await support.eventually(lambda: loop.metrics().bytes_received == 1000)
        time.sleep(0.02)
        await asyncio.sleep(0)
        return transport, server

    async def disconnect(transport: Any, server: Any) -> None:
        transport.close()
        server.close()
        await support.eventually(lambda: loop.metrics().transports == {})

    transport, server = loop.run_until_complete(connect())
    # The loop stands still while it is looked at.
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: {tuple(sorted(p.attributes.items())): p.value for p in metric.data.data_points}
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    metrics = loop.metrics()
    api = ("loop", "api")
    assert found["cpploop.turns"] == {(api,): metrics.turns}
    assert found["cpploop.bytes_sent"] == {(api,): 1000}
    assert found["cpploop.bytes_received"] == {(api,): 1000}
    assert found["cpploop.transports"] == {(("kind", "stream"), api): 2}
    assert found["cpploop.lag"] == {
        (api, ("quantile", str(q))): metrics.lag(q) for q in (0.5, 0.9, 0.99)
    }
    assert min(found["cpploop.lag"].values()) > 0
    provider.shutdown()
    loop.run_until_complete(disconnect(transport, server))
