"""Starts `clip_jax train` in several processes, watches them, and ends them together.

Called by local.sh. Process 0 has stdout; what the others say goes to stderr with their number,
unless another process has said the same. The first process that fails decides the exit
status; the others get a few seconds to end by themselves.
"""

import argparse
import ctypes
import math
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, NoReturn

GRACE_S = 5.0
# Gloo's greetings, and the pieces of them that its threads write into one another.
NOISE = re.compile(
    r"(?=.*(Gloo|connected|peer ranks))"
    r"(\[Gloo\] Rank |is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    r"|[\d\s])+"
)
REST = re.compile(r"[\d\s]*")  # what such a line may leave for the next one


class Parser(argparse.ArgumentParser):
    """Mistakes as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: launch/local.sh: {message}\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options of this script, flags of train)."""
    parser = Parser(prog="launch/local.sh", allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices_per_process", type=int, default=1)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--python", default=sys.executable)  # local.sh names it when it only prints
    own, flags = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    args = parser.parse_args(own)
    for name in ("processes", "devices_per_process"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1 (got {getattr(args, name)})")
    if not flags:
        parser.error("nothing to train; give the flags of `clip_jax train` after --")
    return args, flags


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(port: int, processes: int, devices: int, i: int) -> dict[str, str]:
    """What process `i` finds beside the environment of this one."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "CLIP_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "CLIP_JAX_NUM_PROCESSES": str(processes),
        "CLIP_JAX_PROCESS_ID": str(i),
        "PYTHONUNBUFFERED": "1",
    }


def start(command: Sequence[str], own: dict[str, str]) -> subprocess.Popen[str]:
    """A process in a group of its own: a Ctrl-C reaches it through `forward` alone."""
    if any("_proxy" in name.lower() for name in os.environ):
        own = own | {"no_grpc_proxy": "127.0.0.1"}  # what stays here passes through none
    lead = own["CLIP_JAX_PROCESS_ID"] == "0"
    return subprocess.Popen(
        command,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        stdout=None if lead and sys.stdout.isatty() else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def tell(text: str, out: IO[str]) -> None:
    """While somebody reads it; Ctrl-C ends `| tee` too, and the status is still wanted."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


class Relay:
    """What the processes say, each line once and with the number of who said it first."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._lock = threading.Lock()

    def follow(self, i: int, stream: IO[str], out: IO[str]) -> None:
        """Passes on the lines of process `i` to `out` until it ends."""
        noisy = False
        for line in stream:
            noisy = bool(NOISE.fullmatch(line) or (noisy and REST.fullmatch(line)))
            if noisy:
                continue
            with self._lock:
                if self._said.setdefault(line, i) == i:
                    tell(f"[{i}] {line}" if i else line, out)


def watch(children: Sequence[subprocess.Popen[str]]) -> int:
    """Waits for all. Returns 0, or the status of the first that fails, and then ends the rest."""
    ended: queue.Queue[tuple[int, int]] = queue.Queue()

    def wait(i: int) -> None:
        code = children[i].wait()
        ended.put((i, code if code >= 0 else 128 - code))

    for i in range(len(children)):
        threading.Thread(target=wait, args=(i,), daemon=True).start()
    codes: list[tuple[int, int]] = []
    end, killed = math.inf, False
    while len(codes) < len(children):
        try:
            codes.append(ended.get(timeout=0.2))
            if codes[-1][1]:
                end = min(end, time.monotonic() + GRACE_S)
        except queue.Empty:
            if time.monotonic() > end:
                killed = True
                for child in children:
                    child.kill()
    i, first = next(((i, code) for i, code in codes if code), (0, 0))
    if killed or len({code for _, code in codes}) > 1:
        how = f"was killed by {_name(first)}" if first > 128 else "ended"
        tell(f"process {i} {how} first, with status {first}\n", sys.stderr)
    return first


def _name(status: int) -> str:
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return f"signal {status - 128}"


def main(argv: Sequence[str]) -> int:
    """Runs the processes and returns the exit status."""
    args, flags = parse(argv)
    port, relay, n = free_port(), Relay(), args.processes
    each = [environment(port, n, args.devices_per_process, i) for i in range(n)]
    command = [args.python, "-m", "clip_jax", "train", *flags]
    if args.dry_run:
        for own in each:
            print(*(f"{k}={v}" for k, v in own.items()), shlex.join(command))
        return 0
    children = [start(command, own) for own in each]

    def forward(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    threads = []
    for i, child in enumerate(children):
        for stream, out in (
            (child.stdout, sys.stderr if i else sys.stdout),
            (child.stderr, sys.stderr),
        ):
            if stream is not None:
                args = (i, stream, out)
                threads.append(threading.Thread(target=relay.follow, args=args, daemon=True))
                threads[-1].start()
    status = watch(children)
    for thread in threads:
        thread.join(timeout=1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
