"""launch/slurm.sh and its job with stand-ins for Slurm: what is called, and what is requeued."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sh"
RECORD = """#!/usr/bin/env bash
{{ printf '%s\\0' {name} "$@"; echo; }} >>"$RECORD"
{then}
"""
# As Slurm's since 22.05: cores for the tasks by SRUN_CPUS_PER_TASK alone, and the highest status.
# TASKS: the status of each task, in the order in which they end.
SRUN = """
if [ -n "${SAVES:-}" ]; then mkdir -p "$SAVES"; fi
shift
highest=0
for status in ${TASKS:-0}; do
  CORES=${SRUN_CPUS_PER_TASK:-1} STATUS=$status "$@" && got=0 || got=$?
  if [ "$got" -gt "$highest" ]; then highest=$got; fi
done
exit "$highest"
"""
# Stands for what trains; everything else is Python.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-m clip_jax train"*)
    {{ printf '%s\\0' task "cores=$CORES" "$@"; echo; }} >>"$RECORD"
    if [ "$STATUS" = signal ]; then kill -TERM $PPID; STATUS=42; fi
    exit "$STATUS" ;;
esac
exec {python} "$@"
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a command with stand-ins first on the path; gives (result, what was called)."""
    bin_dir, record = tmp_path / "bin", tmp_path / "record"
    bin_dir.mkdir()
    then = {
        "sbatch": "cat >job.sh; echo Submitted batch job 7",
        "srun": SRUN,
        "scontrol": "",
    }
    for name, text in then.items():
        (bin_dir / name).write_text(RECORD.format(name=name, then=text))
        (bin_dir / name).chmod(0o755)
    python = bin_dir / "py thon"  # a path with a space; what it runs imports the package
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)

    def run(*words, path=f"{bin_dir}:{os.environ['PATH']}", **more):
        record.write_text("")
        environment = {
            "PATH": path, "RECORD": str(record), "PYTHON": str(python), "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": "7", **more,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", *map(str, words)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        calls = [line.split("\0")[:-1] for line in record.read_text().splitlines()]
        return done, calls

    run.python = str(python)
    return run


FLAGS = ["--config=my recipe.py:a,b", "--workdir=my run", "--config.name=it's $HOME"]
OPTIONS = ["--nodes=2", "--comment=two words"]


def kinds(calls):
    return [c[0] for c in calls if c[0] != "task"]


def test_options_go_to_sbatch_and_flags_to_the_tasks(cluster):
    done, calls = cluster(SCRIPT, *OPTIONS, "--", *FLAGS)
    assert done.returncode == 0 and "Submitted batch job 7" in done.stdout, done.stderr
    assert calls == [["sbatch", *OPTIONS]]
    done, calls = cluster("job.sh", TASKS="0 0")
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["srun"] and calls[0][1] == "--wait=60"
    assert cluster.python in calls[0]
    task = ["task", "cores=1", "-u", "-m", "clip_jax", "train", *FLAGS]
    assert calls[1:] == [task, task]


def test_cores_of_the_job_reach_its_tasks(cluster):
    """sbatch --cpus-per-task=12 sets this in the job, and Slurm's srun does not look at it."""
    cluster(SCRIPT, "--cpus-per-task=12", "--", *FLAGS)
    _, calls = cluster("job.sh", SLURM_CPUS_PER_TASK="12")
    assert [c[1] for c in calls if c[0] == "task"] == ["cores=12"]


@pytest.mark.parametrize("status", ["1", "2", "3", "4", "130"])
def test_what_would_come_again_is_not_requeued(cluster, status):
    cluster(SCRIPT, "--", *FLAGS)
    done, calls = cluster("job.sh", TASKS=status)
    assert done.returncode == int(status) and kinds(calls) == ["srun"]


@pytest.mark.parametrize(
    ("tasks", "status", "again"),
    [
        ("1 42 42", 1, False),  # a bug, and peers that saw one go
        ("42 42 1", 42, True),
        ("0 3 42", 3, False),
        ("139 1", 139, True),
        ("signal 42", 42, True),  # to the shell around it, too
    ],
)
def test_the_first_task_that_fails_decides(cluster, tmp_path, tasks, status, again):
    cluster(SCRIPT, "--", *FLAGS)
    done, calls = cluster("job.sh", TASKS=tasks)
    assert done.returncode == status, done.stderr
    assert kinds(calls) == (["srun", "scontrol"] if again else ["srun"])
    assert not list(tmp_path.glob("*.first"))


def test_a_preempted_job_is_requeued_until_nothing_is_saved_any_more(cluster, tmp_path):
    cluster(SCRIPT, "--", *FLAGS)
    for status in ("42", "137", "139", "143", "42"):
        done, calls = cluster("job.sh", TASKS=status)
        assert done.returncode == int(status) and calls[-1] == ["scontrol", "requeue", "7"]
    saves = str(tmp_path / "my run" / "checkpoints" / "100")
    _, calls = cluster("job.sh", TASKS="42", SAVES=saves)  # a checkpoint: counted anew
    assert calls[-1][0] == "scontrol"
    for _ in range(5):
        _, calls = cluster("job.sh", TASKS="42")
        assert calls[-1][0] == "scontrol"
    done, calls = cluster("job.sh", TASKS="42")
    assert kinds(calls) == ["srun"] and "giving up" in done.stderr


def test_of_an_array_one_task_is_requeued(cluster):
    """By the number of its job alone, the array's first task would take all others along."""
    cluster(SCRIPT, "--", *FLAGS)
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    _, calls = cluster("job.sh", TASKS="42", **array)
    assert calls[-1] == ["scontrol", "requeue", "7_3"]


def test_outside_a_job(cluster):
    job = SCRIPT.with_name("slurm_job.sh")
    done, calls = cluster(job, *FLAGS, SLURM_JOB_ID="")
    assert done.returncode == 2 and "submit it by launch/slurm.sh" in done.stderr and calls == []
    assert len(done.stderr.splitlines()) == 1


def test_dry_run_submits_nothing_and_prints_the_job(cluster, tmp_path):
    done, calls = cluster(SCRIPT, "--dry_run", *OPTIONS, "--", *FLAGS)
    assert done.returncode == 0 and calls == []
    cluster(SCRIPT, *OPTIONS, "--", *FLAGS)
    job = (tmp_path / "job.sh").read_text()
    assert done.stdout == f"{job}\n# sbatch --nodes=2 --comment=two\\ words < the job above\n"
    for line in ("--requeue", "--signal=TERM@180", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in job


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes=2"], "give the flags of clip_jax train after --, with --workdir=DIR"),
        (["--", "--config=x"], "give the flags of clip_jax train after --, with --workdir=DIR"),
        (["--nodes", "2", "--", "--workdir=x"], "as --name=value (got '2')"),
    ],
)
def test_mistakes_are_one_line(cluster, words, message):
    done, calls = cluster(SCRIPT, *words)
    assert done.returncode == 2 and message in done.stderr and calls == []
    assert len(done.stderr.splitlines()) == 1


def test_without_slurm(cluster, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    done, _ = cluster(SCRIPT, "--", *FLAGS, path=str(tools))
    assert done.returncode == 2 and "sbatch is not here" in done.stderr
