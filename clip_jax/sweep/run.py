"""Runs the trials of a sweep on this machine: each in a process, as `clip_jax train`.

What is finished is skipped, what was stopped goes on, a trial that fails does not stop the others.
Side effects: processes, files under the workdir, signals.
"""

import contextlib
import itertools
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from clip_jax import files
from clip_jax.errors import DONE, USER, UserError
from clip_jax.report.finished import is_finished
from clip_jax.sweep.trials import Trial

# Chips of a TPU host that one process may hold, as libtpu wants their box.
BOXES = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


def command(trial: Trial, workdir: str) -> list[str]:
    """What to run for it."""
    where = files.join(workdir, trial.name)
    return ["-m", "clip_jax", "train", *trial.flags, f"--workdir={where}"]


def finished(trial: Trial, workdir: str) -> bool:
    """Whether its run has ended; the report is written last."""
    return is_finished(files.join(workdir, trial.name, "report.html"))


def waiting(trials: Sequence[Trial], workdir: str) -> list[Trial]:
    """Those not finished. One that must overfit is asked again: its report does not tell."""
    return [t for t in trials if t.cfg.overfit or not finished(t, workdir)]


def run(
    trials: Sequence[Trial],
    workdir: str,
    groups: Sequence[Mapping[str, str]],
    say: Callable[[str], None],
) -> dict[str, int]:
    """Runs what is not finished, as many at a time as there are groups of devices.

    Args:
        trials: to run.
        workdir: of the sweep; each trial has a folder in it, and its output in NAME.log.
        groups: environment variables that give each group its devices.
        say: told of beginnings and ends.

    Returns:
        {name: exit status}, USER without room for its output; a signal leaves out those that were
        not started.
    """
    logs = Path(tempfile.mkdtemp()) if "://" in workdir else Path(workdir)
    with files.user_errors(workdir):
        logs.mkdir(parents=True, exist_ok=True)
    free: queue.Queue[Mapping[str, str]] = queue.Queue()
    for group in groups:
        free.put(group)
    statuses: dict[str, int] = {}
    todo = waiting(trials, workdir)
    if done := len(trials) - len(todo):
        say(f"{done} of {len(trials)} trials are finished")
    children = _Children()

    def one(i: int, trial: Trial) -> None:
        if children.asked:
            return
        group, log = free.get(), logs / f"{trial.name}.log"
        start, at = time.monotonic(), f"[{done + i}/{len(trials)}] {trial.name}"
        try:
            say(f"{at}: {trial.label}; output in {log}")
            with log.open("ab") as out:
                argv = [sys.executable, *command(trial, workdir)]
                out.write(f"$ {shlex.join(argv)}\n".encode())
                out.flush()
                status = children.run(argv, {**os.environ, **group}, out)
            if status is not None:
                statuses[trial.name] = status
                how = "finished" if status == DONE else f"ended with status {status}, see {log}"
                say(f"{at}: {how}; {time.monotonic() - start:.0f} s")
        except OSError as e:  # a full disk; there may be room for the next one
            statuses[trial.name] = USER
            say(f"{at}: not started: {log}: {e.strerror}; make room, and start the sweep again")
        finally:
            free.put(group)

    with children.signals(), ThreadPoolExecutor(len(groups)) as pool:
        left = {pool.submit(one, i, t) for i, t in enumerate(todo, 1)}
        while left:  # a signal that comes just before the wait is seen after it
            done_now, left = wait(left, timeout=1.0)
            for future in done_now:
                future.result()
    if children.asked:
        statuses[""] = children.asked
    return statuses


class _Children:
    """The processes that run; a signal to us goes to them, and no more are started."""

    def __init__(self) -> None:
        self.asked = 0  # the number of the signal
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, argv: list[str], env: dict[str, str], out: Any) -> int | None:
        """Its exit status (128 + n for signal n); None if it was not started."""
        with self._lock:
            if self.asked:
                return None
            child = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
            )
            self._running.add(child)
            if self.asked:  # while it was being started
                child.send_signal(self.asked)
        code = child.wait()
        with self._lock:
            self._running.discard(child)
        return code if code >= 0 else 128 - code

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP (unless ignored, as by nohup) are passed on inside."""

        def forward(number: int, _: Any) -> None:
            self.asked = self.asked or number
            for child in list(self._running):
                child.send_signal(number)

        kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        kinds = [k for k in kinds if signal.getsignal(k) is not signal.SIG_IGN]
        before = {kind: signal.signal(kind, forward) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def device_groups(parallel: int) -> list[dict[str, str]]:
    """Environments that divide the accelerators of this machine into equal groups; CPUs are shared.

    Where JAX_PLATFORMS or CUDA_VISIBLE_DEVICES hides the accelerators, there are none.

    Raises:
        UserError: they do not divide.
    """
    hidden = os.environ.get("JAX_PLATFORMS") == "cpu"
    gpus, chips = ([], []) if hidden else (_gpus(), _tpu_chips())
    count = len(gpus or chips)
    if not count or parallel == 1:
        return [{} for _ in range(parallel)]
    size, rest = divmod(count, parallel)
    if rest or not size or (not gpus and size not in BOXES):
        raise UserError(f"--parallel: {count} devices do not divide into {parallel} equal groups")
    if gpus:
        parts = [gpus[i * size : (i + 1) * size] for i in range(parallel)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
    return [
        {
            "TPU_VISIBLE_CHIPS": ",".join(chips[i * size : (i + 1) * size]),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": BOXES[size],
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
        for i in range(parallel)
    ]


def _gpus() -> list[str]:
    """Those that a child may see."""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        # As CUDA reads it: up to the first that is none.
        return list(itertools.takewhile(lambda x: x not in ("", "-1"), shown.split(",")))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, _ in enumerate(listed.stdout.splitlines())]


def _tpu_chips() -> list[str]:
    found = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return [str(i) for i, _ in enumerate(found)]
