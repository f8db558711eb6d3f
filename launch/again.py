"""Runs `clip_jax train` and starts it again as long as that helps.

    python launch/again.py [--most=5] -- --config=glyphs --workdir=runs/demo
    python launch/again.py -- bash launch/local.sh -- --config=glyphs --workdir=runs/demo

After -- stand flags of train, or a whole command that has them. The same command goes on where the
run stopped, so that is all there is to do after a preemption (exit status 42) or a kill (128 + n).
Everything else ends it: 0 is done, 1 and 2 would come again, 3 and 4 want a look, 130 was Ctrl-C.
Between two attempts it waits, 10 s at first and twice as long each time, at most 10 minutes. A new
checkpoint sets both the wait and the count back; after `--most` restarts without one it gives up
with status 1, so that nothing around it starts it again. One line on stderr tells of each attempt.
`--dry_run` prints the command instead, `--saved` the step of the newest checkpoint.
Environment: CLIP_JAX_WAIT (seconds of the first wait, for tests).
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
BUG, RESTART, INTERRUPTED = 1, 42, 130


class Parser(argparse.ArgumentParser):
    """Mistakes as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: launch/again.py: {message}\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(own options, the command)."""
    parser = Parser(prog="launch/again.py", allow_abbrev=False)
    parser.add_argument("--most", type=int, default=5)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--saved", action="store_true")
    own, command = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1 :]
    args = parser.parse_args(own)
    if not any(word.startswith("--workdir=") for word in command):
        parser.error("give the flags of `clip_jax train` after --, with --workdir=DIR")
    if command[0].startswith("-"):
        command = [sys.executable, "-u", "-m", "clip_jax", "train", *command]
    if not shutil.which(command[0]):
        parser.error(f"no such program after -- (got '{command[0]}')")
    return args, command


def saved_step(workdir: str) -> int:
    """The newest checkpoint of a run; 0 without."""
    from clip_jax import files

    names = files.names(files.join(workdir, "checkpoints"))
    return max((int(n) for n in names if re.fullmatch(r"\d+", n)), default=0)


def helps(status: int) -> bool:
    """Whether the same command would go on."""
    return status == RESTART or (status >= 128 and status != INTERRUPTED)


def say(text: str) -> None:
    """To stderr while somebody reads: Ctrl-C ends `| tee` too, and the status is still wanted."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class Child:
    """The process that trains; our signals go to it, and none is started after one."""

    def __init__(self) -> None:
        self.asked = 0  # the number of the signal
        self._process: subprocess.Popen[bytes] | None = None
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(kind) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(kind, self._forward)

    def _forward(self, number: int, _: Any) -> None:
        self.asked = number
        if self._process:
            self._process.send_signal(number)

    def run(self, command: Sequence[str]) -> int:
        """Its exit status; 128 + n for signal n."""
        self._process = subprocess.Popen(command, process_group=0)
        if self.asked:  # while it was being started
            self._process.send_signal(self.asked)
        code = None
        while code is None:  # a signal that comes just before the system call is seen after it
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=1.0)
        return code if code >= 0 else 128 - code

    def wait(self, seconds: float) -> None:
        """Ends at most a second after a signal."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))


def main(argv: Sequence[str]) -> int:
    """Runs it, and returns the last exit status."""
    args, command = parse(argv)
    most = args.most
    workdir = next(w for w in command if w.startswith("--workdir=")).partition("=")[2]
    if args.dry_run:
        print(shlex.join(command))
        return 0
    if args.saved:
        print(saved_step(workdir))
        return 0
    first = wait = float(os.environ.get("CLIP_JAX_WAIT", FIRST_WAIT_S))
    child, attempt, without = Child(), 0, 0
    saved = saved_step(workdir)
    while True:
        attempt += 1
        begin = time.monotonic()
        status = child.run(command)
        now = saved_step(workdir)
        said = f"attempt {attempt}: status {status} after {time.monotonic() - begin:.0f} s"
        said += f", checkpoint at step {now}" if now else ", no checkpoint"
        if child.asked or not helps(status):
            say(said)
            return status
        if now > saved:
            wait, without = first, 0
        without += 1
        if without > most:
            say(f"{said}; {most} restarts brought no checkpoint: giving up")
            return BUG
        say(f"{said}; again in {wait:.0f} s")
        child.wait(wait)
        if child.asked:
            return status
        wait, saved = min(2 * wait, LONGEST_WAIT_S), max(now, saved)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
