"""What the processes of a job agree on before and beside the steps: strings, by way of process 0.

They travel over jax's coordination service, not through collectives: a process may wait here for
minutes while another builds data, and no device waits with it. All processes make the same calls
in the same order. In a single process every function is a plain call.

An error that all share is told by process 0; the others raise `Stop` without a message.
Costs: two small requests to process 0 for each process and call.
"""

import itertools
import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from clip_jax.errors import RESTART, USER, Stop, UserError

T = TypeVar("T")
WAIT_S = 3600.0
BUILD_S = 24 * WAIT_S  # indexes of all tars; of a process that dies jax tells the others by itself
_calls = itertools.count()  # calls are matched by their order


class Shared(UserError):
    """A mistake that all processes see: none of them fails alone."""


def lead() -> bool:
    """Whether this is process 0, which prints and writes the files of the run."""
    return jax.process_index() == 0


def stop(message: str, status: int) -> Stop:
    """The exception for an end that all processes come to; only process 0 tells of it."""
    return Stop(message if lead() else "", status)


def error(message: str) -> UserError | Stop:
    """The exception for a mistake that all processes see; only process 0 tells of it."""
    return Shared(message) if lead() else Stop("", USER)


def agree(mine: str, judge: Callable[[list[str]], str], wait_s: float = WAIT_S) -> str:
    """Brings a text of every process to process 0, and its judgement to all.

    Args:
        mine: of this process.
        judge: called on process 0 with all texts, by process.
        wait_s: for the others.

    Raises:
        Stop: the others do not come in that time.
    """
    count, me = jax.process_count(), jax.process_index()
    if count == 1:
        return judge([mine])
    place = f"clip_jax/{next(_calls)}"
    if me:
        _put(f"{place}/{me}", mine)
        return _get(f"{place}/answer", 0, wait_s)
    answer = judge([mine, *(_get(f"{place}/{i}", i, wait_s) for i in range(1, count))])
    _put(f"{place}/answer", answer)
    return answer


def tell(text: str) -> str:
    """The text of process 0, on all; those of the others are ignored."""
    return agree("", lambda _: text)


def check(problem: str, wait_s: float = WAIT_S) -> None:
    """Raises on all processes if one of them brings a problem; "" is none.

    Args:
        problem: of this process.
        wait_s: for the others.

    Raises:
        UserError: each problem with the number of its process, or alone if all have the same.
    """
    if message := agree(problem, _joined, wait_s):
        raise error(message)


def together(call: Callable[[], T]) -> T:
    """The result of `call`; a UserError on any process becomes one on all."""
    problem, result = _tried(call)
    check(problem)
    return result


def by_host(call: Callable[[], T]) -> T:
    """As `together`, first on one process of each host: the others find what it built there."""
    me = jax.process_index()
    hosts = json.loads(agree(socket.gethostname(), json.dumps))
    first = hosts.index(hosts[me]) == me
    result: Any = None
    for turn in (True, False):
        problem = ""
        if first is turn:
            problem, result = _tried(call)
        check(problem, BUILD_S)
    return result


def on_lead(call: Callable[[], T]) -> T | None:
    """The result of `call` on process 0, None on the others; its UserError is raised on all."""
    problem, result = _tried(call) if lead() else ("", None)
    if message := tell(problem):
        raise error(message)
    return result


def same(facts: dict[str, Any], advice: str) -> None:
    """Refuses processes whose facts are not those of process 0.

    Args:
        facts: name -> plain JSON data.
        advice: what to do about a difference.

    Raises:
        UserError: every difference, with the number of the process.
    """
    mine = {name: json.dumps(value) for name, value in facts.items()}  # text: NaN is not NaN
    first = json.loads(tell(json.dumps(mine)))
    other = [
        f"{name} is {_short(mine.get(name, 'missing'))}, there {_short(first.get(name, 'missing'))}"
        for name in dict.fromkeys([*first, *mine])
        if mine.get(name) != first.get(name)
    ]
    check(f"differs from process 0: {'; '.join(other)}; {advice}" if other else "")


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _tried(call: Callable[[], T]) -> tuple[str, Any]:
    try:
        return "", call()
    except UserError as e:
        if jax.process_count() == 1:
            raise
        return str(e) or "failed", None


def _joined(problems: list[str]) -> str:
    if len(set(problems)) == 1:
        return problems[0]
    return "\n".join(f"process {i}: {p}" for i, p in enumerate(problems) if p)


def _client() -> Any:
    from jax._src import distributed  # has no public name; Orbax takes it from here too

    return distributed.global_state.client


def _put(key: str, text: str) -> None:
    _client().key_value_set(key, f"={text}")  # never empty


def _get(key: str, process: int, wait_s: float) -> str:
    try:
        return _client().blocking_key_value_get(key, int(wait_s * 1000))[1:]
    except jax.errors.JaxRuntimeError as e:
        why = str(e).partition("\n")[0]
        raise Stop(f"process {process} does not answer: {why}", RESTART) from e
