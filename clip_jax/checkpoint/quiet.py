"""Keeps what orbax says about a failure off the terminal: thousands of lines where one will do.

Its threads log when they like, and what a failed call leaves behind complains when it is collected,
so this stays in place once it is called. Set CLIP_JAX_TRACEBACK=1 to see it all.
"""

import logging
import os
import sys
import types
import warnings


def mute_orbax() -> None:
    """Drops from now on the log records, warnings and unraisable errors that come from orbax."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_wanted)
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited")
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "without_orbax":
        return

    def without_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"  # from a tensorstore thread
        if _loud() or not (closed or _through_orbax(unraisable.exc_traceback)):
            before(unraisable)

    sys.unraisablehook = without_orbax


def _wanted(record: logging.LogRecord) -> bool:
    error, trace = record.exc_info[1:] if record.exc_info else (None, None)
    of_tensorstore = trace is None and "tensorstore_spec=" in str(error)  # raised by no Python line
    return _loud() or not (of_tensorstore or "orbax" in record.pathname or _through_orbax(trace))


def _through_orbax(trace: types.TracebackType | None) -> bool:
    while trace is not None:
        if "orbax" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _loud() -> bool:
    return os.environ.get("CLIP_JAX_TRACEBACK") == "1"
