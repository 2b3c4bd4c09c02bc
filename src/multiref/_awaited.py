"""What an async function gives, to a caller that is not async."""

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def wait_for(promised: Awaitable[T]) -> T:
    """Its result, from a loop of its own: also where one runs already, as in a notebook."""

    async def found() -> T:
        return await promised

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, found()).result()
