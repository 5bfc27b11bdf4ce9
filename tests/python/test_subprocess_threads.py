"""Children of several loops in several threads at once, and other ways to have many processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import threading
from typing import Any

import pytest
import support

LOOPS = 4
CHILDREN = 200 if support.LONG else 50


@pytest.mark.parametrize("forced", [False, True], ids=["as it comes", "threads"])
def test_several_loops_at_once(loop_name: str, forced: bool) -> None:
    """Hundreds of children, each reported to its own loop, and nothing left over."""
    if forced:
        support.needs_cpploop(loop_name, "cpploop's own threads")
        from cpploop import _processes

        _processes._force_threads(True)
    failures: list[BaseException] = []
    together = threading.Barrier(LOOPS)

    async def one(number: int) -> int:
        process = await asyncio.create_subprocess_shell(
            f"cat; exit {number % 7}", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        data = b"%d" % number * 1000
        assert await process.communicate(data) == (data, None)
        assert process.returncode == number % 7
        return process.pid

    async def many(thread: int) -> list[int]:
        pids = []
        for start in range(0, CHILDREN, 10):
            pids += await asyncio.gather(*(one(thread + start + index) for index in range(10)))
        return pids

    def work(thread: int) -> None:
        try:
            together.wait(10 * support.TIME_SCALE)
            with asyncio.Runner(loop_factory=support.factory(loop_name)) as runner:
                assert len(runner.run(many(thread))) == CHILDREN
        except BaseException as exc:
            failures.append(exc)

    fds, children = support.open_fds(), support.living_children()
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(LOOPS)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        if forced:
            _processes._force_threads(False)
    assert not failures, failures
    assert support.new_fds(fds) == {}
    assert support.living_children().keys() <= children.keys()


def test_in_a_thread_while_the_main_thread_is_busy(loop_name: str) -> None:
    """No signal handler of the main thread is needed: it may be blocked for as long as it likes."""

    async def main() -> bytes:
        process = await asyncio.create_subprocess_exec("echo", "x", stdout=subprocess.PIPE)
        printed, _ = await process.communicate()
        assert await process.wait() == 0
        return printed

    def work() -> bytes:
        with asyncio.Runner(loop_factory=support.factory(loop_name)) as runner:
            return runner.run(main())

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result(20 * support.TIME_SCALE) == b"x\n"


def test_beside_popen_of_other_threads(run: Any) -> None:
    """subprocess.run() in threads and children of the loop do not take each other's statuses."""

    async def main() -> None:
        def blocking(number: int) -> int:
            return subprocess.run(["/bin/sh", "-c", f"exit {number % 5}"]).returncode

        async def own(number: int) -> int | None:
            process = await asyncio.create_subprocess_shell(f"exit {number % 5}")
            return await process.wait()

        numbers = range(30)
        codes = await asyncio.gather(
            *(asyncio.to_thread(blocking, number) for number in numbers),
            *(own(number) for number in numbers),
        )
        assert codes == [number % 5 for number in numbers] * 2

    run(main)


# Defined at the top of a file of its own, because spawn and forkserver import it anew.
MULTIPROCESSING = """
    import asyncio, concurrent.futures, multiprocessing, os, pathlib, sys, warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    folder = pathlib.Path(sys.argv[1])
    (folder / "jobs_of_this_test.py").write_text(
        "import os\\n"
        "def square(number): return number * number, os.getpid()\\n"
        "def answer(pipe): pipe.send(pipe.recv() + 1); pipe.close()\\n"
    )
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    import jobs_of_this_test as jobs

    async def main():
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context(sys.argv[2])
        beside = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)

        ours, theirs = context.Pipe()
        process = context.Process(target=jobs.answer, args=(theirs,))
        process.start()
        ours.send(41)
        came = loop.create_future()
        loop.add_reader(ours.fileno(), came.set_result, None)
        await came
        loop.remove_reader(ours.fileno())
        assert ours.recv() == 42
        ended = loop.create_future()
        loop.add_reader(process.sentinel, ended.set_result, None)
        await ended
        loop.remove_reader(process.sentinel)
        process.join()
        assert process.exitcode == 0

        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            results = await asyncio.gather(
                *(loop.run_in_executor(pool, jobs.square, number) for number in range(20))
            )
        assert [square for square, _ in results] == [number * number for number in range(20)]
        assert os.getpid() not in {pid for _, pid in results}

        assert await beside.communicate(b"still here") == (b"still here", None)
        assert beside.returncode == 0

    if __name__ == "__main__":
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_from_a_running_loop(loop_name: str, method: str, tmp_path: Any) -> None:
    """Process and ProcessPoolExecutor of each start method, beside a child of the loop."""
    done = support.run_script(MULTIPROCESSING, str(tmp_path), method, loop=loop_name, timeout=60)
    assert done.stdout == "done\n"
