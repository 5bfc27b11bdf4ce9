"""A program that has never heard of cpploop: the launcher gives it the loop.

python examples/ways/any_program.py
python -m cpploop examples/ways/any_program.py
"""

import asyncio


async def main() -> None:
    loop = asyncio.get_running_loop()
    print("this program runs on", type(loop).__module__.partition(".")[0])


if __name__ == "__main__":
    asyncio.run(main())
