"""Speed between two log steps, and the share of the time spent waiting for input.

Costs: two readings of the clock a step. A step may run on after its call, so a lap is right only
when the host has fetched a result of its last step, and none after it has ended; the wait is the
host's, and an upper bound of what the devices lose by it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
    """Stop-watch of the training loop; it runs from its construction on.

    Args:
        batch_size: examples per step, over all devices.
        step: steps done when the clock starts, that is, the restored step.
        now: clock in seconds.
    """

    def __init__(
        self, batch_size: int, step: int = 0, *, now: Callable[[], float] = time.perf_counter
    ):
        self._batch_size = batch_size
        self._now = now
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step = step
        self._start_s = self._now()
        self._wait_s = 0.0
        self._pause_s = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input. Not within `paused`."""
        start_s = self._now()
        try:
            yield
        finally:
            self._wait_s += self._now() - start_s

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the time inside (an evaluation, a checkpoint) out of the lap."""
        start_s = self._now()
        try:
            yield
        finally:
            self._pause_s += self._now() - start_s

    def lap(self, step: int) -> dict[str, float]:
        """Closes the lap that ends with `step` and starts the next one.

        Returns:
            `speed/examples_per_s`, `speed/step_s` (seconds a step) and `data/wait_share` (0..1)
            since the lap before; empty, and the lap goes on, if no step was done in it.
        """
        steps = step - self._step
        if steps <= 0:
            return {}
        lap_s = max(self._now() - self._start_s - self._pause_s, 1e-9)
        values = {
            "speed/examples_per_s": steps * self._batch_size / lap_s,
            "speed/step_s": lap_s / steps,
            "data/wait_share": self._wait_s / lap_s,
        }
        self._restart(step)
        return values
