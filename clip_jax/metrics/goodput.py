"""Where the time of a run went: steps, and everything that is not a step, by cause.

A cause is measured where it happens; what is left of an attempt are steps. Lines of metrics.jsonl
carry the sums of their attempt (`time/CAUSE_s`), so that a killed attempt is known up to its last
line; what lies between that and the next attempt's start counts as restart: the time without a
process, and the steps that were lost with it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

CAUSES: tuple[str, ...] = ("start", "compilation", "input", "evaluation", "checkpoint", "report")


class Ledger:
    """The time of one attempt, from its construction on.

    Args:
        now: clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._begin = now, now()
        self._spent: dict[str, float] = dict.fromkeys(CAUSES, 0.0)

    @contextlib.contextmanager
    def spend(self, cause: str) -> Iterator[None]:
        """Counts the time inside for `cause`; not within itself."""
        start = self._now()
        try:
            yield
        finally:
            self._spent[cause] += self._now() - start

    def started(self) -> None:
        """The time so far that has no other cause was the start."""
        self._spent["start"] = self._now() - self._begin - sum(self._spent.values())

    def values(self) -> dict[str, float]:
        """`goodput` (share of steps, 0..1), `time/total_s`, and `time/CAUSE_s` of every cause."""
        total = max(self._now() - self._begin, 1e-9)
        steps = max(total - sum(self._spent.values()), 0.0)
        spent = {f"time/{cause}_s": seconds for cause, seconds in self._spent.items()}
        return {"goodput": steps / total, "time/total_s": total, **spent}


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Of a whole run, all attempts.

    Attributes:
        wall_s: from the start of the first attempt to the last line.
        steps_s: spent on steps that count.
        lost_s: the rest, by cause; also "restart".
    """

    wall_s: float
    steps_s: float
    lost_s: dict[str, float]

    @property
    def share(self) -> float:
        """Time of steps over all time, 0..1."""
        return self.steps_s / self.wall_s

    def text(self) -> str:
        """One line: '88 % of 363 s were steps; compilation 20 s, start 12 s'."""
        big = sorted(self.lost_s.items(), key=lambda item: -item[1])
        causes = ", ".join(
            f"{name} {s:,.0f} s" for name, s in big if s >= max(0.5, 0.01 * self.wall_s)
        )
        rest = f"; {causes}" if causes else ""
        return f"{100 * self.share:.0f} % of {self.wall_s:,.0f} s were steps{rest}"


def summary(metrics: Iterable[dict[str, Any]]) -> Goodput | None:
    """The sums over all attempts of metrics.jsonl; None where its lines do not tell."""
    last: dict[int, dict[str, Any]] = {}
    begin = end = None
    for line in metrics:
        if "time/total_s" in line:
            begin = line["time"] - line["time/total_s"] if begin is None else begin
            end = line["time"]
            last[line["attempt"]] = line
    if begin is None or end is None:
        return None
    lost = {c: sum((x.get(f"time/{c}_s", 0.0) for x in last.values()), 0.0) for c in CAUSES}
    seen = sum(line["time/total_s"] for line in last.values())
    steps = max(seen - sum(lost.values()), 0.0)
    lost["restart"] = max(end - begin - seen, 0.0)
    return Goodput(max(end - begin, seen, 1e-9), steps, lost)
