"""install(): every loop made from now on is cpploop's. Only while asyncio has policies (to 3.15).

For a program whose asyncio.run() you cannot reach. Where you can, name the factory instead: it
changes nothing for anybody else in the process. Or leave the program alone and start it with
`python -m cpploop`.

    python examples/ways/install.py
"""

import asyncio
import warnings

import cpploop


async def main() -> None:
    loop = asyncio.get_running_loop()
    print("after install(), asyncio.run() runs on", type(loop).__module__.partition(".")[0])


if __name__ == "__main__":
    with warnings.catch_warnings():
        # asyncio's policies are deprecated since Python 3.14.
        warnings.simplefilter("ignore", DeprecationWarning)
        cpploop.install()
    asyncio.run(main())
