"""launch/slurm.sh under a real Slurm on this machine: two tasks, preempted, requeued, to the end.

Needs Debian's slurm-wlm and munge, and root: `.ci/run` installs them where it can.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import command
import pytest

import tiny

SCRIPT = command.TESTS.parent / "launch" / "slurm.sh"
MISSING = [x for x in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(x)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)} (slurm-wlm, munge)"),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons want root"),
]
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SrunPortRange={ports[2]}-{last}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(what, seconds, folder):
    end = time.monotonic() + seconds
    while not (found := what()):
        logs = "\n".join(p.read_text()[-3000:] for p in sorted(folder.glob("*.log")))
        assert time.monotonic() < end, logs
        time.sleep(0.5)
    return found


@pytest.fixture
def slurm(tmp_path):
    """A cluster of this machine alone."""
    with cluster(tmp_path) as call:
        yield call


@contextlib.contextmanager
def cluster(tmp_path):
    """Calls a command of Slurm and gives what it prints; leaves no process behind."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = free_ports(3)
    host = socket.gethostname().partition(".")[0]
    text = CONF.format(
        host=host, ports=ports, last=ports[2] + 20, folder=folder, cpus=os.cpu_count()
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    environment = {**command.environment(), "SLURM_CONF": str(folder / "slurm.conf")}
    environment |= {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"}
    own = f"--socket={folder}/munge.socket", f"--key-file={folder}/key"
    daemons = [
        ["munged", "--foreground", "--force", *own, f"--pid-file={folder}/munge.pid",
         f"--log-file={folder}/munge.log", f"--seed-file={folder}/seed"],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    ]  # fmt: skip
    children = []

    def call(*words, **more):
        env = {**environment, **more}
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    try:
        for words in daemons:
            with (folder / f"{words[0]}.out").open("w") as out:
                children.append(subprocess.Popen(words, env=environment, stdout=out, stderr=out))
            if words[0] == "munged":
                wait_for((folder / "munge.socket").exists, 20, folder)

        def ready():
            done = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            )
            return "idle" in done.stdout

        wait_for(ready, 60, folder)
        call.folder = folder
        yield call
    finally:
        if len(children) == len(daemons):
            end(environment)
        for child in reversed(children):
            child.terminate()
        for child in children:
            child.wait(timeout=30)


def end(environment):
    """Cancels all jobs of the cluster, and waits for their processes: daemons leave those alone."""

    def jobs():
        done = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    until = time.monotonic() + 60
    while jobs() and time.monotonic() < until:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        time.sleep(0.5)


def test_a_failed_test_leaves_no_process_behind(tmp_path):
    """Its job would go on without the cluster, and slurmstepd with it."""
    with pytest.raises(ZeroDivisionError), cluster(tmp_path) as slurm:
        slurm("sbatch", "--wrap=sleep 3000")
        wait_for(lambda: "slurmstepd" in processes(tmp_path), 60, slurm.folder)
        raise ZeroDivisionError
    assert processes(tmp_path) == []


def processes(folder):
    """Names of those that know the cluster in `folder`."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone
            if f"SLURM_CONF={folder}/".encode() in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
    return found


def test_two_tasks_are_preempted_requeued_and_go_on(slurm, tmp_path):
    pairs, run = tiny.write_folder(tmp_path / "pairs"), tmp_path / "run"
    more = ("--config.num_steps=120", "--config.mesh.data=-1", "--config.checkpoint.every=20")
    flags = command.train_args(pairs, run, *more)[1:]
    said = slurm("bash", str(SCRIPT), "--ntasks=2", "--partition=low", "--", *flags)
    job = said.rpartition(" ")[2]
    log = tmp_path / f"clip_jax-{job}.log"
    queued = lambda: slurm("squeue", "-h", "-j", job, "-o", "%T")  # noqa: E731
    text = lambda: log.read_text() if log.exists() else ""  # noqa: E731
    saved = lambda: sorted(pathlib.Path(run, "checkpoints").glob("[0-9]*"))  # noqa: E731
    wait_for(lambda: saved() or not queued(), 300, slurm.folder)
    assert saved(), text()
    slurm("sbatch", "--partition=high", "--exclusive", "--wrap=sleep 3")
    wait_for(lambda: "resumed from step" in text() or not queued(), 200, slurm.folder)
    assert "resumed from step" in text(), text()
    wait_for(lambda: not queued(), 200, slurm.folder)
    assert "SIGTERM: saved step" in text() and "report: " in text(), text()
    assert sorted(command.losses(run))[-1] == 120
    assert "mesh data 2 x" in text()


# Stands for what trains: task 0 has a bug, and the other sees it go.
TASK = """#!/usr/bin/env bash
case "$*" in
  *"-m clip_jax train"*)
    echo "task $SLURM_PROCID"
    [ "$SLURM_PROCID" = 0 ] && exit 1
    sleep 2
    exit 42 ;;
esac
exec {python} "$@"
"""


def test_the_first_task_that_fails_decides(slurm, tmp_path):
    """srun itself would end with 42, and the job be queued again."""
    python = tmp_path / "python"
    python.write_text(TASK.format(python=sys.executable))
    python.chmod(0o755)
    words = ("bash", str(SCRIPT), "--ntasks=2", "--cpus-per-task=1", "--", "--workdir=run")
    job = slurm(*words, PYTHON=str(python)).rpartition(" ")[2]
    show = lambda: slurm("scontrol", "show", "job", job)  # noqa: E731
    wait_for(lambda: "JobState=FAILED" in show() or "Restarts=1" in show(), 120, slurm.folder)
    assert "ExitCode=1:0" in show() and "Restarts=0" in show()
    lines = (tmp_path / f"clip_jax-{job}.log").read_text().splitlines()
    assert {"task 0", "task 1"} <= set(lines)
