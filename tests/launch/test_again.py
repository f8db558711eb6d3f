"""launch/again.py with a stand-in for clip_jax: what is started again, and when it gives up."""

import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

import clip_jax

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "again.py"
# Writes its arguments, then takes the next line of `plan`: a status, a signal, or both a saved step
# and one of them.
STAND_IN = """
import os, signal, sys, time
here = os.path.dirname(__file__)
with open(here + "/calls", "a") as f:
    print(sys.argv[1:], file=f)
with open(here + "/plan") as f:
    lines = f.read().split("\\n")
line = lines[sum(1 for _ in open(here + "/calls")) - 1].split()
run = [a for a in sys.argv if a.startswith("--workdir=")][0].partition("=")[2]
if line[0] == "save":
    os.makedirs(f"{run}/checkpoints/{line[1]}")
    line = line[2:]
if line[0] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
    print("waiting", flush=True)
    time.sleep(60)
if line[0] == "kill":
    os.kill(os.getpid(), int(line[1]))
sys.exit(int(line[0]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script on a package that behaves as planned, and gives its calls afterwards."""
    package = tmp_path / "clip_jax"
    package.mkdir()
    real = pathlib.Path(clip_jax.__file__).parent
    (package / "__init__.py").write_text(f"__path__.append({str(real)!r})\n")
    (package / "__main__.py").write_text(STAND_IN)

    def start(*plan, most=3, wait="0.05", nohup=False, before=()):
        (package / "plan").write_text("\n".join(plan))
        run = tmp_path / "a run"
        words = [f"--most={most}", "--", *before, "--config=a b", f"--workdir={run}"]
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "CLIP_JAX_WAIT": wait},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if nohup else None,
        )

    start.calls = lambda: (package / "calls").read_text().splitlines()
    return start


@pytest.mark.parametrize("status", ["0", "1", "2", "3", "4", "130"])
def test_what_would_come_again_is_not_started_again(start, status):
    child = start(status)
    _, err = child.communicate(timeout=30)
    assert child.returncode == int(status)
    assert err.splitlines()[0].startswith(f"attempt 1: status {status} after")
    assert len(start.calls()) == 1 and "'--config=a b'" in start.calls()[0]


def test_preemptions_and_kills_are_gone_on_from(start):
    child = start("save 100 42", "kill 9", "kill 15", "save 200 0")
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    lines = err.splitlines()
    assert len(set(start.calls())) == 1 and len(start.calls()) == 4
    assert lines[0].startswith("attempt 1: status 42 after")
    assert lines[0].endswith("checkpoint at step 100; again in 0 s")
    assert "attempt 2: status 137" in lines[1] and "attempt 3: status 143" in lines[2]
    assert lines[3].endswith("checkpoint at step 200")


def test_it_gives_up_without_a_new_checkpoint_and_counts_anew_after_one(start):
    child = start("42", "42", "save 5 42", "42", "42", "42", most=2)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1  # what runs it does not start it again
    assert len(start.calls()) == 5
    assert err.splitlines()[-1].endswith("step 5; 2 restarts brought no checkpoint: giving up")


def test_waits_double_and_a_checkpoint_sets_them_back(monkeypatch, capsys):
    """Ten minutes at most; saved steps are those before the first start and after each attempt."""
    spec = importlib.util.spec_from_file_location("again", SCRIPT)
    assert spec and spec.loader
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    waits = []

    class Child:
        asked = 0

        def run(self, command):
            return 42

        def wait(self, seconds):
            waits.append(seconds)

    steps = iter([0, 0, 0, 5, *[5] * 10])
    monkeypatch.setattr(again, "Child", Child)
    monkeypatch.setattr(again, "saved_step", lambda workdir: next(steps))
    monkeypatch.delenv("CLIP_JAX_WAIT", raising=False)
    assert again.main(["--most=9", "--", "--workdir=x"]) == 1
    assert waits == [10, 20, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert "again in 600 s" in capsys.readouterr().err


def test_a_signal_is_passed_on_and_ends_it(start):
    child = start("wait", "0")
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    child.communicate(timeout=30)
    assert child.returncode == 42 and len(start.calls()) == 1
    assert time.monotonic() - begin < 10


def test_the_status_is_given_when_nobody_reads_any_more(start):
    """As when Ctrl-C ends `| tee` too."""
    child = start("wait", "0")
    assert child.stdout.readline() == "waiting\n"
    child.stdout.close()
    child.stderr.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 42


def test_a_signal_ends_the_wait(start):
    child = start("42", "0", wait="60")
    assert "again in 60 s" in child.stderr.readline()
    child.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    child.communicate(timeout=30)
    assert child.returncode == 42 and len(start.calls()) == 1
    assert time.monotonic() - begin < 10


def test_a_hangup_that_is_ignored_stays_so(start):
    child = start("save 1 42", "kill 9", "0", nohup=True)
    child.send_signal(signal.SIGHUP)
    child.communicate(timeout=30)
    assert child.returncode == 0 and len(start.calls()) == 3


def test_several_processes_are_started_again_together(start):
    """local.py gives the status of the first that is killed, and ends the other."""
    local = str(SCRIPT.with_name("local.py"))
    plan = ["kill 9", "kill 9", *["0"] * 5]
    child = start(*plan, before=(sys.executable, local, "--processes=2", "--"))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    said = [line for line in err.splitlines() if line.startswith("attempt")]
    assert "status 137" in said[0] and "status 0" in said[-1] and len(start.calls()) >= 3


@pytest.mark.parametrize(
    ("before", "shown"),
    [([], [sys.executable, "-u", "-m", "clip_jax", "train"]), (["bash", "x y"],) * 2],
)
def test_dry_run_prints_the_command(before, shown):
    flags = ["--config=a b", "--workdir=/no/such place"]
    words = [sys.executable, str(SCRIPT), "--dry_run", "--", *before, *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == [*shown, *flags] and done.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--", "--config=x"],
        ["--mots=3", "--", "x"],
        ["--", "no such program", "--workdir=x"],
    ],
)
def test_mistakes_are_one_line(words):
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: launch/again.py: ")
    assert len(done.stderr.splitlines()) == 1
