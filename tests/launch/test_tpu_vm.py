"""launch/tpu_vm.sh with a stand-in for gcloud: its arguments, states, and what is never deleted."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tarfile
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
# Answers `describe` from the files state (a line each time), label and count; saves what is copied.
GCLOUD = """#!/usr/bin/env bash
cd "$HERE"
case "$*" in
  *"queued-resources describe"*state.state*)
    [ ! -e broken ] || { echo "Reauthentication failed" >&2; exit 1; }
    [ -s state ] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    head -n 1 state
    [ "$(wc -l <state)" = 1 ] || sed -i 1d state
    exit ;;
  *describe*labels*) cat label; exit ;;
  *describe*nodeCount*)
    [ ! -e broken ] || { echo "Reauthentication failed" >&2; exit 1; }
    cat count
    exit ;;
  *scp*) cp "$5" copied.tar.gz ;;
esac
{ printf '%s\\0' "$@"; echo "<end>"; } >>record
exit "${STATUS:-0}"
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs the script; gives (result, calls that change something)."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    for name in ("state", "label", "count"):
        (tmp_path / name).write_text("")

    def run(*words, script=SCRIPT, path=f"{tmp_path}:{os.environ['PATH']}", **more):
        record = tmp_path / "record"
        record.write_text("")
        environment = {"PATH": path, "HERE": str(tmp_path), "SLEEP": "0", **more}
        pipes = {"capture_output": True, "text": True}
        done = subprocess.run(["bash", str(script), *words], env=environment, **pipes)
        calls = [x.split("\0")[:-1] for x in record.read_text().split("<end>\n") if x]
        return done, calls

    run.here = tmp_path
    return run


CREATE = ("create", "pod", "--zone=us-z1")


@pytest.mark.parametrize(
    ("words", "node", "version"),
    [
        (("--type=v5litepod-16",), ["--node-id=pod"], "v2-alpha-tpuv5-lite"),
        (("--type=v5p-1024",), ["--node-id=pod"], "v2-alpha-tpuv5"),
        (
            ("--type=v6e-32", "--slices=2"),
            ["--node-prefix=pod", "--node-count=2"],
            "v2-alpha-tpuv6e",
        ),
    ],
)
def test_create(cloud, words, node, version):
    done, calls = cloud(*CREATE, *words)
    assert done.returncode == 0, done.stderr
    kind = words[0].partition("=")[2]
    assert calls == [
        ["compute", "tpus", "queued-resources", "create", "pod", "--zone=us-z1", *node,
         f"--accelerator-type={kind}", f"--runtime-version={version}", "--labels=made_by=clip_jax"]
    ]  # fmt: skip


def test_create_again_only_looks(cloud):
    (cloud.here / "state").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nPROVISIONING\nACTIVE\n")
    done, calls = cloud(*CREATE, "--type=v5litepod-16", "--spot", "--wait")
    assert done.returncode == 0 and calls == []
    assert done.stdout.splitlines() == [
        "pod is there already: WAITING_FOR_RESOURCES", "pod: PROVISIONING", "pod: ACTIVE"
    ]  # fmt: skip


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_waiting_ends_when_nothing_will_come(cloud, state):
    (cloud.here / "state").write_text(f"PROVISIONING\nPROVISIONING\n{state}\n")
    done, _ = cloud(*CREATE, "--type=v5litepod-16", "--wait")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: launch/tpu_vm.sh: pod is {state}; delete it and create it again\n"
    )


@pytest.mark.parametrize("verb", ["create", "status", "delete", "stop"])
def test_a_gcloud_that_fails_is_no_missing_resource(cloud, verb):
    (cloud.here / "broken").write_text("")
    (cloud.here / "label").write_text("clip_jax\n")
    done, calls = cloud(verb, "pod", "--zone=z", "--type=v5litepod-16")
    assert done.returncode == 2 and calls == []
    assert "Reauthentication failed" in done.stderr and "cannot tell the state" in done.stderr


