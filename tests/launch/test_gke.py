"""launch/gke.sh with a stand-in for xpk; the Dockerfile copies all that an installation needs."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "gke.sh"
# Answers `list` from LISTED: names and states, as xpk prints them.
XPK = """#!/usr/bin/env bash
{ printf '%s\\0' "$@"; echo "<end>"; } >>"$RECORD"
if [ "$2" = list ]; then
  [ -z "${BROKEN:-}" ] || { echo "[XPK] List Job request returned ERROR 1"; exit 1; }
  printf '%s\n' "[XPK] Workload List Output:" "Jobset Name   Created Time   Priority   Status"
  printf "${LISTED:-}"
  exit
fi
exit "${STATUS:-0}"
"""
FLAGS = ["--config=my recipe.py", "--workdir=gs://b/a run", "--config.name=it's $HOME"]
TRAIN = ["train", "b16", "--cluster=c", "--type=v6e-256", "--image=r/i:1"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "xpk").write_text(XPK)
    (tmp_path / "xpk").chmod(0o755)

    def run(*words, path=f"{tmp_path}:{os.environ['PATH']}", **more):
        (tmp_path / "record").write_text("")
        environment = {"PATH": path, "RECORD": str(tmp_path / "record"), **more}
        pipes = {"capture_output": True, "text": True}
        done = subprocess.run(["bash", str(SCRIPT), *words], env=environment, **pipes)
        text = (tmp_path / "record").read_text()
        return done, [x.split("\0")[:-1] for x in text.split("<end>\n") if x]

    return run


def words_of(command, tmp_path):
    """What the shell in the container makes of it."""
    (tmp_path / "python").write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"({command.partition('=')[2]}) & wait"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()


OWN = ["-u", "/clip_jax/launch/again.py", "--", "--distributed=on"]
FOUND = "clip-b16      2026-01-01     medium     Admitted\n"


def test_train(run, tmp_path):
    done, (look, (*start, command)) = run(*TRAIN, "--slices=2", "--", *FLAGS)
    assert done.returncode == 0
    assert look == ["workload", "list", "--cluster=c", "--filter-by-job=clip-b16"]
    assert start == [
        "workload", "create", "--cluster=c", "--workload=clip-b16", "--tpu-type=v6e-256",
        "--num-slices=2", "--docker-image=r/i:1", "--max-restarts=50",
        "--termination-grace-period-seconds=180",
    ]  # fmt: skip
    assert words_of(command, tmp_path) == [*OWN, *FLAGS, "--config.mesh.num_slices=2"]
    assert command.startswith("--command=exec ")  # xpk signals the process that it starts
    assert (ROOT / "launch" / "again.py").exists()
    assert "\nWORKDIR /clip_jax\n" in (ROOT / "Dockerfile").read_text()


def test_slices_that_are_given_stay(run, tmp_path):
    """clip_jax refuses a flag that comes twice."""
    given = [*FLAGS, "--config.mesh.num_slices=4"]
    _, (_, (*_, command)) = run(*TRAIN, "--slices=2", "--", *given)
    assert words_of(command, tmp_path) == [*OWN, *given]


def test_other_options_go_to_xpk(run):
    more = ["--project=p q", "--storage=laion", "--env-file=my env"]
    done, (look, create) = run(*TRAIN, *more, "--", *FLAGS)
    assert done.returncode == 0 and create[-4:-1] == more
    assert look[-1] == "--project=p q" and len(look) == 5  # `list` knows no storage
    for verb in ("status", "delete"):
        _, calls = run(verb, "b16", "--cluster=c", "--zone=z", LISTED=FOUND)
        assert all(c[-1] == "--zone=z" for c in calls) and calls


def test_train_again_only_looks(run):
    done, calls = run(*TRAIN, "--", *FLAGS, LISTED=FOUND)
    assert done.returncode == 0 and [c[1] for c in calls] == ["list"]
    assert "clip-b16 is there already: clip-b16 2026-01-01" in done.stdout
    _, calls = run(*TRAIN, "--", *FLAGS, LISTED=FOUND.replace("b16", "b16-2"))
    assert [c[1] for c in calls] == ["list", "create"]


def test_only_workloads_of_its_own_are_deleted(run):
    _, calls = run("delete", "b16", "--cluster=c", LISTED=FOUND)
    assert calls[1:] == [["workload", "delete", "--cluster=c", "--workload=clip-b16", "--force"]]
    done, calls = run("delete", "b16", "--cluster=c")
    assert done.returncode == 0 and [c[1] for c in calls] == ["list"]
    assert "there is none of this name" in done.stdout
    _, calls = run("status", "b16", "--cluster=c")
    assert calls == [["workload", "list", "--cluster=c", "--filter-by-job=clip-b16"]]


@pytest.mark.parametrize("words", [[*TRAIN, "--", *FLAGS], ["delete", "b16", "--cluster=c"]])
def test_a_list_that_fails_is_no_missing_workload(run, words):
    done, calls = run(*words, BROKEN="1")
    assert done.returncode == 2 and [c[1] for c in calls] == ["list"]
    assert "List Job request" in done.stderr and "xpk cannot list" in done.stderr


def test_dry_run_prints_the_command(run):
    done, calls = run(*TRAIN, "--dry_run", "--", *FLAGS)
    assert calls == [] and done.returncode == 0
    _, (_, real) = run(*TRAIN, "--", *FLAGS)
    assert shlex.split(done.stdout) == ["xpk", *real]


def test_a_failure_is_passed_on(run):
    assert run(*TRAIN, "--", *FLAGS, STATUS="5")[0].returncode == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "b16"], "knows train, status and delete (got 'start')"),
        (["train", "B 16"], "names hold a-z, 0-9 and -"),
        (["train", "b16"], "train: give --cluster=CLUSTER"),
        ([*TRAIN[:3], "--", *FLAGS], "give --type=TYPE"),
        ([*TRAIN[:4], "--", *FLAGS], "give --image=IMAGE"),
        (TRAIN, "with --workdir=gs://BUCKET/RUN"),
        ([*TRAIN, "--storage", "laion"], "write options as --name=value (got 'laion')"),
        ([*TRAIN, *FLAGS], "write the flags of clip_jax train after -- (got '--config=my"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    done, calls = run(*words)
    assert done.returncode == 2 and message in done.stderr and calls == []
    assert len(done.stderr.splitlines()) == 1


def test_without_xpk(run, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to(shutil.which("bash"))
    done, _ = run(*TRAIN, "--", *FLAGS, path=str(tools))
    assert done.returncode == 2 and "xpk is not here" in done.stderr


def test_the_docker_context_holds_what_an_installation_reads():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and all((ROOT / name).exists() for name in kept)
    assert {"clip_jax", "configs", "pyproject.toml", "setup.py", "constraints.txt"} <= kept
    assert "README.md" in kept  # pyproject.toml's readme
    assert "launch" in kept  # again.py, which gke.sh runs
