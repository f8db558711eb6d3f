"""SIGTERM, SIGHUP and Ctrl-C become a wish to stop at the next step; a second Ctrl-C exits.

Several processes stop at the same step, whichever of them is asked: jax's preemption service takes
SIGTERM there, tells all, and names the step. The other two signals are passed on to it.
"""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from clip_jax.errors import INTERRUPTED, RESTART
from clip_jax.sharding import processes

_STATUS = {signal.SIGTERM: RESTART, signal.SIGHUP: RESTART, signal.SIGINT: INTERRUPTED}


class Signals:
    """While entered (in the main thread), `asked` tells of a signal that came.

    status, name: None and "" until then; in a job of several processes those of this process, or
    after `settle` those of all.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.name = ""
        self._several = jax.process_count() > 1
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in _STATUS:
                if self._several and number == signal.SIGTERM:
                    continue  # jax's own handler must stay
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def asked(self, steps_done: int) -> bool:
        """Whether the run is to end now.

        Args:
            steps_done: in this attempt. Several processes call this after every step, and all get
                True after the same one; a signal before the first step counts as one in it.
        """
        if self._several:
            return multihost_utils.reached_preemption_sync_point(steps_done)
        return self.status is not None

    def settle(self) -> int:
        """The exit status, and `name` for the message, which all processes share."""
        text = f"{self.status} {self.name}" if self.status else ""
        status, _, self.name = processes.agree(text, _first).partition(" ")
        self.status = int(status)
        return self.status

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.status == INTERRUPTED:
            os._exit(INTERRUPTED)  # the checkpoints on disk are whole: an unfinished one is not one
        self.status = _STATUS[signal.Signals(number)]
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        more = "; once more exits at once" if number == signal.SIGINT else ""
        with contextlib.suppress(OSError):  # a closed terminal, or a pipe that had Ctrl-C too
            os.write(2, f"{self.name}: saving after this step{more}\n".encode())
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)


def _first(asked: list[str]) -> str:
    """The wish of a process; jax does not tell which one had a SIGTERM."""
    return next(filter(None, asked), f"{RESTART} SIGTERM")
