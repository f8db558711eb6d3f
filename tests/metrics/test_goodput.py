"""Where the time went: sums by cause, over attempts that were killed too."""

import pytest

from clip_jax.metrics.goodput import CAUSES, Ledger, summary

pytestmark = pytest.mark.core


class Hands:
    """A clock that is moved by hand."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def test_causes_and_what_is_left():
    now = Hands()
    ledger = Ledger(now)
    now.time += 3
    with ledger.spend("compilation"):
        now.time += 2
    now.time += 1
    ledger.started()
    now.time += 10
    for cause, seconds in (("input", 1), ("evaluation", 2), ("input", 1)):
        with ledger.spend(cause):
            now.time += seconds
    values = ledger.values()
    assert values.pop("goodput") == pytest.approx(10 / 20)
    assert values == {f"time/{c}_s": 0.0 for c in CAUSES} | {
        "time/total_s": 20.0, "time/start_s": 4.0, "time/compilation_s": 2.0, "time/input_s": 2.0,
        "time/evaluation_s": 2.0,
    }  # fmt: skip


def test_time_is_counted_when_the_work_fails():
    now = Hands()
    ledger = Ledger(now)
    with pytest.raises(OSError), ledger.spend("checkpoint"):
        now.time += 5
        raise OSError
    assert ledger.values()["time/checkpoint_s"] == 5


def line(attempt, time, total, **spent):
    return {"attempt": attempt, "time": time, "time/total_s": total} | {
        f"time/{k}_s": v for k, v in spent.items()
    }


def test_a_run_that_was_killed_and_started_again():
    """Ten minutes between: no process, and the steps after attempt 1's last line."""
    lines = [
        {"attempt": 1, "time": 1000.0, "eval/x/top1": 0.1},  # tells nothing of time
        line(1, 1010.0, 10.0, start=5.0),
        line(1, 1100.0, 100.0, start=5.0, input=15.0),
        line(2, 1750.0, 50.0, start=10.0, evaluation=10.0),
    ]
    found = summary(lines)
    assert found.wall_s == 750.0
    assert found.steps_s == 80.0 + 30.0 and found.share == pytest.approx(110 / 750)
    lost = {k: v for k, v in found.lost_s.items() if v}
    assert lost == {"start": 15.0, "input": 15.0, "evaluation": 10.0, "restart": 600.0}
    assert sum(lost.values()) + found.steps_s == found.wall_s
    assert found.text() == (
        "15 % of 750 s were steps; restart 600 s, start 15 s, input 15 s, evaluation 10 s"
    )


def test_older_metrics_tell_nothing():
    assert summary([{"attempt": 1, "time": 5.0, "loss": 1.0}]) is None and summary([]) is None
