"""The commands of a sweep for other ways to run them: a shell, Slurm."""

import shlex
from collections.abc import Sequence

from clip_jax.sweep.run import command
from clip_jax.sweep.trials import Trial

KINDS = ("shell", "slurm")


def lines(kind: str, trials: Sequence[Trial], workdir: str) -> str:
    """A script that runs all trials: one after the other, or as a job array."""
    commands = [shlex.join(["python", *command(t, workdir)]) for t in trials]
    if kind == "shell":
        return "\n".join(
            ["#!/usr/bin/env bash", "# One that fails does not stop the rest.", *commands]
        )
    log = shlex.quote(f"{workdir}/%A_%a.log")
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# sbatch THIS_FILE; partition, accelerators and time are your cluster's:",
            "# sbatch --partition=gpu --gres=gpu:8 --time=24:00:00 THIS_FILE",
            "#SBATCH --job-name=sweep",
            f"#SBATCH --array=0-{len(trials) - 1}",
            f"#SBATCH --output={log}",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            "#SBATCH --signal=TERM@120",
            "commands=(",
            *(f"  {shlex.quote(c)}" for c in commands),
            ")",
            "# 42: it was stopped and has saved; the same command goes on",
            'eval "srun ${commands[$SLURM_ARRAY_TASK_ID]}"',
            "status=$?",
            "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
            '[ "$status" -ne 42 ] || scontrol requeue "$job"',
            'exit "$status"',
        ]
    )
