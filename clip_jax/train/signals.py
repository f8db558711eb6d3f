"""SIGTERM, SIGHUP and Ctrl-C become a wish to stop at the next step; a second Ctrl-C exits."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clip_jax.errors import INTERRUPTED, RESTART

_STATUS = {signal.SIGTERM: RESTART, signal.SIGHUP: RESTART, signal.SIGINT: INTERRUPTED}


class Signals:
    """While entered (in the main thread), `status` is None until a signal asks to stop."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in _STATUS:
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.status == INTERRUPTED:
            os._exit(INTERRUPTED)  # the checkpoints on disk are whole: an unfinished one is not one
        self.status = _STATUS[signal.Signals(number)]
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        more = "; once more exits at once" if number == signal.SIGINT else ""
        os.write(2, f"{self.name}: saving after this step{more}\n".encode())  # safe in a handler
