"""One workdir has one owner, whoever dies and whenever."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_jax import files
from clip_jax.checkpoint import lock
from clip_jax.errors import UserError

OWNER = """
import sys, time
from clip_jax.checkpoint.lock import WorkdirLock
from clip_jax.errors import UserError
try:
    WorkdirLock(sys.argv[1], say=lambda line: None).acquire()
    print("held", flush=True)
    sys.stdin.read()
except UserError as e:
    print("refused", e, flush=True)
"""


@pytest.fixture
def start():
    """Starts processes that want the lock and hold it until they are killed."""
    children = []

    def start(workdir):
        command = [sys.executable, "-c", OWNER, str(workdir)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture(params=["local", "memory"])
def workdir(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def record(workdir):
    return json.loads(files.read_bytes(files.join(workdir, "lock.json")))


def put(workdir, **changes):
    """Writes the lock of an owner on another host, and returns it."""
    owner = {
        "host": "elsewhere",
        "pid": 77,
        "process_start": "boot/pid/1",
        "started": 0.0,
        "heartbeat": time.time(),
        "token": "theirs",
    } | changes
    files.write_bytes(files.join(workdir, "lock.json"), json.dumps(owner).encode())
    return owner


def test_second_run_is_refused_and_told_by_whom(workdir):
    with lock.hold(workdir, print):
        owner = record(workdir)
        with pytest.raises(UserError) as e, lock.hold(workdir, print):
            pass
        assert record(workdir) == owner
    assert f"process {os.getpid()} on {owner['host']}, started 20" in str(e.value)
    assert files.names(workdir) == []
    with lock.hold(workdir, print):
        pass


def test_released_after_an_exception(workdir):
    with pytest.raises(KeyError), lock.hold(workdir, print):
        raise KeyError
    assert files.names(workdir) == []


def test_killed_owner_is_taken_over_at_once(start, tmp_path):
    owner = start(tmp_path)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {owner.pid} on "):
        lock.WorkdirLock(str(tmp_path), print).acquire()
    owner.kill()
    while lock._start(owner.pid) is not None:  # not reaped: a zombie is dead too
        time.sleep(0.01)
    said = []
    with lock.hold(str(tmp_path), said.append):
        assert record(str(tmp_path))["pid"] == os.getpid()
    assert len(said) == 1 and f"process {owner.pid} on " in said[0]
    assert os.listdir(tmp_path) == []


def test_pid_that_another_process_got_is_not_the_owner(tmp_path):
    me = lock._myself()
    boot, namespace, ticks = me.process_start.split("/")
    earlier = f"{boot}/{namespace}/{int(ticks) - 1}"
    put(str(tmp_path), host=me.host, pid=me.pid, process_start=earlier)
    with lock.hold(str(tmp_path), print):
        pass


@pytest.mark.parametrize("system", ["another boot/pid", "boot/another namespace"])
def test_same_host_name_is_not_the_same_system(system, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 0.0)
    monkeypatch.setattr(lock, "_WATCH_S", 0.0)
    put(str(tmp_path), host=lock._myself().host, process_start=f"{system}/1")
    said = []
    with lock.hold(str(tmp_path), said.append):
        assert "sign of life" in said[0]


def test_other_host_is_taken_over_when_its_heartbeat_stands_still(workdir, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lock.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    for age, waits in [(20, 100), (119, 30), (3600, 30), (-600, 120)]:  # -600: their clock is fast
        before = clock[0]
        put(workdir, heartbeat=time.time() - age)
        said = []
        with lock.hold(workdir, said.append):
            assert record(workdir)["token"] != "theirs"
        assert clock[0] - before == pytest.approx(waits, abs=1.01)
        assert "looking up to" in said[0] and "taken over" in said[1] and len(said) == 2


def test_other_host_that_lives_is_not_taken_over_even_if_its_clock_is_slow(workdir, monkeypatch):
    owner = put(workdir, heartbeat=time.time() - 600)
    beats = iter(range(100))

    def sleep(seconds):
        if next(beats) == 20:
            put(workdir, heartbeat=owner["heartbeat"] + 20)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(UserError, match="process 77 on elsewhere"), lock.hold(workdir, print):
        pass


def test_released_while_we_watch(workdir, monkeypatch):
    put(workdir)
    path = files.join(workdir, "lock.json")
    monkeypatch.setattr(lock.time, "sleep", lambda s: files.remove(path))
    with lock.hold(workdir, print):
        assert record(workdir)["pid"] == os.getpid()


def test_heartbeat_moves(workdir, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with lock.hold(workdir, print):
        first = record(workdir)
        while (later := record(workdir))["heartbeat"] == first["heartbeat"]:
            time.sleep(0.01)
    assert later == first | {"heartbeat": later["heartbeat"]}


def test_owner_learns_that_it_was_taken_over(workdir, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with lock.hold(workdir, print) as mine:
        mine.check()
        theirs = put(workdir)
        while mine._thread.is_alive():  # a beat on its way may write over the first
            theirs = put(workdir)
            mine._thread.join(timeout=0.2)
        with pytest.raises(UserError, match="taken over by another run .process 77 on elsewhere"):
            mine.check()
    assert record(workdir) == theirs  # release left their lock alone


def test_heartbeat_survives_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    real, fail = files.write_bytes, threading.Event()

    def write(path, data):
        if not fail.is_set():
            fail.set()
            raise UserError("the disk is full")
        real(path, data)

    monkeypatch.setattr(files, "write_bytes", write)
    with lock.hold(str(tmp_path), print) as mine:
        first = record(str(tmp_path))
        while record(str(tmp_path)) == first:
            time.sleep(0.01)
        mine.check()


def test_unreadable_lock_is_taken_over(workdir):
    for data in [b"", b"{", b"[]", b"{}", b'{"pid": 3}']:
        files.write_bytes(files.join(workdir, "lock.json"), data)
        with lock.hold(workdir, print):
            assert record(workdir)["pid"] == os.getpid()


def dead(pid=2**22 + 1):  # above the largest pid
    me = lock._myself()
    return {"host": me.host, "pid": pid, "process_start": me.process_start}


@pytest.fixture
def atomic(monkeypatch):
    """One call after the other, as buckets do: fsspec's memory looks first and makes then."""
    once = threading.Lock()
    for name in ("pipe_file", "cat_file", "rm_file"):
        plain = getattr(MemoryFileSystem, name)

        def alone(*args, plain=plain, **kwargs):
            with once:
                return plain(*args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, alone)


