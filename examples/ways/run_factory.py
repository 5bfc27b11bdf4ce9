"""asyncio's own entry, with cpploop named as the maker of the loop. Python 3.12 and later.

python examples/ways/run_factory.py
"""

import asyncio

import cpploop


async def main() -> None:
    loop = asyncio.get_running_loop()
    print("asyncio.run(loop_factory=...) runs on", type(loop).__module__.partition(".")[0])


if __name__ == "__main__":
    asyncio.run(main(), loop_factory=cpploop.new_event_loop)
