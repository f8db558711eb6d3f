"""What processes agree on, with threads in the place of processes and a dict as their service."""

import itertools
import socket
import threading
import time

import pytest

from clip_jax.errors import RESTART, USER, Stop, UserError
from clip_jax.sharding import processes


class Service:
    """The part of jax's coordination service that is used."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()
        self.waits_ms = set()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self._values and value, key
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        self.waits_ms.add(timeout_in_ms)
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, 10), key
            return self._values[key]


class Calls(threading.local):
    """A count for each thread."""

    def __init__(self):
        self._count = itertools.count()

    def __next__(self):
        return next(self._count)


@pytest.fixture
def run(monkeypatch):
    """Calls a function of the process number in `count` processes; results or exceptions."""

    def run(call, count=3, hosts=None):
        me, service = threading.local(), Service()
        monkeypatch.setattr(processes, "_client", lambda: service)
        monkeypatch.setattr(processes, "_calls", Calls())
        monkeypatch.setattr(processes.jax, "process_count", lambda: count)
        monkeypatch.setattr(processes.jax, "process_index", lambda: me.index)
        monkeypatch.setattr(socket, "gethostname", lambda: hosts[me.index] if hosts else "one host")
        results = [None] * count

        def process(i):
            me.index = i
            try:
                results[i] = call(i)
            except (UserError, Stop) as e:
                results[i] = e

        threads = [threading.Thread(target=process, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        return results

    return run


def refused(results, message):
    """Process 0 tells, the others end with the same status and say nothing."""
    assert isinstance(results[0], UserError) and str(results[0]) == message
    assert all(isinstance(r, Stop) and r.status == USER and not str(r) for r in results[1:])
    return True


def test_all_get_what_process_0_makes_of_it(run):
    assert run(lambda i: processes.agree(f"{i}", "+".join)) == ["0+1+2"] * 3
    assert run(lambda i: processes.tell(f"from {i}")) == ["from 0"] * 3
    assert run(lambda i: [processes.tell(""), processes.tell("b")]) == [["", "b"]] * 3


def test_a_mistake_of_one_is_one_of_all(run):
    def call(i):
        if i == 1:
            raise UserError("x: is wrong; mend it")
        return i

    assert refused(
        run(lambda i: processes.together(lambda: call(i))), "process 1: x: is wrong; mend it"
    )
    assert run(lambda i: processes.together(lambda: i)) == [0, 1, 2]


def test_a_mistake_of_all_is_told_once(run):
    def call():
        raise UserError("x: is wrong; mend it")

    assert refused(run(lambda i: processes.together(call)), "x: is wrong; mend it")


def test_only_process_0_does_it(run):
    done = []
    assert run(lambda i: processes.on_lead(lambda: done.append(i) or "it")) == ["it", None, None]
    assert done == [0]

    def fail():
        raise UserError("lock: is held")

    assert refused(run(lambda i: processes.on_lead(fail)), "lock: is held")


def test_the_first_of_each_host_builds_and_the_others_find_it(run):
    built, lock = [], threading.Lock()

    def open_data(i):
        with lock:
            host = "ab"[i // 2]
            found = host in built
            if not found:
                time.sleep(0.05)
                built.append(host)
            return found

    hosts = ["a", "a", "b", "b"]
    found = run(lambda i: processes.by_host(lambda: open_data(i)), count=4, hosts=hosts)
    assert found == [False, True, False, True]

    def broken(i):
        if i == 3:
            raise UserError("data: is gone")

    results = run(lambda i: processes.by_host(lambda: broken(i)), count=4, hosts=hosts)
    assert refused(results, "process 3: data: is gone")


def test_what_a_host_builds_may_take_longer_than_an_answer(run):
    waits_ms = lambda call: run(lambda i: call() or processes._client().waits_ms)[0]  # noqa: E731
    assert waits_ms(lambda: processes.together(lambda: None)) == {3_600_000}
    assert waits_ms(lambda: processes.by_host(lambda: None)) == {3_600_000, 24 * 3_600_000}


def test_differences_are_named(run):
    facts = lambda i: {"seed": 7 if i == 2 else 0, "scale": float("nan"), "shape": (1, 2)}  # noqa: E731
    results = run(lambda i: processes.same(facts(i), "give all the same"))
    want = "process 2: differs from process 0: seed is 7, there 0; give all the same"
    assert refused(results, want)
    assert run(lambda i: processes.same(facts(0), "")) == [None] * 3


def test_an_end_is_told_by_process_0(run):
    results = run(lambda i: processes.stop("saved", RESTART))
    assert [str(r) for r in results] == ["saved", "", ""]
    assert {r.status for r in results} == {RESTART}


def test_a_single_process_just_calls():
    with pytest.raises(UserError, match="^x$") as e:
        processes.together(lambda: (_ for _ in ()).throw(UserError("x")))
    assert e.value.__traceback__ is not None
    assert processes.by_host(lambda: 5) == processes.on_lead(lambda: 5) == 5
    assert processes.tell("a") == "a" and processes.lead()