def test_setup_copies_the_checkout_to_every_node(cloud):
    (cloud.here / "count").write_text("2\n")
    done, calls = cloud("setup", "pod", "--zone=us-z1")
    assert done.returncode == 0, done.stderr
    assert [c[2:4] + [c[5] if "scp" in c else c[4]] for c in calls] == [
        ["tpu-vm", "scp", "pod-0:clip_jax.tar.gz"], ["tpu-vm", "scp", "pod-1:clip_jax.tar.gz"],
        ["tpu-vm", "ssh", "pod-0"], ["tpu-vm", "ssh", "pod-1"],
    ]  # fmt: skip
    assert all("--worker=all" in c and "--zone=us-z1" in c for c in calls)
    with tarfile.open(cloud.here / "copied.tar.gz") as tar:
        assert "clip_jax/train/step.py" in tar.getnames()


def extras(text):
    return set(re.search(r"\.\[([^]]*)\]", text)[1].split(","))


def test_what_recipes_and_trackers_need_is_installed():
    """All extras but those for other machines, and for what is done with a model afterwards."""
    every = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = set(every) - {"cuda", "plan", "embed", "test", "dev"}
    assert extras(SCRIPT.read_text()) == wanted
    image = (ROOT / "Dockerfile").read_text()
    assert extras(image.replace("${EXTRA}", "tpu")) == wanted and "ARG EXTRA=tpu\n" in image


def test_a_failure_ends_the_verb(cloud):
    done, calls = cloud("setup", "pod", "--zone=us-z1", STATUS="7")
    assert done.returncode == 7 and len(calls) == 1


FLAGS = ["--config=my recipe.py", "--workdir=gs://b/a run", "--config.name=it's $HOME"]


def worker(cloud, command):
    """Runs what ssh was given in a home with a stand-in for the environment."""
    home = cloud.here / "home"
    if not home.exists():
        (home / "clip_jax" / ".venv" / "bin").mkdir(parents=True)
        python = home / "clip_jax" / ".venv" / "bin" / "python"
        python.write_text("#!/usr/bin/env bash\nprintf '[%s]' \"$@\"; echo; exec sleep 600\n")
        python.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        cwd=home, capture_output=True, text=True,
    )  # fmt: skip


def test_train_status_and_stop_on_a_worker(cloud):
    _, ((*_, train),) = cloud("train", "pod", "--zone=z", "--", *FLAGS)
    (cloud.here / "state").write_text("ACTIVE\n")
    _, ((*_, status),) = cloud("status", "pod", "--zone=z")
    _, ((*_, stop),) = cloud("stop", "pod", "--zone=z")
    assert worker(cloud, status).stdout == "does not run\n"
    assert worker(cloud, train).returncode == 0
    assert worker(cloud, train).stdout == "it runs already\n"
    log = cloud.here / "home" / "clip_jax" / "train.log"
    for _ in range(600):  # it starts in the background
        if log.exists() and log.read_text():
            break
        time.sleep(0.1)
    shown = worker(cloud, status).stdout.splitlines()
    words = ["-u", "launch/again.py", "--", *FLAGS]
    assert shown == ["runs", "".join(f"[{x}]" for x in words)]
    assert worker(cloud, stop).returncode == 0
    assert worker(cloud, status).stdout.startswith("does not run\n")
    assert worker(cloud, stop).returncode == 0


def flags_of(call):
    """Of train, as the worker's shell reads them."""
    line = next(x for x in call[-1].splitlines() if "again.py" in x)
    words = shlex.split(line.partition(">>")[0])
    return words[words.index("--") + 1 :]


def test_several_slices_are_told_to_train(cloud):
    number = "--config.mesh.num_slices="
    (cloud.here / "count").write_text("2\n")
    _, calls = cloud("train", "pod", "--zone=z", "--", *FLAGS)
    assert [c[4] for c in calls] == ["pod-0", "pod-1"]
    assert all(flags_of(c) == [*FLAGS, f"{number}2"] for c in calls)
    _, calls = cloud("train", "pod", "--zone=z", "--", *FLAGS, f"{number}1")
    assert all(flags_of(c) == [*FLAGS, f"{number}1"] for c in calls)
    (cloud.here / "count").write_text("")
    _, (call,) = cloud("train", "pod", "--zone=z", "--", *FLAGS)
    assert call[4] == "pod" and flags_of(call) == FLAGS


