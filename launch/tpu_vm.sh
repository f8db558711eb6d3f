#!/usr/bin/env bash
# Trains on Cloud TPU VMs (v4, v5e, v5p, v6e) by queued resources.
#   bash launch/tpu_vm.sh create NAME --zone=ZONE --type=v5litepod-16 [--slices=2] [--spot] [--wait]
#   bash launch/tpu_vm.sh setup  NAME --zone=ZONE          copies this checkout, installs it
#   bash launch/tpu_vm.sh train  NAME --zone=ZONE -- --config=... --workdir=gs://BUCKET/RUN
#   bash launch/tpu_vm.sh logs   NAME --zone=ZONE          follows the output of the first worker
#   bash launch/tpu_vm.sh status NAME --zone=ZONE
#   bash launch/tpu_vm.sh stop   NAME --zone=ZONE          SIGTERM: saves, and ends
#   bash launch/tpu_vm.sh delete NAME --zone=ZONE          only what `create` here has made
# Every verb may be repeated; --dry_run prints the gcloud commands instead, and as it asks nobody it
# wants --slices=2 with each verb. Training goes on without your connection, under launch/again.py:
# after a crash of a process it starts again by itself. A spot TPU that was taken away does not come
# back: delete, create, setup and train with the same workdir.
# Environment: SLEEP (seconds between two looks while waiting, 30).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
label="made_by=clip_jax"

fail() { echo "error: launch/tpu_vm.sh: $1" >&2; exit 2; }

case ${1:-} in
  create | setup | train | logs | status | stop | delete) verb=$1 ;;
  -h | --help) sed -n '2,14s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail "knows create, setup, train, logs, status, stop and delete (got '${1:-}')" ;;
esac
shift
name=${1:-}
case $name in
  "" | -*) fail "$verb: give a NAME first" ;;
  *[!a-z0-9-]*) fail "$verb: names hold a-z, 0-9 and - (got '$name')" ;;
esac
shift
zone="" type="" slices=1 spot="" wait="" dry_run="" flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --slices=[1-9]*) slices=${1#*=} ;;
    --spot) spot=yes ;;
    --wait) wait=yes ;;
    --dry_run) dry_run=yes ;;
    --) shift; flags=("$@"); break ;;
    *) fail "$verb: no such option (got '$1')" ;;
  esac
  shift
done
if [ -z "$zone" ]; then fail "$verb: give --zone=ZONE"; fi
if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  fail "gcloud is not here; install the Google Cloud CLI, or look at the commands with --dry_run"
fi

runtime() { # of an accelerator type
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type: knows v4-N, v5litepod-N, v5p-N and v6e-N (got '$1'); newer TPUs are on GKE only" ;;
  esac
}

# Commands that change something; with --dry_run they are printed.
tpu() {
  if [ -n "$dry_run" ]; then
    printf 'gcloud compute tpus'; printf ' %q' "$@"; echo
  else
    gcloud compute tpus "$@"
  fi
}

# A field of the queued resource; empty where there is none of this name. Other failures end here.
field() {
  local said
  if [ -n "$dry_run" ]; then return; fi
  if ! said=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format="value($1)" 2>&1); then
    case $said in *NOT_FOUND*) return ;; esac
    printf '%s\n' "$said" >&2
    fail "gcloud cannot tell the state of $name, see above"
  fi
  printf '%s\n' "$said"
}
state() { field state.state; }

count() { # of slices
  local there
  there=$(field 'tpu.nodeSpec[0].multisliceParams.nodeCount') || exit
  echo "${there:-$slices}"
}

nodes() { # NAME, or NAME-0, NAME-1, ... of several slices
  local count
  count=$(count) || exit
  if [ "$count" -le 1 ]; then echo "$name"; return; fi
  for ((i = 0; i < count; i++)); do echo "$name-$i"; done
}

on_all() { # runs a command on all workers of all nodes
  local node all
  all=$(nodes)
  for node in $all; do
    tpu tpu-vm ssh "$node" --zone="$zone" --worker=all --command="$1"
  done
}

given() { # whether a flag stands among those of train
  local flag
  for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in "$1" | "$1"=*) return ;; esac
  done
  return 1
}

await() { # until it is there
  local now="" before=""
  while true; do
    now=$(state)
    if [ "$now" != "$before" ]; then echo "$name: $now"; before=$now; fi
    case $now in
      ACTIVE) return ;;
      "") fail "there is no $name any more" ;;
      FAILED | SUSPENDED | SUSPENDING) fail "$name is $now; delete it and create it again" ;;
    esac
    sleep "${SLEEP:-30}"
  done
}

