"""The scripts that stand for a sweep, with stand-ins for what they call."""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sysconfig

import pytest

import tiny
from clip_jax.report.finished import MARK
from clip_jax.sweep import emit
from clip_jax.sweep.trials import Trial

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = ("--config=my recipe.py", "--config.name=it's $HOME")
TRIALS = [Trial(x * 4, {}, (*FLAGS, f"--config.seed={i}"), tiny.config("x")) for i, x in
          enumerate("abc")]  # fmt: skip
# Says what it was called with, and does what `plan` says for the first line that fits. A call is
# recorded in one write: several run at once.
STAND_IN = """#!/usr/bin/env bash
printf -v call '%q ' "$0" "$@"
printf '%s\\n' "$call" >>"$HERE/record"
while IFS='|' read -r pattern command; do
  case "$*" in $pattern) eval "$command"; exit ;; esac
done <"$HERE/plan"
"""


def flags(i):
    return [*FLAGS, f"--config.seed={i}", f"--workdir=my runs/{'abc'[i] * 4}"]


@pytest.fixture
def run(tmp_path):
    """Runs a script in a checkout whose launch/ holds stand-ins; gives (result, calls)."""
    (tmp_path / "launch").mkdir()
    for name in ("launch/tpu_vm.sh", "launch/gke.sh", "launch/slurm_job.sh", "python"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)

    def run(kind, *words, plan="", cwd=None, **more):
        (tmp_path / "record").write_text("")
        (tmp_path / "plan").write_text(plan)
        with contextlib.chdir(cwd or "."):
            text = emit.lines(kind, TRIALS, "my runs")
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", text, "script", *words],
            env={"PATH": path, "HERE": str(tmp_path), "ZONE": "z", "TYPE": "t", **more},
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        calls = [shlex.split(x) for x in (tmp_path / "record").read_text().splitlines()]
        return done, [[pathlib.Path(c[0]).name, *c[1:]] for c in calls]

    run.here = tmp_path
    return run


