import io
import json
import math
import os
import subprocess
import sys
import uuid

import numpy as np
import pytest

from clip_jax import files
from clip_jax.errors import UserError
from clip_jax.metrics.writers import JsonlWriter, LiveLine, drop_after, read_metrics


@pytest.fixture(params=["local", "memory"])
def workdir(request, tmp_path):
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def _raw(workdir):
    return files.read_appended(files.join(workdir, "metrics.jsonl"))


def _write(workdir, attempt, steps):
    writer = JsonlWriter(workdir, attempt)
    for step in steps:
        writer.write(step, {"loss": step / 7})
    writer.close()


def _steps(workdir):
    return [(line["attempt"], line["step"]) for line in read_metrics(workdir)]


def test_float32_round_trip_is_bitwise(workdir):
    bits = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint64).astype(np.uint32)
    values = {f"v{i}": float(v) for i, v in enumerate(bits.view(np.float32))}
    JsonlWriter(workdir, 1).write(3, values)
    (line,) = read_metrics(workdir)
    for name, value in values.items():
        if math.isnan(value):
            assert math.isnan(line[name])
        else:
            assert np.float32(line[name]).tobytes() == np.float32(value).tobytes()


def test_line_is_json_of_the_standard_with_step_attempt_time(workdir):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "n": np.int64(5), "f": np.float32(0.1)}
    JsonlWriter(workdir, 2).write(7, values)

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads(_raw(workdir), parse_constant=refuse)
    assert list(line)[:3] == ["step", "attempt", "time"]
    assert (line["step"], line["attempt"]) == (7, 2)
    assert line["time"] > 1.6e9
    assert (line["a"], line["b"], line["c"]) == ("nan", "inf", "-inf")
    assert isinstance(line["n"], int) and line["n"] == 5
    assert line["f"] == float(np.float32(0.1))
    (back,) = read_metrics(workdir)
    assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


def test_a_value_may_not_hide_a_field_of_the_line(workdir):
    with pytest.raises(AssertionError, match="time"):
        JsonlWriter(workdir, 1).write(1, {"time": 0.5})


def test_new_run(workdir):
    assert read_metrics(workdir) == []
    assert drop_after(workdir, 0) == 1
    assert _raw(workdir) == b""


def test_restart_drops_what_lies_past_the_step(workdir):
    _write(workdir, drop_after(workdir, 0), (10, 20, 30))
    assert drop_after(workdir, 20) == 2
    _write(workdir, 2, (30, 40))
    assert _steps(workdir) == [(1, 10), (1, 20), (2, 30), (2, 40)]
    assert drop_after(workdir, 20) == 3  # attempt 2 vanishes, its number is not given again
    assert _steps(workdir) == [(1, 10), (1, 20)]
    assert drop_after(workdir, -1) == 2
    assert _raw(workdir) == b""


def test_nothing_to_drop_leaves_the_file_alone(tmp_path):
    _write(str(tmp_path), 1, (10, 20))
    before = os.stat(tmp_path / "metrics.jsonl").st_ino
    assert drop_after(str(tmp_path), 20) == 2
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == before


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_line_cut_by_a_kill(tmp_path, cut):
    workdir = str(tmp_path)
    _write(workdir, 1, (10, 20, 30))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    # Without its newline a line may still be whole; then it counts.
    left = [(1, 10), (1, 20), (1, 30)][: 3 if cut == 1 else 2]
    assert _steps(workdir) == left
    assert drop_after(workdir, 30) == 2
    _write(workdir, 2, (30, 40))
    assert _steps(workdir) == [*left, (2, 30), (2, 40)]


def test_zeros_of_a_power_loss_are_dropped(tmp_path):
    workdir = str(tmp_path)
    _write(workdir, 1, (10,))
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(bytes(100))
    assert _steps(workdir) == [(1, 10)]
    assert drop_after(workdir, 10) == 2
    assert b"\0" not in _raw(workdir)


def test_remote_rewrite_killed_halfway_leaves_no_doubles():
    workdir = f"memory://{uuid.uuid4().hex}"
    _write(workdir, 1, (10, 20, 30))
    path = files.join(workdir, "metrics.jsonl")
    kept = b"".join(_raw(workdir).splitlines(keepends=True)[:2])
    files.append(path, kept)  # the new part is there, the old ones not yet removed
    assert drop_after(workdir, 20) == 2
    assert _steps(workdir) == [(1, 10), (1, 20)]


def test_unreadable_line_in_the_middle(tmp_path):
    workdir = str(tmp_path)
    _write(workdir, 1, (10,))
    files.append(files.join(workdir, "metrics.jsonl"), b"what\n")
    _write(workdir, 1, (20,))
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 .*got 'what'.*remove it"):
        read_metrics(workdir)


# The live line.


class _Terminal(io.StringIO):
    """Keeps what a reader would see: a carriage return goes back, later letters overwrite."""

    def isatty(self):
        return True

    def screen(self):
        lines = []
        for row in self.getvalue().split("\n"):
            seen = []
            for part in row.split("\r"):
                seen[: len(part)] = part
            lines.append("".join(seen).rstrip())
        return lines