case $verb in
  create)
    if [ -z "$type" ]; then fail "create: give --type=TYPE, such as v5litepod-16"; fi
    version=$(runtime "$type")
    now=$(state)
    if [ -n "$now" ]; then
      echo "$name is there already: $now"
    else
      node=(--node-id="$name")
      if [ "$slices" -gt 1 ]; then node=(--node-prefix="$name" --node-count="$slices"); fi
      tpu queued-resources create "$name" --zone="$zone" "${node[@]}" --accelerator-type="$type" \
        --runtime-version="$version" --labels="$label" ${spot:+--spot}
    fi
    if [ -n "$wait" ] && [ -z "$dry_run" ]; then await; fi
    ;;
  setup)
    archive=$(mktemp -d)/clip_jax.tar.gz
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    if [ -n "$(git -C "$root" status --porcelain)" ]; then
      echo "note: changes that are not committed stay behind" >&2
    fi
    git -C "$root" archive --format=tar.gz -o "$archive" HEAD
    all=$(nodes)
    for node in $all; do
      tpu tpu-vm scp "$archive" "$node:clip_jax.tar.gz" --zone="$zone" --worker=all
    done
    # shellcheck disable=SC2016  # the worker expands it
    on_all 'set -e; mkdir -p clip_jax; tar -xzf clip_jax.tar.gz -C clip_jax; cd clip_jax
python3 -m pip install --quiet --user uv # brings a Python that is new enough
PATH=$HOME/.local/bin:$PATH
[ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[tpu,gcs,digits,hf,tensorboard,wandb]"
uv pip install --quiet --python .venv/bin/python --no-deps open_clip_torch==3.3.0' # CLIP's merges
    ;;
  train)
    if ! given --workdir; then
      fail "train: give the flags of clip_jax train after --, with --workdir=gs://BUCKET/RUN"
    fi
    for flag in "${flags[@]}"; do
      case $flag in --config=*.py | --config=*.py:*) ;; *) continue ;; esac
      recipe=${flag#--config=} recipe=${recipe%.py:*} recipe=${recipe%.py}.py
      if [ -e "$root/$recipe" ] && [ -n "$(git -C "$root" status --porcelain -- "$recipe")" ]; then
        fail "train: $recipe is not committed, so the TPU does not have it; commit it, call setup"
      fi
    done
    slices=$(count)
    if [ "$slices" -gt 1 ] && ! given --config.mesh.num_slices; then
      flags+=("--config.mesh.num_slices=$slices")
    fi
    quoted=$(printf ' %q' "${flags[@]}")
    on_all "cd clip_jax
if [ -e train.pid ] && kill -0 \"\$(cat train.pid)\" 2>/dev/null; then echo 'it runs already'; exit; fi
nohup setsid .venv/bin/python -u launch/again.py --$quoted >>train.log 2>&1 </dev/null &
echo \$! >train.pid"
    ;;
  logs)
    first=$(nodes)
    tpu tpu-vm ssh "${first%%$'\n'*}" --zone="$zone" --worker=0 \
      --command='tail -n 50 -F clip_jax/train.log'
    ;;
  status)
    now=$(state)
    echo "$name: ${now:-there is none of this name}"
    if [ "$now" = ACTIVE ] || [ -n "$dry_run" ]; then
      on_all "cd clip_jax 2>/dev/null || { echo 'not set up'; exit; }
if [ -e train.pid ] && kill -0 \"\$(cat train.pid)\" 2>/dev/null; then echo runs; else echo 'does not run'; fi
tail -n 1 train.log 2>/dev/null || true"
    fi
    ;;
  stop)
    on_all "cd clip_jax; [ -e train.pid ] || { echo 'does not run'; exit; }
kill -TERM \"\$(cat train.pid)\" 2>/dev/null || true
for _ in \$(seq 180); do kill -0 \"\$(cat train.pid)\" 2>/dev/null || exit 0; sleep 1; done
echo 'still runs after 3 minutes' >&2; exit 1"
    ;;
  delete)
    if [ -z "$dry_run" ]; then
      now=$(state)
      if [ -z "$now" ]; then echo "$name: there is none of this name"; exit; fi
      made=$(field 'tpu.nodeSpec[0].node.labels.made_by')
      if [ "$made" != clip_jax ]; then
        fail "delete: $name was not made by this script (no label $label); delete it by gcloud"
      fi
    fi
    tpu queued-resources delete "$name" --zone="$zone" --force --quiet
    ;;
esac
