"""The catalogue: every row there is, its family, how it is run, and which loops can run it.

Nothing here runs anything, so that the plan of a run can be made, and tested, without a loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loops import BASE, CONTROL, FLOOR, SUBJECT

SIZES = {"1k": 1024, "16k": 16 * 1024, "100k": 100 * 1024}
CONNECTIONS = (1, 8, 64)
STREAM_MODES = ("proto", "buffered", "streams")
ECHO_MODES = (*STREAM_MODES, "sock")
WEB_SERVERS = {"uvicorn": "asgi.py", "aiohttp": "aioweb.py"}
TIER_0 = "cpploop-bio"  # Differs from cpploop where there is TLS.
HELLO = 13  # Bytes of "Hello, world!", the answer of everybody's plain-text benchmark.

# The order of the page. The second part of each is its title.
FAMILIES = {
    "echo": "Echo by protocol",
    "streams": "Streams",
    "sock": "The loop's sock_ methods",
    "web": "Web servers",
    "tls": "TLS",
    "scheduling": "Callbacks, timers and tasks",
    "transfer": "Data inside one process",
    "setup": "Connections, names and children",
    "footprint": "Memory and start",
    "fairness": "Fairness and latency",
}


@dataclass(frozen=True)
class Measure:
    """What a cell's figure is."""

    field: str  # Of the cell.
    unit: str
    lower_is_better: bool = False
    # What has to stay put for a round to count. A high percentile moves with every hiccup of the
    # machine, on a day when nothing is wrong with it, too.
    control_field: str | None = None

    @property
    def is_tail(self) -> bool:
        return self.field == "p99_us"


REQUESTS = Measure("value", "requests/s")
OPERATIONS = Measure("value", "operations/s")
P99 = Measure("p99_us", "µs, 99th percentile", lower_is_better=True, control_field="cpu_us")
# At a fixed rate a server that is never idle has the same CPU per request on any day.
P99_NEVER_IDLE = dataclasses.replace(P99, control_field="p50_us")
# Not the peak itself, which is the interpreter's and its libraries' more than the loop's.
MEMORY_GROWTH = Measure("grown_kib", "KiB more at its peak", lower_is_better=True)
KIB_EACH = Measure("value", "KiB each", lower_is_better=True)
BYTES_EACH = Measure("value", "bytes each", lower_is_better=True)
MILLISECONDS = Measure("value", "ms of CPU", lower_is_better=True)


@dataclass(frozen=True)
class Served:
    """A server in a process of its own, and what the load generator does to it."""

    server: tuple[str, ...]  # The script under servers/ and its arguments.
    load: tuple[str, ...]  # The load generator's arguments.
    unix: bool = False
    tls: bool = False
    has_floor: bool = False
    # Open loop: the part of the load that the loop everybody compares with can just carry.
    load_share: float | None = None
    never_idle: bool = False  # Its CPU time is the window's length, and says nothing.


@dataclass(frozen=True)
class Repeated:
    """A small program that one process repeats until the time is up."""

    module: str
    function: str


@dataclass(frozen=True)
class Probed:
    """A function that measures something once in a fresh process."""

    function: str  # Of footprint_rows.
    seconds: float  # About what it takes, for the plan.


@dataclass(frozen=True)
class Row:
    """One row of the tables."""

    name: str
    family: str
    run: Served | Repeated | Probed
    measure: Measure
    # The best two rivals when all were last measured: they take part in the short run.
    rivals: tuple[str, ...] = ()
    in_bench: bool = False
    counted: bool = False  # Whether instructions and system calls per request mean something.
    # A package that only brings transports schedules as its host does.
    uses_transports: bool = True
    # Loops that cannot do it, with the reason and the version that was tried.
    stays_away: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_floor(self) -> bool:
        return isinstance(self.run, Served) and self.run.has_floor

    def can_run(self, loop: str, transports_only: bool = False) -> bool:
        """Whether `loop` can take part; `transports_only` for one that only brings transports."""
        if loop == FLOOR:
            return self.has_floor
        if loop == TIER_0 and not (isinstance(self.run, Served) and self.run.tls):
            return False
        return loop not in self.stays_away and (self.uses_transports or not transports_only)