class _Clock:
    def __init__(self):
        self.time_s = 100.0

    def __call__(self):
        return self.time_s


VALUES = {"loss": 2.34567, "speed/examples_per_s": 1750.4, "data/wait_share": 0.021}


def test_plain_lines_first_last_and_every_ten_seconds():
    stream, clock = io.StringIO(), _Clock()
    live = LiveLine(100, stream, now=clock)
    for step in range(1, 101):
        live.update(step, VALUES)
        clock.time_s += 0.5
    live.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"step {s}/100" for s in (1, 21, 41, 61, 81, 100)
    ]
    assert lines[1] == (
        "step 21/100, loss 2.3457, 1,750 examples/s, wait 2%, 00:39 left"  # 79 steps of 0.5 s
    )
    assert "left" not in lines[0] and "left" not in lines[-1]
    assert "\r" not in stream.getvalue()


def test_a_run_that_ends_early_shows_its_last_line():
    stream, clock = io.StringIO(), _Clock()
    live = LiveLine(100, stream, now=clock)
    live.update(1, {})
    clock.time_s += 2
    live.update(2, {"loss": math.nan})
    live.close()
    assert stream.getvalue() == "step 1/100\nstep 2/100, loss nan, 03:16 left\n"


def test_live_line_on_a_terminal_is_not_garbled_by_other_lines():
    stream, clock = _Terminal(), _Clock()
    live = LiveLine(100, stream, now=clock)
    live.say("plan: 100 steps")
    for step in (10, 20, 30):
        live.update(step, VALUES)
        clock.time_s += 1
    live.say("eval\x1b[2J zeroshot: 77.5 %")
    live.update(100, VALUES)
    assert stream.screen()[:2] == ["plan: 100 steps", "eval[2J zeroshot: 77.5 %"]
    assert len(stream.screen()) == 3  # one live line, still open
    live.close()
    assert stream.screen()[2].startswith("[==========] step 100/100, loss 2.3457")
    assert stream.screen()[3:] == [""]
    assert "\x1b" not in stream.getvalue()


def test_bar_and_time_left_after_a_restart():
    stream, clock = _Terminal(), _Clock()
    live = LiveLine(100, stream, now=clock)
    live.update(50, {})
    clock.time_s += 30
    live.update(75, {})
    assert stream.screen() == ["[=======   ] step 75/100, 00:30 left"]
    live.close()


@pytest.mark.parametrize("size", [(0, 0), (24, 80), (24, 40)])
def test_a_real_terminal_of_any_size(size):
    """Containers report 0 rows and 0 columns; the line must show, in one row."""
    termios = pytest.importorskip("termios")
    main, side = os.openpty()
    termios.tcsetwinsize(side, size)
    with open(side, "w") as stream:
        live = LiveLine(1600, stream)
        live.update(1, VALUES)
        live.update(1600, VALUES)
        live.close()
        shown = ""
        while "\n" not in shown:  # a terminal hands over what it has so far
            shown += os.read(main, 10_000).decode()
    os.close(main)
    rows = [row for row in shown.replace("\n", "\r").split("\r") if row.strip()]
    assert rows[-1].startswith("[==========] step 1600/1600"[: size[1] or 80])
    assert max(len(row) for row in rows) < (size[1] or 80)


def test_letters_that_the_stream_lacks():
    raw = io.BytesIO()
    live = LiveLine(10, io.TextIOWrapper(raw, encoding="ascii"))
    live.say("é \udc80")
    live.update(1, {})
    live.close()
    assert raw.getvalue().startswith(b"? ?\nstep 1/10")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "x"), OSError(28, "full"), ValueError("x")])
def test_a_broken_stream_is_dropped(tty, error):
    class Broken(io.StringIO):
        calls = 0

        def isatty(self):
            return tty

        def write(self, text):
            self.calls += 1
            raise error

    stream = Broken()
    live = LiveLine(10, stream)
    live.update(1, VALUES)
    live.say("x")
    live.update(10, VALUES)
    live.close()
    assert stream.calls == 1


@pytest.mark.parametrize("stream", [None, "closed"])
def test_stdout_closed_from_the_start(stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    live = LiveLine(10, stream)
    live.say("x")
    live.update(1, VALUES)
    live.close()


def test_pipe_to_head_ends_with_status_0():
    script = (
        "import sys; from clip_jax.metrics.writers import LiveLine\n"
        "live = LiveLine(5, sys.stdout, now=iter(range(0, 1000, 20)).__next__)\n"
        "for step in range(1, 6): live.update(step, {}); sys.stdin.readline()\n"
        "live.close(); print('more'); print('done', file=sys.stderr)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin and child.stdout and child.stderr
    assert child.stdout.readline() == "step 1/5\n"
    child.stdout.close()
    child.stdin.write("\n" * 5)
    child.stdin.close()
    assert child.stderr.read() == "done\n"
    child.stderr.close()
    assert child.wait(timeout=20) == 0
