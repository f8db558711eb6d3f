"""Metrics in other programs: TensorBoard, Weights & Biases, or a writer of the user's own.

metrics.jsonl is always written and is what everything here is made from; a tracker that fails is
named once, one that hangs is left behind, and the run goes on without the numbers it missed.
"""

import contextlib
import importlib
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax import files
from clip_jax.config.codec import to_dict
from clip_jax.config.extend import resolve
from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.metrics.writers import Writer

WAITING = 1_000  # lines that a tracker may be behind
CLOSE_S = 60.0  # what it has to send the last of them
SEND_S = 60.0  # event files go to a remote workdir this often


class TensorBoard:
    """Event files in workdir/tensorboard; what a killed attempt wrote after `first` is hidden.

    A remote workdir gets them once a minute and at the end.
    """

    def __init__(self, cfg: Config, workdir: str, first: int):
        del cfg
        library = _library(PACKAGES["tensorboard"], "tensorboard")
        self._folder = files.join(workdir, "tensorboard")
        self._local, self._sent = files.local_folder(self._folder), time.monotonic()
        # Else starts within one second would have files of one name
        mark = {"purge_step": first + 1, "filename_suffix": f".{first}"}
        self._writer = library.SummaryWriter(self._local, **mark)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds one scalar for each name."""
        if not os.path.isdir(self._local):  # its open file would take them, and nobody find them
            raise FileNotFoundError(f"{self._local} was removed")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if time.monotonic() - self._sent > SEND_S:
            files.upload(self._local, self._folder)
            self._sent = time.monotonic()

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()
        files.upload(self._local, self._folder)


class Wandb:
    """A run of Weights & Biases, the same one after a restart; WANDB_MODE=offline works too."""

    def __init__(self, cfg: Config, workdir: str, first: int):
        del first
        library = _library(PACKAGES["wandb"], "wandb")
        local = {} if files.is_remote(workdir) else {"dir": workdir}
        self._run = library.init(
            project="clip_jax",
            name=cfg.name,
            id=_own_id(workdir),
            resume="allow",
            config=to_dict(cfg),
            **local,
        )
        # Its own counter only goes up, and a restart goes back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Logs all values of a step at once."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits for what is on its way."""
        self._run.finish()


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
TRACKERS: dict[str, Callable[[Config, str, int], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _own_id(workdir: str) -> str:
    """The name of this run among all, made at its first start and kept in the workdir."""
    path = files.join(workdir, "wandb_id.txt")
    with contextlib.suppress(FileNotFoundError):
        return files.read_bytes(path).decode().strip()
    made = uuid.uuid4().hex[:16]
    files.write_bytes(path, made.encode())
    return made


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(
            f"config.log.writers: '{extra}' needs the package {module}; "
            f"pip install 'clip-jax-pretrain[{extra}]'"
        ) from e


def check(names: Sequence[str]) -> None:
    """Raises a UserError for writers that are not there, before a run does any work."""
    for name in names:
        resolve(name, TRACKERS, "config.log.writers")
        if name in PACKAGES:
            _library(PACKAGES[name], name)


class Apart:
    """A tracker in a thread of its own: the run waits for none of its writes, nor long for its end.

    Args:
        name: of the tracker, for messages.
        tracker: an error of it is said once.
        say: prints one line; called by this thread and by the tracker's.
    """

    def __init__(self, name: str, tracker: Writer, say: Callable[[str], None]):
        self._name, self._tracker, self._say = name, tracker, say
        self._failed = False
        self._step: int | None = None  # that it writes just now
        self._lines: queue.Queue[tuple[int, dict[str, float | int]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """Hands over the values of one step; drops them if too many wait already."""
        try:
            self._lines.put_nowait((step, dict(values)))
        except queue.Full:
            self._misses(f"from step {step} on", f"{WAITING:,} lines wait")

    def close(self) -> None:
        """Lets it write what waits and end, for `CLOSE_S` seconds at most."""
        try:
            self._lines.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)
        except queue.Full:
            pass
        if self._thread.is_alive():
            when = "at its end" if (step := self._step) is None else f"from step {step} on"
            self._misses(when, f"does not end within {CLOSE_S:.0f} s")

    def _work(self) -> None:
        while line := self._lines.get():
            self._step = line[0]
            try:
                self._tracker.write(*line)
            except Exception as e:  # whatever an outage looks like
                self._misses(f"from step {line[0]} on", _one_line(e))
        self._step = None
        try:
            self._tracker.close()
        except Exception as e:
            self._misses("at its end", _one_line(e))

    def _misses(self, when: str, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._say(f"{self._name}: misses metrics {when} ({why}); metrics.jsonl has them all")


class All:
    """Writes to one writer that must work, then to trackers that may fail."""

    def __init__(self, main: Writer, trackers: Sequence[Apart]):
        self._main, self._trackers = main, trackers

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """Takes the values of one step."""
        self._main.write(step, values)
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Called once, after the last write."""
        self._main.close()
        for tracker in self._trackers:
            tracker.close()


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__


def with_trackers(
    main: Writer,
    names: Sequence[str],
    cfg: Config,
    workdir: str,
    first: int,
    say: Callable[..., None],
) -> Writer:
    """`main`, and the trackers that config.log.writers names.

    Args:
        main: of metrics.jsonl.
        names: keys of TRACKERS, or 'package.module:function' called as they are.
        cfg: of the run.
        workdir: of the run.
        first: steps that are done already.
        say: prints one line.

    Raises:
        UserError: an unknown name, or a package that is missing.
    """
    found: list[Apart] = []
    for name in names:
        make = resolve(name, TRACKERS, "config.log.writers")
        try:
            found.append(Apart(name, make(cfg, workdir, first), say))
        except UserError:
            raise
        except Exception as e:  # an outage at the start: the same as later
            say(f"{name}: cannot start ({_one_line(e)}); metrics.jsonl has all metrics")
    return All(main, found) if found else main