def test_a_recipe_that_is_not_on_the_machine(tmp_path, cloud):
    """What is not committed is not copied."""
    checkout = tmp_path / "checkout"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(SCRIPT, checkout / "launch")
    (checkout / "my.py").write_text("")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(checkout)]
    subprocess.run([*git, "init", "-q"], check=True)
    words = ["train", "pod", "--zone=z", "--", "--config=my.py:a,b", "--workdir=gs://b/r"]
    script = checkout / "launch" / "tpu_vm.sh"
    done, calls = cloud(*words, script=script)
    assert done.returncode == 2 and calls == []
    assert "train: my.py is not committed" in done.stderr and len(done.stderr.splitlines()) == 1
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    done, calls = cloud(*words, script=script)
    assert done.returncode == 0 and len(calls) == 1
    (checkout / "my.py").write_text("# changed\n")
    assert cloud(*words, script=script)[0].returncode == 2


def test_only_what_it_made_is_deleted(cloud):
    done, calls = cloud("delete", "pod", "--zone=z")
    assert done.returncode == 0 and calls == [] and "there is none of this name" in done.stdout
    (cloud.here / "state").write_text("ACTIVE\n")
    done, calls = cloud("delete", "pod", "--zone=z")
    assert done.returncode == 2 and calls == [] and "was not made by this script" in done.stderr
    (cloud.here / "label").write_text("clip_jax\n")
    done, calls = cloud("delete", "pod", "--zone=z")
    assert calls == [
        ["compute", "tpus", "queued-resources", "delete", "pod", "--zone=z", "--force", "--quiet"]
    ]


@pytest.mark.parametrize("slices", ["", "2"])
@pytest.mark.parametrize("verb", ["create", "setup", "train", "logs", "stop", "delete"])
def test_dry_run_changes_nothing_and_prints_what_would_run(cloud, verb, slices):
    words = [verb, "pod", "--zone=z", "--type=v5litepod-16"]
    if slices:
        words.append(f"--slices={slices}")
        (cloud.here / "count").write_text(f"{slices}\n")
    flags = ["--", *FLAGS] if verb == "train" else []
    done, calls = cloud(*words, "--dry_run", *flags)
    assert done.returncode == 0 and calls == []
    (cloud.here / "label").write_text("clip_jax\n")
    (cloud.here / "state").write_text("" if verb == "create" else "ACTIVE\n")
    _, real = cloud(*words, *flags)
    shown = [shlex.split(" ".join(["gcloud", *map(shlex.quote, c)])) for c in real]
    printed = subprocess.run(
        ["bash", "-c", "gcloud() { printf '%s\\0' gcloud \"$@\"; echo '<end>'; }\n" + done.stdout],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    got = [x.split("\0")[:-1] for x in printed.split("<end>\n") if x]
    for call in (*shown, *got):
        if "scp" in call:  # the archive lies in another folder each time
            call[5] = "archive"
    assert got == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launch", "pod"], "knows create, setup, train, logs, status, stop and delete"),
        (["create"], "create: give a NAME first"),
        (["create", "Pod; ls", "--zone=z"], "names hold a-z, 0-9 and - (got 'Pod; ls')"),
        (["create", "pod"], "create: give --zone=ZONE"),
        (["create", "pod", "--zone=z"], "create: give --type=TYPE"),
        (["create", "pod", "--zone=z", "--type=tpu7x-16"], "newer TPUs are on GKE only"),
        (["train", "pod", "--zone=z", "--", "--config=x"], "with --workdir=gs://BUCKET/RUN"),
        (["stop", "pod", "--zone=z", "--now"], "stop: no such option (got '--now')"),
    ],
)
def test_mistakes_are_one_line(cloud, words, message):
    done, calls = cloud(*words)
    assert done.returncode == 2 and message in done.stderr and calls == []
    assert len(done.stderr.splitlines()) == 1


def test_without_gcloud(cloud):
    tools = cloud.here / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    done, _ = cloud("stop", "pod", "--zone=z", path=str(tools))
    assert done.returncode == 2 and "gcloud is not here" in done.stderr
