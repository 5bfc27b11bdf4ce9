"""asyncio.Runner: several coroutines one after another on one loop.

python examples/ways/runner.py
"""

import asyncio

import cpploop


async def current_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def main() -> None:
    with asyncio.Runner(loop_factory=cpploop.new_event_loop) as runner:
        first = runner.run(current_loop())
        second = runner.run(current_loop())
        print("asyncio.Runner runs on", type(first).__module__.partition(".")[0])
        print("both coroutines had the same loop:", first is second)
    print("closed afterwards:", first.is_closed())


if __name__ == "__main__":
    main()
