"""The commands of a sweep for other ways to run them: a shell, Slurm, Cloud TPU VMs, GKE."""

import shlex
from collections.abc import Sequence

from clip_jax.sweep.run import command
from clip_jax.sweep.trials import Trial

SHELL = (
    "#!/usr/bin/env bash",
    "# One that fails does not stop the rest; Ctrl-C and SIGTERM do. Then the same script goes on.",
    "failed=0",
    "run() {",
    '  "$@" && return',
    "  local status=$?",
    '  case $status in 42 | 130) exit "$status" ;; esac',
    "  failed=3",
    "}",
)
KINDS = ("shell", "slurm", "tpu_vm", "xpk")


def lines(kind: str, trials: Sequence[Trial], workdir: str) -> str:
    """A script that runs all trials: one after the other, as a job array, or on a TPU each.

    The last two call the scripts in launch/, from a checkout, with ZONE and TYPE, or CLUSTER, TYPE
    and IMAGE in the environment.
    """
    commands = [shlex.join(["python", *command(t, workdir)]) for t in trials]
    if kind == "shell":
        return "\n".join([*SHELL, *(f"run {c}" for c in commands), 'exit "$failed"'])
    if kind in ("tpu_vm", "xpk"):
        flags = {t.name: shlex.join(command(t, workdir)[3:]) for t in trials}
        return "\n".join(["#!/usr/bin/env bash", "set -eu", *_each(kind, flags)])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# sbatch THIS_FILE; partition, accelerators and time are your cluster's:",
            "# sbatch --partition=gpu --gres=gpu:8 --time=24:00:00 THIS_FILE",
            "#SBATCH --job-name=sweep",
            f"#SBATCH --array=0-{len(trials) - 1}",
            "#SBATCH --output=%x-%A_%a.log",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            "#SBATCH --signal=TERM@120",
            "commands=(",
            *(f"  {shlex.quote(c)}" for c in commands),
            ")",
            "# 42: it was stopped and has saved; 128 + n: it was killed. The same command goes on.",
            'eval "srun ${commands[$SLURM_ARRAY_TASK_ID]}"',
            "status=$?",
            "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
            'if [ "$status" -eq 42 ] || { [ "$status" -gt 128 ] && [ "$status" -ne 130 ]; }; then',
            '  if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then scontrol requeue "$job"; fi',
            "fi",
            'exit "$status"',
        ]
    )


def _each(kind: str, flags: dict[str, str]) -> list[str]:
    """The lines of each trial; its TPU or workload is called sweep-NAME."""
    if kind == "xpk":
        own = '--cluster="$CLUSTER" --type="$TYPE" --image="$IMAGE"'
        return [f"bash launch/gke.sh train sweep-{n} {own} -- {f}" for n, f in flags.items()]
    script, zone = "bash launch/tpu_vm.sh", '--zone="$ZONE"'
    out = []
    for name, words in flags.items():
        out.append(f'{script} create sweep-{name} {zone} --type="$TYPE" --wait')
        out.append(f"{script} setup sweep-{name} {zone}")
        out.append(f"{script} train sweep-{name} {zone} -- {words}")
    return out