# The best two of the last run of everything, by row. A full run says where this has changed.
_RIVALS: dict[str, tuple[str, str]] = {
    "proto-1k-8": ("zuvloop", "rloop"),
    "proto-1k-64": ("zuvloop", "aiofastnet-uvloop"),
    "proto-100k-8": ("rloop", "zloop"),
    "buffered-1k-64": ("aiofastnet-uvloop", "blazio"),
    "buffered-100k-8": ("zloop", "zuvloop"),
    "streams-1k-8": ("rsloop", "blazio"),
    "streams-1k-64": ("rsloop", "zuvloop"),
    "streams-100k-8": ("rloop", "rsloop"),
    "sock-1k-8": ("rloop", "rsloop"),
    "sock-100k-8": ("rloop", "rsloop"),
    "sock_ping_pong": ("blazio", "rloop"),
    "uvicorn-64": ("blazio", "zuvloop"),
    "aiohttp-64": ("blazio", "zuvloop"),
    "uvicorn-tls-64": ("aiofastnet-uvloop", "zuvloop"),
    "aiohttp-tls-64": ("aiofastnet-uvloop", "zuvloop"),
    "tls-handshake-full": ("zuvloop", "aiofastnet-asyncio"),
    "call_soon": ("rloop", "zuvloop"),
    "call_soon_3_args": ("zuvloop", "rloop"),
    "call_soon_chained": ("rloop", "zuvloop"),
    "call_soon_threadsafe": ("zuvloop", "rloop"),
    "call_later_cancel": ("zuvloop", "blazio"),
    "timers_100k": ("zloop", "rloop"),
    "sleep_0": ("rloop", "zuvloop"),
    "gather_100": ("zuvloop", "rloop"),
    "bulk_write": ("zuvloop", "rloop"),
    "readline_64": ("blazio", "zuvloop"),
    "connect_close": ("rsloop", "zuvloop"),
    "udp_echo": ("zuvloop", "rloop"),
    "getaddrinfo_literal": ("rsloop", "zuvloop"),
    "spawn_wait": ("zuvloop", "rloop"),
    "run_in_executor": ("blazio", "zuvloop"),
}
_USUAL_RIVALS = ("zuvloop", "rloop")
_USUAL_TLS_RIVALS = ("aiofastnet-uvloop", "aiofastnet-asyncio")
_STALLS_OVER_TLS = dict.fromkeys(("zloop", "zloop-io_uring"), "its TLS stalls (0.0.1 was tried)")

# The rows of the short run whose name is made below; the others say so where they are made.
_BENCH_SERVERS = {
    *("proto-1k-8", "proto-1k-64", "proto-100k-8"),
    *("buffered-1k-64", "buffered-100k-8"),
    *("streams-1k-8", "streams-1k-64", "streams-100k-8"),
    *("sock-1k-8", "sock-100k-8"),
    *("uvicorn-64", "aiohttp-64"),
    *("tls-proto-1k-64", "tls-proto-16k-8", "tls-proto-100k-8", "tls-streams-1k-64"),
    *("tls-handshake-full", "tls-handshake-resumed", "uvicorn-tls-64", "aiohttp-tls-64"),
}
_COUNTED = {"proto-1k-64", "streams-1k-64", "uvicorn-64", "aiohttp-64", "uvicorn-tls-64"}


def _served(name: str, family: str, run: Served, measure: Measure = REQUESTS) -> Row:
    usual = _USUAL_TLS_RIVALS if run.tls else _USUAL_RIVALS
    return Row(
        name,
        family,
        run,
        measure,
        rivals=_RIVALS.get(name, usual),
        in_bench=name in _BENCH_SERVERS,
        counted=name in _COUNTED,
        stays_away=_STALLS_OVER_TLS if run.tls else {},
    )


def _echo_load(size: int, connections: int) -> tuple[str, ...]:
    return ("--mode", "echo", "--size", str(size), "--connections", str(connections))


def _echo_rows() -> list[Row]:
    rows = []
    for suffix in ("", "-unix"):
        for mode in ECHO_MODES:
            family = "echo" if mode in ("proto", "buffered") else mode
            for size in ("1k", "100k"):
                for count in CONNECTIONS:
                    load = _echo_load(SIZES[size], count)
                    run = Served(("echo.py", mode), load, unix=bool(suffix), has_floor=True)
                    rows.append(_served(f"{mode}-{size}-{count}{suffix}", family, run))
    return rows


def _web_run(server: str, path: str, body: int, connections: int, tls: bool = False) -> Served:
    load = ("--mode", "http", "--path", path, "--body-size", str(body))
    load += ("--connections", str(connections), *(("--tls", "1") if tls else ()))
    return Served((WEB_SERVERS[server],), load, tls=tls)


def _web_rows() -> list[Row]:
    rows = []
    for server in WEB_SERVERS:
        for kind, path, body in (
            ("", f"/bytes/{HELLO}", HELLO),
            ("-100k", f"/bytes/{SIZES['100k']}", SIZES["100k"]),
            ("-chunked", f"/chunked/{SIZES['1k']}", SIZES["1k"]),
        ):
            # Small answers to so many that one wait finds dozens of requests.
            for count in (*CONNECTIONS, 256) if kind == "" else CONNECTIONS:
                run = _web_run(server, path, body, count)
                rows.append(_served(f"{server}{kind}-{count}", "web", run))
    return rows


def _tls_rows() -> list[Row]:
    rows = []
    for mode in STREAM_MODES:
        for size, number in SIZES.items():
            for count in CONNECTIONS:
                load = (*_echo_load(number, count), "--tls", "1")
                run = Served(("echo.py", mode), load, tls=True)
                rows.append(_served(f"tls-{mode}-{size}-{count}", "tls", run))
    for name, resume in (("full", "0"), ("resumed", "1")):
        load = ("--mode", "handshake", "--connections", "8", "--resume", resume)
        run = Served(("echo.py", "proto"), load, tls=True)
        rows.append(_served(f"tls-handshake-{name}", "tls", run))
    for server in WEB_SERVERS:
        run = _web_run(server, f"/bytes/{HELLO}", HELLO, 64, tls=True)
        rows.append(_served(f"{server}-tls-64", "tls", run))
    return rows


