"""The queue of one model: one request is answered, a few wait, and a client that disconnects frees its slot."""

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
    """The slots of the queue, and the thread in which the model runs."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._taken = 0
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._mean_seconds = 1.0  # of a turn, a running mean

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Take a slot in the queue. Raises ApiError 429 if there is none."""
        if self._taken >= self.slots:
            seconds = str(math.ceil(min(60.0, self._mean_seconds)))
            reason = f"{self.slots} requests are waiting already; try again in a moment"
            raise ApiError(429, reason, "rate_limit_exceeded", headers={"Retry-After": seconds})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Take the model for one request. The other requests wait in the order in which they came."""
        async with self._turn:
            begun = time.monotonic()
            try:
                yield
            finally:
                self._mean_seconds += 0.2 * (time.monotonic() - begun - self._mean_seconds)

    async def work(self, task: Callable[[], Result], give_up: Callable[[], object] = lambda: None) -> Result:
        """Run a task in the model's thread. If the caller is cancelled, `give_up` is called and the end of the task awaited."""
        job = asyncio.get_running_loop().run_in_executor(self._worker, task)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            give_up()
            await asyncio.wait({job})
            job.exception()  # retrieved, so that asyncio does not log it
            raise
