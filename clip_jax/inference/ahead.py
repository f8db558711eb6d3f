"""Work that threads do ahead of who needs it, such as decoding images before the device is free."""

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = min(32, os.cpu_count() or 1)  # Pillow works outside of the GIL


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, window: int
) -> Generator[Result, None, None]:
    """function(item) for each item, in their order.

    Args:
        function: safe in several threads; what it raises is raised here, at its item.
        items: drawn in the calling thread.
        window: results and calls under way at once: the bound on memory.
    """
    pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="ahead")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
