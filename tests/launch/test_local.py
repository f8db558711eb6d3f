"""launch/local.py with a stand-in for clip_jax: who is watched, ended and quoted."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "local.py"
STAND_IN = """
import os, signal, sys, time
me = os.environ["CLIP_JAX_PROCESS_ID"]
exec(open(os.path.join(os.path.dirname(__file__), f"part{me}.py")).read())
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher on a package whose process i runs parts[i]."""
    (tmp_path / "clip_jax").mkdir()
    (tmp_path / "clip_jax" / "__init__.py").write_text("")
    (tmp_path / "clip_jax" / "__main__.py").write_text(STAND_IN)

    def start(*parts, flags=("--config=x",)):
        for i, part in enumerate(parts):
            (tmp_path / "clip_jax" / f"part{i}.py").write_text(part)
        own = [f"--processes={len(parts)}", "--devices_per_process=3"]
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *own, "--", *flags],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,  # Python looks there first
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def end(child, seconds=20.0):
    begin = time.monotonic()
    out, err = child.communicate(timeout=seconds)
    return child.returncode, out, err, time.monotonic() - begin


def test_each_gets_its_place_and_all_flags(start):
    part = """
print(sys.argv[1:], me, os.environ["CLIP_JAX_NUM_PROCESSES"], os.environ["JAX_NUM_CPU_DEVICES"])
print(os.environ["CLIP_JAX_COORDINATOR"], file=sys.stderr)
"""
    status, out, err, _ = end(start(part, part, flags=("--config=a b", "--", "-x")))
    assert status == 0
    assert out == "['train', '--config=a b', '--', '-x'] 0 2 3\n"
    lines = err.splitlines()
    assert "[1] ['train', '--config=a b', '--', '-x'] 1 2 3" in lines
    assert len([x for x in lines if "127.0.0.1:" in x]) == 1  # the same address, told once


@pytest.mark.parametrize(
    ("part", "status", "name"),
    [
        ("sys.exit(3)", 3, "process 1 ended first, with status 3"),
        ("os.kill(os.getpid(), 9)", 137, "process 1 was killed by SIGKILL first, with status 137"),
    ],
)
@pytest.mark.slow
def test_the_first_that_fails_ends_the_others(start, part, status, name):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
    got, _, err, seconds = end(start(deaf, part, deaf))
    assert got == status and name in err
    assert seconds < 10


def test_the_others_get_a_moment_to_end(start):
    late = "time.sleep(1)\nprint('error: x: is wrong; mend it', file=sys.stderr)\nsys.exit(2)"
    status, _, err, _ = end(start(late, "sys.exit(2)"))
    assert status == 2 and err == "error: x: is wrong; mend it\n"


def test_what_all_say_is_told_once(start):
    part = "print('error: x: is wrong', file=sys.stderr)\nprint(f'only {me}', file=sys.stderr)"
    noise = """
print('[Gloo] Rank 1 is connected to [Gloo] Rank 3 peer ranks. ', file=sys.stderr)
print('2 is connected to 3 peer ranks. Expected number of connected peer ranks is : 33')
print(' ')
print(3)
"""
    status, out, err, _ = end(
        start(part + noise + "print('ours')\nprint(42)\nprint()", noise + part)
    )
    assert (status, out) == (0, "ours\n42\n\n")
    lines = sorted(err.splitlines())
    assert lines in (
        ["[1] only 1", "error: x: is wrong", "only 0"],
        ["[1] error: x: is wrong", "[1] only 1", "only 0"],
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_all_and_their_end_is_awaited(start, number):
    part = """
def stop(number, frame):
    time.sleep(0.5)
    print("saved", number, file=sys.stderr)
    sys.exit(42)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
print("ready", me, file=sys.stderr, flush=True)
time.sleep(600)
"""
    child = start(part, part)
    assert {child.stderr.readline(), child.stderr.readline()} == {"ready 0\n", "[1] ready 1\n"}
    child.send_signal(number)
    status, _, err, seconds = end(child)
    assert status == 42 and err.count(f"saved {int(number)}") == 1 and seconds < 5


def test_the_status_is_given_when_nobody_reads_any_more(start):
    """Though the processes say more than a pipe holds."""
    part = """
def stop(number, frame):
    for i in range(10_000):
        print("saving the step", me, i, flush=True)
    sys.exit(42)
signal.signal(signal.SIGTERM, stop)
print("ready", me, file=sys.stderr, flush=True)
time.sleep(600)
"""
    child = start(part, part)
    assert {child.stderr.readline(), child.stderr.readline()} == {"ready 0\n", "[1] ready 1\n"}
    child.stdout.close()
    child.stderr.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 42


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_nobody_outlives_the_launcher(start, tmp_path):
    child = start(f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)", "")
    for _ in range(100):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    child.kill()
    child.communicate(timeout=20)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        stat = pathlib.Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] in "ZX":
            return
        time.sleep(0.1)
    raise AssertionError("still there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0", "--", "--config=x"], "--processes must be at least 1 (got 0)"),
        (["--processes=2"], "nothing to train; give the flags"),
        (["--proc=2", "--", "--config=x"], "unrecognized arguments: --proc=2"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: launch/local.sh: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
