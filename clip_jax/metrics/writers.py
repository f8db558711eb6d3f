"""Where the numbers of a run go: metrics.jsonl in the workdir, and one live line for people.

A line of metrics.jsonl is `{"step", "attempt", "time" (unix seconds), NAME: number, ...}`. Floats
are written so that they read back bit for bit; NaN and the infinities, which JSON lacks, are the
strings "nan", "inf" and "-inf" in the file and floats again out of `read_metrics`.
Costs: one open, write and close a line; on a remote store one small object a line.
"""

import contextlib
import json
import math
import numbers
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from clip_jax import files
from clip_jax.errors import UserError

FILE = "metrics.jsonl"
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Writer(Protocol):
    """What takes the numbers of a run."""

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """Takes the values of one step."""
        ...

    def close(self) -> None:
        """Called once, after the last write."""
        ...


def _encode(value: float | int) -> float | int | str:
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _decode(value: Any) -> Any:
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


class JsonlWriter:
    """Appends lines to workdir/metrics.jsonl, each on disk when `write` returns.

    Args:
        workdir: folder of the run, local or remote.
        attempt: which start of the run this is; what `drop_after` returned.
    """

    def __init__(self, workdir: str, attempt: int):
        self._path = files.join(workdir, FILE)
        self._attempt = attempt
        self._part: int | None = None  # of a remote file, see files.append

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds one line. Numbers may be numpy's. Raises UserError when the disk is full."""
        line: dict[str, Any] = {"step": step, "attempt": self._attempt}
        line["time"] = round(time.time(), 3)
        assert not line.keys() & values.keys(), f"{sorted(values)} hides a field of every line"
        line |= {k: _encode(v) for k, v in values.items()}
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._part = files.append(self._path, data, self._part)

    def close(self) -> None:
        """Nothing to do: every line is written already."""


class NoWriter:
    """For the processes that leave the writing to process 0."""

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Takes nothing down."""

    def close(self) -> None:
        """Nothing to do."""


def _lines(raw: bytes) -> list[bytes]:
    # Equal lines: a remote rewrite was killed between its new part and the removal of the old.
    return list(dict.fromkeys(line for line in raw.split(b"\n") if line))


def _parse(line: bytes) -> dict[str, Any] | None:
    """The values of a line; None if it is none of ours, such as half a line."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return {k: _decode(v) for k, v in values.items()}


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; empty without a file.

    A last line that is cut off is left out (the run may be writing it, or was killed in it).
    Raises UserError for an unreadable line elsewhere.
    """
    path = files.join(workdir, FILE)
    lines = _lines(files.read_appended(path))
    found = [_parse(line) for line in lines]
    if found and found[-1] is None:
        found.pop()
    for number, line in enumerate(found, 1):
        if line is None:
            got = lines[number - 1][:40].decode(errors="replace")
            raise UserError(f"{path}: line {number} is no line of metrics (got {got!r}); remove it")
    return [line for line in found if line is not None]


def drop_after(workdir: str, step: int) -> int:
    """Makes metrics.jsonl ready for a start at `step`, and returns the number of that attempt.

    Drops the lines past `step` and what cannot be read (a line cut by kill -9). Call it before
    the first write: that line would otherwise be glued to half a line.

    Args:
        workdir: folder of the run, local or remote.
        step: the restored step; its lines stay. -1 drops all.

    Returns:
        1 + the largest attempt in the file before anything was dropped; 1 for a new run.
    """
    path = files.join(workdir, FILE)
    raw = files.read_appended(path)
    pairs = [(line, values) for line in _lines(raw) if (values := _parse(line)) is not None]
    kept = b"".join(line + b"\n" for line, values in pairs if values["step"] <= step)
    if kept != raw:
        files.replace_appended(path, kept)
    return 1 + max((values.get("attempt", 0) for _, values in pairs), default=0)


class Outlet:
    """A text stream that never raises, for output that training does not depend on.

    The one place where an error is swallowed on purpose: `| head -1`, a closed terminal or a full
    log disk must not end a run of days; its numbers are in metrics.jsonl. After the first failure
    the stream is dropped, and its descriptor led to the null device: Python flushes stdout once
    more at exit, and would turn a good run into exit status 120.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream  # None: Python was started with stdout closed

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def columns(self) -> int:
        """Width of the terminal; 80 where it is unknown (a container's may say 0)."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80 if self._stream else 80
        except (OSError, ValueError):
            return 80

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        # A terminal of LC_ALL=C has no letter for most of Unicode.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._drop(self._stream)

    def flush(self) -> None:
        """Nothing to do: `write` flushes."""

    def _drop(self, stream: TextIO) -> None:
        self._stream = None
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), stream.fileno())


class _Bar(tqdm):
    monitor_interval = 0  # no thread that redraws


_Bar.set_lock(threading.RLock())  # tqdm's own would ask the system for a semaphore


def _parts(values: Mapping[str, float | int]) -> Iterable[str]:
    if "loss" in values:
        yield f"loss {values['loss']:.4f}"
    if "speed/examples_per_s" in values:
        yield f"{values['speed/examples_per_s']:,.0f} examples/s"
    if "data/wait_share" in values:
        yield f"wait {values['data/wait_share']:.0%}"


class LiveLine:
    """Progress for people: step, loss, speed, share of waiting, time left.

    On a terminal one line that is drawn again (at most ten times a second); in a file or pipe a
    plain line at most every 10 seconds, and always the first and the last. Never raises for what
    happens to the stream.

    Args:
        total_steps: last step of the run.
        stream: where to print; None prints nothing.
        unit: what is counted.
        now: clock in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None,
        *,
        unit: str = "step",
        now: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit = total_steps, unit
        self._out = Outlet(stream)
        self._tty = self._out.isatty()
        self._now = now
        self._first: tuple[int, float] | None = None
        self._shown_s = -math.inf
        self._waiting: tuple[int, str] | None = None  # came too soon after the one before
        self._bar: _Bar | None = None

    def update(self, step: int, values: Mapping[str, float | int]) -> None:
        """Shows the values of a step (`loss`, `speed/examples_per_s`, `data/wait_share`)."""
        time_s = self._now()
        self._first = self._first or (step, time_s)
        line = ", ".join(
            [f"{self._unit} {step}/{self._total}", *_parts(values), *self._left(step, time_s)]
        )
        soon = time_s - self._shown_s < (0.1 if self._tty else 10.0)
        if soon and step < self._total:
            self._waiting = (step, line)
        else:
            self._shown_s = time_s
            self._show(step, line)

    def say(self, text: str) -> None:
        """Prints a line of its own; the live line moves below it. Control characters go."""
        if self._bar is not None:
            self._bar.clear()
        self._out.write(_CONTROL.sub("", text) + "\n")
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Shows what waits and leaves the cursor on a fresh line."""
        if self._waiting is not None:
            self._show(*self._waiting)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, step: int, time_s: float) -> Iterable[str]:
        first_step, first_s = self._first or (step, time_s)
        if first_step < step < self._total:
            left_s = (time_s - first_s) / (step - first_step) * (self._total - step)
            yield f"{tqdm.format_interval(left_s)} left"

    def _show(self, step: int, line: str) -> None:
        self._waiting = None
        if not self._tty:
            self._out.write(line + "\n")
            return
        if self._bar is None:
            self._bar = _Bar(
                total=self._total,
                file=self._out,
                ascii=" =",  # the blocks of Unicode are not in every terminal's font
                bar_format="[{bar:10}] {desc}",
            )
        self._bar.ncols = self._out.columns() - 1  # a full row would wrap
        self._bar.n = step
        self._bar.set_description_str(line)
