"""The queue: a few requests may wait, one is worked on, and who leaves gives its place and the model back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from mtbi.use.serve.api_types import ApiError

Result = TypeVar("Result")


class RequestQueue:
    """Places in the queue of one model, and the thread that works with it."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken = 0
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._usual_seconds = 1.0  # of a turn, a running mean

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """A place in the queue. Raises ApiError 429 where there is none."""
        if self._taken >= self.places:
            seconds = str(math.ceil(min(60.0, self._usual_seconds)))
            reason = f"{self.places} requests are waiting already; try again in a moment"
            raise ApiError(429, reason, "rate_limit_exceeded", headers={"Retry-After": seconds})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The model, for one request; the others wait in the order in which they came."""
        async with self._turn:
            begun = time.monotonic()
            try:
                yield
            finally:
                self._usual_seconds += 0.2 * (time.monotonic() - begun - self._usual_seconds)

    async def work(self, task: Callable[[], Result], give_up: Callable[[], object] = lambda: None) -> Result:
        """Run a task in the worker's thread. Where nobody waits for it any more, `give_up` is called, and its end awaited."""
        job = asyncio.get_running_loop().run_in_executor(self._worker, task)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            give_up()
            await asyncio.wait({job})
            job.exception()  # nobody else asks for it
            raise
