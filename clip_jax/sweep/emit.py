"""The trials of a sweep as a script: for a shell, Slurm, Cloud TPU VMs or GKE."""

import shlex
from collections.abc import Sequence

from clip_jax.sweep.run import command, waiting
from clip_jax.sweep.trials import Trial

SHELL = r"""#!/usr/bin/env bash
# One that fails does not stop the rest; Ctrl-C and SIGTERM do. Then the same script goes on.
failed=0
trial() { # NAME FLAGS
  python -m clip_jax train "${@:2}" && return
  local status=$?
  case $status in 42 | 130) exit "$status" ;; esac
  failed=3
}
@TRIALS@
exit "$failed"
"""

SLURM = r"""#!/usr/bin/env bash
# In a checkout: sbatch THIS_FILE. Partition, tasks, devices, cores and time are your cluster's:
#   sbatch --partition=gpu --ntasks=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 THIS_FILE
#SBATCH --job-name=sweep
#SBATCH --array=1-@COUNT@
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
count=0
trial() { # NAME FLAGS
  count=$((count + 1))
  if [ "$count" -eq "$SLURM_ARRAY_TASK_ID" ]; then exec bash launch/slurm_job.sh "${@:2}"; fi
}
@TRIALS@
"""

TPU_VM = r"""#!/usr/bin/env bash
# A TPU for each trial, called sweep-NAME. In a checkout, with ZONE and TYPE in the environment:
#   bash THIS_FILE          creates all, sets up and trains as they come; what runs is left alone
#   bash THIS_FILE status   what each does
#   bash THIS_FILE clean    deletes those whose trial is finished; the others cost on
#   bash THIS_FILE delete   deletes all
set -o pipefail
verb=${1:-train} failed=0 jobs=()
case $verb in
  train | status | clean | delete) ;;
  *) echo "error: knows status, clean and delete (got '$verb')" >&2; exit 2 ;;
esac
: "${ZONE:?is not set}"
tpu() { bash launch/tpu_vm.sh "$1" "sweep-$2" --zone="$ZONE" "${@:3}"; }

train() { # NAME FLAGS
  tpu create "$1" --type="${TYPE:?is not set}" --wait || return
  local said
  said=$(tpu status "$1") || return
  if grep -qx runs <<<"$said"; then echo "it runs already"; return; fi
  tpu setup "$1" && tpu train "$1" -- "${@:2}"
}

clean() { # NAME; what launch/again.py says last tells how the trial ended
  local said
  said=$(tpu status "$1") || return
  printf '%s\n' "$said"
  if grep -qxe runs -e '.*: status [1-9].*' <<<"$said"; then return; fi
  if grep -q ': status 0 after' <<<"$said"; then tpu delete "$1"; fi
}

trial() { # NAME FLAGS; all at the same time: one TPU that does not come keeps no other waiting
  {
    case $verb in
      train) train "$@" ;;
      clean) clean "$1" ;;
      *) tpu "$verb" "$1" ;;
    esac 2>&1 | sed "s/^/$1: /"
  } &
  jobs+=("$!")
}
@TRIALS@
for job in "${jobs[@]}"; do wait "$job" || failed=3; done
exit "$failed"
"""

XPK = r"""#!/usr/bin/env bash
# A workload clip-sweep-NAME for each trial. In a checkout, with CLUSTER, TYPE and IMAGE in the
# environment; more options of launch/gke.sh may follow:
#   bash THIS_FILE --storage=laion
: "${CLUSTER:?is not set}" "${TYPE:?is not set}" "${IMAGE:?is not set}"
failed=0 more=("$@")
trial() { # NAME FLAGS
  bash launch/gke.sh train "sweep-$1" --cluster="$CLUSTER" --type="$TYPE" --image="$IMAGE" \
    "${more[@]}" -- "${@:2}" || failed=3
}
@TRIALS@
exit "$failed"
"""
KINDS = {"shell": SHELL, "slurm": SLURM, "tpu_vm": TPU_VM, "xpk": XPK}


def lines(kind: str, trials: Sequence[Trial], workdir: str) -> str:
    """A script that runs what is not finished: in turn, as a job array, or on a TPU each.

    All but the shell's call the scripts in launch/, from a checkout.
    """
    left = waiting(trials, workdir)
    done = [t.name for t in trials if t not in left]
    calls = [shlex.join(["trial", t.name, *command(t, workdir)[3:]]) for t in left]
    if done:
        calls.insert(0, f"# {len(done)} of {len(trials)} trials are finished, and left out.")
    if kind == "tpu_vm":  # their TPUs may still be there
        calls += [f'[ "$verb" = train ] || trial {name}' for name in done]
    elif not left:
        return f"#!/usr/bin/env bash\necho 'all {len(trials)} trials are finished'"
    script = KINDS[kind].replace("@COUNT@", str(len(left)))
    return script.replace("@TRIALS@", "\n".join(calls)).rstrip()
