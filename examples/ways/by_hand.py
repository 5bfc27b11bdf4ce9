"""A loop made, used and closed by hand, for programs that embed one.

python examples/ways/by_hand.py
"""

import asyncio

import cpploop


async def add(left: int, right: int) -> int:
    await asyncio.sleep(0.001)
    return left + right


def main() -> None:
    loop = cpploop.new_event_loop()
    try:
        print("a loop by hand:", loop.run_until_complete(add(19, 23)))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    print("closed:", loop.is_closed())


if __name__ == "__main__":
    main()
