"""launch/slurm.sh with stand-ins for Slurm: what its commands are given, what is requeued."""

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


@pytest.fixture
def cluster(tmp_path):
    """Runs a command with stand-ins first on the path; gives (result, what was called)."""
    bin_dir, record = tmp_path / "bin", tmp_path / "record"
    bin_dir.mkdir()
    then = {
        "sbatch": "cat >job.sh; echo Submitted batch job 7",
        "srun": 'if [ -n "${SAVES:-}" ]; then mkdir -p "$SAVES"; fi; exit "${STATUS:-0}"',
        "scontrol": "",
    }
    for name, text in then.items():
        (bin_dir / name).write_text(RECORD.format(name=name, then=text))
        (bin_dir / name).chmod(0o755)
    python = bin_dir / "py thon"  # a path with a space; what it runs imports the package
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
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


def test_options_go_to_sbatch_and_flags_to_the_tasks(cluster):
    done, calls = cluster(SCRIPT, *OPTIONS, "--", *FLAGS)
    assert done.returncode == 0 and "Submitted batch job 7" in done.stdout, done.stderr
    assert calls == [["sbatch", *OPTIONS]]
    done, calls = cluster("job.sh", STATUS="0")
    assert done.returncode == 0, done.stderr
    train = ["-u", "-m", "clip_jax", "train", *FLAGS]
    assert calls == [["srun", "--wait=60", cluster.python, *train]]


@pytest.mark.parametrize("status", ["1", "2", "3", "4", "130"])
def test_what_would_come_again_is_not_requeued(cluster, status):
    cluster(SCRIPT, "--", *FLAGS)
    done, calls = cluster("job.sh", STATUS=status)
    assert done.returncode == int(status) and [c[0] for c in calls] == ["srun"]


def test_a_preempted_job_is_requeued_until_nothing_is_saved_any_more(cluster, tmp_path):
    cluster(SCRIPT, "--", *FLAGS)
    for status in ("42", "137", "139", "143", "42"):
        done, calls = cluster("job.sh", STATUS=status)
        assert done.returncode == int(status) and calls[-1] == ["scontrol", "requeue", "7"]
    saves = str(tmp_path / "my run" / "checkpoints" / "100")
    _, calls = cluster("job.sh", STATUS="42", SAVES=saves)  # a checkpoint: counted anew
    assert calls[-1][0] == "scontrol"
    for _ in range(5):
        _, calls = cluster("job.sh", STATUS="42")
        assert calls[-1][0] == "scontrol"
    done, calls = cluster("job.sh", STATUS="42")
    assert [c[0] for c in calls] == ["srun"] and "giving up" in done.stderr


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