def _repeated(family: str, module: str, names: str, bench: str, transports: bool) -> list[Row]:
    """Rows of a module; `bench` names those of the short run."""
    return [
        Row(
            name,
            family,
            Repeated(module, name),
            OPERATIONS,
            rivals=_RIVALS.get(name, _USUAL_RIVALS),
            in_bench=name in bench.split(),
            uses_transports=transports,
        )
        for name in names.split()
    ]


def _process_rows() -> list[Row]:
    scheduling = (
        "call_soon call_soon_3_args call_soon_chained call_soon_threadsafe call_later_cancel "
        "timers_100k sleep_0 gather_100 run_in_executor"
    )
    sock = "sock_ping_pong sock_ready sock_connect_accept sock_datagrams"
    transfer = "bulk_write readline_64 udp_echo pipe_throughput sendfile_8m"
    return [
        *_repeated("sock", "sock_rows", sock, "sock_ping_pong", transports=False),
        *_repeated("scheduling", "sched_rows", scheduling, scheduling, transports=False),
        *_repeated("transfer", "io_rows", transfer, "bulk_write readline_64 udp_echo", True),
        *_repeated("setup", "io_rows", "connect_close", "connect_close", transports=True),
        *_repeated(
            "setup", "io_rows", "spawn_wait spawn_communicate", "spawn_wait", transports=False
        ),
        *_repeated(
            "setup", "sched_rows", "getaddrinfo_literal", "getaddrinfo_literal", transports=False
        ),
    ]


def _footprint_rows() -> list[Row]:
    def row(
        name: str,
        measure: Measure,
        seconds: float,
        rivals: tuple[str, ...] = _USUAL_RIVALS,
        transports: bool = True,
        stays_away: Mapping[str, str] = {},
    ) -> Row:
        return Row(
            name,
            "footprint",
            Probed(name, seconds),
            measure,
            rivals=rivals,
            in_bench=True,
            uses_transports=transports,
            stays_away=stays_away,
        )

    return [
        row("connection_memory", KIB_EACH, 0.8),
        row("tls_connection_memory", KIB_EACH, 2.0, _USUAL_TLS_RIVALS, True, _STALLS_OVER_TLS),
        row("timer_memory", BYTES_EACH, 0.5, transports=False),
        row("import_time", MILLISECONDS, 1.0),
        row("loop_creation", OPERATIONS, 0.7, transports=False),
    ]


def _fairness_rows() -> list[Row]:
    """No row may be won by starving somebody."""
    echo, web = ("echo.py", "proto"), (WEB_SERVERS["uvicorn"],)
    http = _web_run("uvicorn", f"/bytes/{HELLO}", HELLO, 64).load
    small = _echo_load(SIZES["1k"], 64)
    slow = (*_echo_load(SIZES["1k"], 64), "--slow", "1")
    flood = (*_echo_load(SIZES["1k"], 8), "--rate", "4000")
    rows = {
        "latency-proto-1k-64": (Served(echo, small, load_share=0.5), P99),
        "latency-uvicorn-64": (Served(web, http, load_share=0.5), P99),
        "slow-consumer": (Served(("echo.py", "streams"), slow), REQUESTS),
        "slow-consumer-memory": (Served(("echo.py", "streams"), slow), MEMORY_GROWTH),
        "callback-flood": (
            Served((*echo, "--flood", "100"), flood, never_idle=True),
            P99_NEVER_IDLE,
        ),
    }
    return [
        Row(name, "fairness", run, measure, rivals=_USUAL_RIVALS, in_bench=True)
        for name, (run, measure) in rows.items()
    ]


def all_rows() -> dict[str, Row]:
    """Every row there is, in the order of the tables."""
    rows = [
        *_echo_rows(),
        *_web_rows(),
        *_tls_rows(),
        *_process_rows(),
        *_footprint_rows(),
        *_fairness_rows(),
    ]
    order = list(FAMILIES)
    rows.sort(key=lambda row: order.index(row.family))
    return {row.name: row for row in rows}


ROWS = all_rows()
GROUPS: dict[str, Sequence[str]] = {
    "all": list(ROWS),
    "bench": [name for name, row in ROWS.items() if row.in_bench],
    "counted": [name for name, row in ROWS.items() if row.counted],
    # What is measured on both of cpploop's backends.
    "ring": [n for n, row in ROWS.items() if row.in_bench or n in ("uvicorn-256", "aiohttp-256")],
    "quick": ["proto-1k-64", "proto-100k-8", "streams-1k-8", "uvicorn-64", "call_soon"],
    **{family: [n for n, r in ROWS.items() if r.family == family] for family in FAMILIES},
}


def best_known(row: Row) -> list[str]:
    """Who takes part in the short run: the control, the base, ours, the floor, the best rivals."""
    return [*([FLOOR] if row.has_floor else []), CONTROL, BASE, *row.rivals, SUBJECT]