@pytest.mark.usefixtures("atomic")
def test_one_of_many_takers_wins(workdir, monkeypatch):
    read = files.read_bytes

    def slow(path):  # every taker sees the dead owner before one acts
        data = read(path)
        time.sleep(0.01)
        return data

    monkeypatch.setattr(files, "read_bytes", slow)
    for attempt in range(5):
        put(workdir, **dead(), token=f"dead{attempt}")
        locks = [lock.WorkdirLock(workdir, lambda line: None) for _ in range(8)]
        refused = []

        def take(each, refused=refused):
            try:
                each.acquire()
            except UserError:
                refused.append(each)

        threads = [threading.Thread(target=take, args=(each,)) for each in locks]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(refused) == 7
        (winner,) = set(locks) - set(refused)
        assert record(workdir)["token"] == winner._owner.token
        for each in locks:
            each.release()
        assert files.names(workdir) == []


def test_slow_taker_does_not_rob_the_one_that_was_faster(workdir, monkeypatch):
    put(workdir, **dead())
    fast = lock.WorkdirLock(workdir, print)
    lives = lock._lives

    def then_another_takes_over(path, owner, say):
        monkeypatch.setattr(lock, "_lives", lives)
        answer = lives(path, owner, say)
        fast.acquire()
        return answer

    monkeypatch.setattr(lock, "_lives", then_another_takes_over)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        lock.WorkdirLock(workdir, print).acquire()
    assert record(workdir)["token"] == fast._owner.token
    fast.release()
    assert files.names(workdir) == []


def test_taker_that_died_half_way_does_not_block(workdir):
    put(workdir, **dead(), token="first")
    owner = record(workdir) | {"token": "second"}
    claim = files.join(workdir, "lock.json.takeover-first")
    files.write_bytes(claim, json.dumps(owner).encode())
    with lock.hold(workdir, print):
        assert files.names(workdir) == ["lock.json"]


@pytest.mark.slow
def test_two_processes_take_over_at_once(start, tmp_path):
    for _ in range(3):
        put(str(tmp_path), **dead())
        answers = [start(tmp_path) for _ in range(3)]
        lines = sorted(child.stdout.readline().split()[0] for child in answers)
        assert lines == ["held", "refused", "refused"]
        for child in answers:
            child.kill()
            child.wait()
