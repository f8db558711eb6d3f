"""One workdir, one owner: the file workdir/lock.json, with a heartbeat.

    {host, pid, process_start, started, heartbeat, token}

The file appears whole or not at all (`files.create`), so of two runs that start at once one gets
it. A run that was killed leaves it behind; the next one takes it over when the owner is provably
gone: at once if its process is not there any more (same host), else when the heartbeat stands still
for `STALE_S` seconds by the owner's time stamp, and for a while before our own eyes, because clocks
of hosts differ. Only whoever creates `lock.json.takeover-TOKEN`, a lock of its own for the moment
of taking over, may replace the lock with that token.

Cost: one thread and one small write every `BEAT_S` seconds. In a job of several processes only
process 0 holds the lock.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from clip_jax import files
from clip_jax.errors import UserError
from clip_jax.sharding import processes

BEAT_S = 20.0
STALE_S = 120.0
_WATCH_S = 30.0  # at least one beat is due in this time


@dataclasses.dataclass(frozen=True)
class _Owner:
    host: str
    pid: int
    process_start: str  # see _start
    started: float  # seconds since 1970, as is heartbeat
    heartbeat: float
    token: str

    def __str__(self) -> str:
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return f"process {self.pid} on {self.host}, started {started}"


class WorkdirLock:
    """The lock of a workdir, held from `acquire` to `release`.

    Args:
        workdir: folder or URL of the run.
        say: prints one line; told when the lock of a dead run is taken over.
    """

    def __init__(self, workdir: str, say: Callable[[str], None]):
        self._workdir = workdir
        self._say = say
        self._path = files.join(workdir, "lock.json")
        self._owner = _myself()
        self._lost_to: _Owner | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="workdir-lock", daemon=True)

    def acquire(self) -> None:
        """Takes the lock. May wait up to two minutes to see whether an owner elsewhere lives.

        Raises:
            UserError: another run holds it.
        """
        holder = _take(self._path, self._owner, self._say)
        if holder is not None:
            raise UserError(
                f"{self._workdir}: in use by another run ({holder}); wait for it or stop it, or "
                "choose another folder"
            )
        self._thread.start()

    def check(self) -> None:
        """Raises UserError if another run took the lock, as after a long sleep of this machine."""
        if self._lost_to is not None:
            raise UserError(
                f"{self._workdir}: taken over by another run ({self._lost_to}) while this one did "
                "not answer; stop one of the two"
            )

    def release(self) -> None:
        """Stops the heartbeat and deletes the file, if it is still ours. No error if not held."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        owner = _read(self._path)
        if owner is not None and owner.token == self._owner.token:
            files.remove(self._path)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(Exception):  # a full disk or a lost network may pass
                now = _read(self._path)
                if now is not None and now.token != self._owner.token:
                    self._lost_to = now
                    return
                files.write_bytes(self._path, _encode(self._owner))


@contextlib.contextmanager
def hold(workdir: str, say: Callable[[str], None]) -> Iterator[WorkdirLock]:
    """Holds the lock of a workdir. In a job of several processes all call this.

    Raises:
        UserError: as `acquire` does, on all processes; or one of them does not see the folder.
    """
    lock = WorkdirLock(workdir, say)
    processes.on_lead(lock.acquire)
    try:
        there = processes.lead() or files.exists(files.join(workdir, "lock.json"))
        blind = f"{workdir}: does not show what process 0 wrote there; give all one shared folder"
        processes.check("" if there else blind)
        yield lock
    finally:
        lock.release()


def _take(path: str, mine: _Owner, say: Callable[[str], None]) -> _Owner | None:
    """Makes the lock file `path` ours. Returns the owner if it lives, None on success."""
    while not files.create(path, _encode(mine)):
        owner = _read(path)
        if owner is None:
            continue  # released just now
        if _lives(path, owner, say):
            return owner
        claim = f"{path}.takeover-{owner.token}"
        rival = _take(claim, mine, say)  # the claim of a taker that died can be taken over too
        if rival is not None:
            return rival
        try:
            now = _read(path)
            if now is not None and now.token == owner.token:
                files.write_bytes(path, _encode(mine))
                say(f"{path}: taken over from a run that is gone ({owner})")
                return None
        finally:
            files.remove(claim)
    return None


def _lives(path: str, owner: _Owner, say: Callable[[str], None]) -> bool:
    """Whether the owner's process runs (same host), or its heartbeat moves (another host)."""
    if not owner.token:  # unreadable: the disk lost it, since a live owner writes whole files
        return False
    if owner.host == socket.gethostname() and _system(owner.process_start) == _system(_start()):
        return _start(owner.pid) == owner.process_start
    patience = min(max(STALE_S - (time.time() - owner.heartbeat), _WATCH_S), STALE_S)
    say(f"{path}: held by {owner}; looking up to {patience:.0f} s for a sign of life")
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(min(1.0, patience))
        now = _read(path)
        if now is None or now.token != owner.token:
            return False
        if now.heartbeat != owner.heartbeat:
            return True
    return False


def _start(pid: int | None = None) -> str | None:
    """What tells a process from all others, "boot/namespace/start time"; None if it is gone.

    The process namespace tells containers apart that share a host name. "" without a Linux /proc.
    """
    if not os.path.isdir("/proc/self/ns"):
        return "" if _answers(pid or os.getpid()) else None
    try:
        with open(f"/proc/{pid or 'self'}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()  # the name before may hold anything
        with open("/proc/sys/kernel/random/boot_id") as f:
            boot = f.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):  # dead, and its parent has not noticed
        return None
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{fields[19].decode()}"


def _system(process_start: str | None) -> str:
    return (process_start or "").rpartition("/")[0]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _myself() -> _Owner:
    now = time.time()
    return _Owner(socket.gethostname(), os.getpid(), _start() or "", now, now, uuid.uuid4().hex)


def _encode(owner: _Owner) -> bytes:
    return json.dumps(dataclasses.asdict(owner) | {"heartbeat": time.time()}).encode()


def _read(path: str) -> _Owner | None:
    """The owner in a lock file; None without a file; without a token if it is unreadable."""
    try:
        return _Owner(**json.loads(files.read_bytes(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return _Owner("unknown host", 0, "", 0.0, 0.0, "")
