"""cpploop.run(): what asyncio.run() does, on cpploop, on every Python.

python examples/ways/cpploop_run.py
"""

import asyncio

import cpploop


async def main() -> str:
    loop = asyncio.get_running_loop()
    return type(loop).__module__.partition(".")[0]


if __name__ == "__main__":
    # The coroutine's result is the result of run(); debug=True would turn on asyncio's debug mode.
    print("cpploop.run() runs on", cpploop.run(main()))