@pytest.mark.parametrize("kind", emit.KINDS)
def test_shellcheck(kind, tmp_path):
    path = f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin"
    program = shutil.which("shellcheck", path=path)
    if program is None:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "script.sh"
    trials = [dataclasses.replace(t, flags=("--config=x y",)) for t in TRIALS]
    script.write_text(emit.lines(kind, trials, "my runs") + "\n")
    done = subprocess.run([program, "-S", "style", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("kind", emit.KINDS)
def test_finished_trials_are_left_out(kind, tmp_path):
    for trial in TRIALS:
        (tmp_path / trial.name).mkdir()
    (tmp_path / "bbbb" / "report.html").write_bytes(MARK)
    text = emit.lines(kind, TRIALS, str(tmp_path))
    assert [x.split()[1] for x in text.splitlines() if x.startswith("trial ")] == ["aaaa", "cccc"]
    assert "# 1 of 3 trials are finished, and left out." in text
    if kind == "tpu_vm":
        return
    for name in ("aaaa", "cccc"):
        (tmp_path / name / "report.html").write_bytes(MARK)
    done = subprocess.run(["bash", "-c", emit.lines(kind, TRIALS, str(tmp_path))],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "all 3 trials are finished\n")


@pytest.mark.parametrize(("ends_with", "ran", "status"), [(2, 3, 3), (130, 1, 130), (42, 1, 42)])
def test_a_shell_goes_on_past_failures_but_not_past_ctrl_c(run, ends_with, ran, status):
    done, calls = run("shell", plan=f"*|exit {ends_with}\n")
    assert done.returncode == status
    assert calls == [["python", "-m", "clip_jax", "train", *flags(i)] for i in range(ran)]


def test_each_task_of_an_array_runs_its_trial_as_slurm_sh_does(run):
    assert "#SBATCH --array=1-3\n" in emit.lines("slurm", TRIALS, "my runs")
    for i in range(3):
        done, calls = run("slurm", SLURM_ARRAY_TASK_ID=str(i + 1), plan="*|exit 42\n")
        assert calls == [["slurm_job.sh", *flags(i)]] and done.returncode == 42
    assert (ROOT / "launch" / "slurm_job.sh").exists()


def verbs(calls, name):
    assert all(c[0] == "tpu_vm.sh" and c[3] == "--zone=z" for c in calls)
    return [c[1] for c in calls if c[2] == f"sweep-{name}"]


def test_a_tpu_each_and_one_that_does_not_come_keeps_no_other_waiting(run):
    plan = (
        "create sweep-aaaa*|echo 'error: it is FAILED' >&2; exit 2\nstatus sweep-bbbb*|echo runs\n"
    )
    done, calls = run("tpu_vm", plan=plan)
    assert done.returncode == 3 and "aaaa: error: it is FAILED" in done.stdout
    assert verbs(calls, "aaaa") == ["create"]
    assert verbs(calls, "bbbb") == ["create", "status"]
    assert verbs(calls, "cccc") == ["create", "status", "setup", "train"]
    assert "bbbb: it runs already" in done.stdout
    create = next(c for c in calls if c[1:3] == ["create", "sweep-cccc"])
    assert create[4:] == ["--type=t", "--wait"]
    train = next(c for c in calls if c[1] == "train")
    assert train[4:] == ["--", *flags(2)]
    assert run("tpu_vm")[0].returncode == 0


def test_tpus_of_finished_trials_are_deleted(run):
    """By the last line of launch/again.py on each worker."""
    over = "attempt 2: status 0 after 9 s, checkpoint at step 5"
    failed = "attempt 1: status 2 after 9 s, no checkpoint"
    plan = (
        f"status sweep-aaaa*|printf '%s\\n' 'does not run' '{over}' 'does not run' '{over}'\n"
        f"status sweep-bbbb*|printf '%s\\n' 'does not run' '{over}' runs 'step 5/5'\n"
        f"status sweep-cccc*|printf '%s\\n' 'does not run' '{over}' 'does not run' '{failed}'\n"
    )
    done, calls = run("tpu_vm", "clean", plan=plan)
    assert done.returncode == 0
    assert [verbs(calls, x * 4) for x in "abc"] == [["status", "delete"], ["status"], ["status"]]
    assert f"cccc: {failed}" in done.stdout
    done, calls = run("tpu_vm", "clean", plan=f"status*|echo '{over}'; exit 2\n")
    assert done.returncode == 3 and {c[1] for c in calls} == {"status"}
    _, calls = run("tpu_vm", "delete")
    assert [verbs(calls, x * 4) for x in "abc"] == [["delete"]] * 3
    done, calls = run("tpu_vm", "stop")
    assert done.returncode == 2 and calls == [] and "knows status, clean and delete" in done.stderr
    done, calls = run("tpu_vm", ZONE="")
    assert done.returncode != 0 and calls == [] and "ZONE: is not set" in done.stderr


def test_tpus_of_trials_that_are_left_out_are_deleted_too(run):
    folder = run.here / "my runs" / "bbbb"
    folder.mkdir(parents=True)
    (folder / "report.html").write_bytes(MARK)
    over = "attempt 1: status 0 after 9 s, checkpoint at step 5"
    _, calls = run("tpu_vm", cwd=run.here)
    assert {c[2] for c in calls} == {"sweep-aaaa", "sweep-cccc"}
    _, calls = run("tpu_vm", "clean", cwd=run.here, plan=f"status sweep-b*|echo '{over}'\n")
    assert verbs(calls, "bbbb") == ["status", "delete"]


def test_a_workload_each_past_failures(run):
    names = {"CLUSTER": "c", "IMAGE": "i"}
    done, calls = run("xpk", "--storage=my data", plan="train sweep-aaaa*|exit 5\n", **names)
    assert done.returncode == 3 and len(calls) == 3
    own = ["--cluster=c", "--type=t", "--image=i", "--storage=my data", "--"]
    assert calls[2] == ["gke.sh", "train", "sweep-cccc", *own, *flags(2)]
    done, calls = run("xpk", CLUSTER="c")
    assert done.returncode != 0 and calls == [] and "IMAGE: is not set" in done.stderr
