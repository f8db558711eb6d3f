"""Ends a process whose training or evaluation stands still, so that the job can start again.

A stall in Python keeps the heartbeat of jax.distributed alive, and the other processes wait in a
collective without limit: only the lack of steps shows it. Cost: a thread that wakes now and then.
"""

import contextlib
import faulthandler
import os
import threading
import time

import jax

from clip_jax.errors import RESTART


class Watchdog:
    """While entered: exit status 42 when `beat` was not called for `seconds`; 0 = never.

    Before that the stacks of all threads go to stderr: of several processes the one that stands
    outside of a collective holds up the others.
    """

    def __init__(self, seconds: float, after: str = "the start"):
        self._seconds = seconds
        self._what = after
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def beat(self, step: int) -> None:
        """Step `step` is done, with its evaluation and checkpoint."""
        self._what, self._last = f"step {step}", time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                text = (
                    f"process {jax.process_index()}: nothing was done for {self._seconds:g} s "
                    f"(config.log.watchdog_seconds) after {self._what}; its threads stand here:\n"
                )
                with contextlib.suppress(OSError):  # a terminal that is closed
                    os.write(2, text.encode())
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(RESTART)
