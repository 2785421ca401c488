"""A worker that tells endpoints, in a process of its own, to be killed: python -m tests.integration.telling URL"""

import asyncio
import sys

from tests.integration.receiver import Newsroom


async def main(url: str) -> None:
    async with Newsroom(url).worker(retry_s=(0.1,) * 30, timeout_s=1):
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
