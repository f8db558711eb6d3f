import pytest

from clip_jax.metrics.clock import Clock


class _Now:
    def __init__(self):
        self.time_s = 1000.0

    def __call__(self):
        return self.time_s


def test_lap_counts_steps_waiting_and_leaves_pauses_out():
    now = _Now()
    clock = Clock(32, 100, now=now)
    for _ in range(10):
        with clock.waiting():
            now.time_s += 0.5
        now.time_s += 1.5
    with clock.paused():
        now.time_s += 60
    assert clock.lap(110) == pytest.approx(
        {"speed/examples_per_s": 16.0, "speed/step_s": 2.0, "data/wait_share": 0.25}
    )


def test_laps_are_independent():
    now = _Now()
    clock = Clock(8, now=now)
    with clock.waiting():
        now.time_s += 4
    with clock.paused():
        now.time_s += 5
    clock.lap(1)
    now.time_s += 2
    assert clock.lap(5) == {
        "speed/examples_per_s": 16.0,
        "speed/step_s": 0.5,
        "data/wait_share": 0.0,
    }


def test_a_lap_without_a_step_goes_on():
    now = _Now()
    clock = Clock(8, 3, now=now)
    now.time_s += 2
    assert clock.lap(3) == {}
    now.time_s += 2
    assert clock.lap(4)["speed/step_s"] == 4.0


def test_time_counts_when_the_input_ends():
    now = _Now()
    clock = Clock(8, now=now)
    with pytest.raises(StopIteration), clock.waiting():
        now.time_s += 1
        next(iter(()))
    now.time_s += 1
    assert clock.lap(1)["data/wait_share"] == 0.5


def test_a_clock_that_stands_still_does_not_divide_by_zero():
    assert Clock(8, now=_Now()).lap(1)["data/wait_share"] == 0.0
