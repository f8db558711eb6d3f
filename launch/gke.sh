#!/usr/bin/env bash
# Trains on TPUs in GKE by XPK, also TPU7x and several slices.
#   bash launch/gke.sh train  NAME --cluster=C --type=tpu7x-4x4x4 --image=IMAGE [--slices=2] -- FLAGS
#   bash launch/gke.sh status NAME --cluster=C
#   bash launch/gke.sh delete NAME --cluster=C
# FLAGS are those of clip_jax train, with --workdir=gs://BUCKET/RUN. Other options before -- go to xpk:
# --project=P --zone=Z, and with train --storage=NAME (a mounted bucket) or --env-file=FILE. The workload
# is called clip-NAME; each verb may be repeated. --dry_run prints the command instead.
# IMAGE: built from the Dockerfile of this checkout. In it launch/again.py starts again what crashed; a
# pod that ends with 42 or 128 + n is started anew by GKE, at most 50 times.
set -euo pipefail

fail() { echo "error: launch/gke.sh: $1" >&2; exit 2; }

case ${1:-} in
  train | status | delete) verb=$1 ;;
  -h | --help) sed -n '2,10s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail "knows train, status and delete (got '${1:-}')" ;;
esac
shift
name=${1:-}
case $name in
  "" | -*) fail "$verb: give a NAME first" ;;
  *[!a-z0-9-]*) fail "$verb: names hold a-z, 0-9 and - (got '$name')" ;;
esac
shift
cluster="" type="" image="" slices=1 dry_run="" more=() flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --cluster=?*) cluster=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --slices=[1-9]*) slices=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    --) shift; flags=("$@"); break ;;
    --config* | --workdir*) fail "$verb: write the flags of clip_jax train after -- (got '$1')" ;;
    -*) more+=("$1") ;;
    *) fail "$verb: write options as --name=value (got '$1')" ;;
  esac
  shift
done
if [ -z "$cluster" ]; then fail "$verb: give --cluster=CLUSTER"; fi
if [ -z "$dry_run" ] && ! command -v xpk >/dev/null; then
  fail "xpk is not here; pip install xpk, or look at the command with --dry_run"
fi
workload=clip-$name

run() { # xpk VERB OPTIONS
  if [ -n "$dry_run" ]; then
    printf 'xpk workload'; printf ' %q' "$@"; echo
  else
    xpk workload "$@"
  fi
}

list() { run list --cluster="$cluster" --filter-by-job="$workload" "$@"; }

# The line of the workload in xpk's table, which filters by a part of the name; empty without.
found() {
  local said options=() option
  if [ -n "$dry_run" ]; then return; fi
  for option in ${more[@]+"${more[@]}"}; do # those that `list` knows
    case $option in --project=* | --project-number=* | --zone=*) options+=("$option") ;; esac
  done
  if ! said=$(list ${options[@]+"${options[@]}"} 2>&1); then
    printf '%s\n' "$said" >&2
    fail "xpk cannot list the workloads of $cluster, see above"
  fi
  while read -r first rest; do
    if [ "$first" = "$workload" ]; then echo "$first $rest"; fi
  done <<<"$said"
}

given() { # whether a flag stands among those of train
  local flag
  for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in "$1" | "$1"=*) return ;; esac
  done
  return 1
}

case $verb in
  train)
    if [ -z "$type" ]; then fail "train: give --type=TYPE, such as v6e-256"; fi
    if [ -z "$image" ]; then fail "train: give --image=IMAGE, with clip_jax in it"; fi
    if ! given --workdir; then
      fail "train: give the flags of clip_jax train after --, with --workdir=gs://BUCKET/RUN"
    fi
    there=$(found)
    if [ -n "$there" ]; then # xpk would ask whether to delete it
      echo "$workload is there already: $there"
      echo "to start it anew, delete it first"
      exit
    fi
    if [ "$slices" -gt 1 ] && ! given --config.mesh.num_slices; then
      flags+=("--config.mesh.num_slices=$slices")
    fi
    # XPK restarts on 42 and on 127 to 255. exec: its signals are for what trains, not for a shell.
    run create --cluster="$cluster" --workload="$workload" --tpu-type="$type" \
      --num-slices="$slices" --docker-image="$image" --max-restarts=50 \
      --termination-grace-period-seconds=180 ${more[@]+"${more[@]}"} \
      --command="exec python -u /clip_jax/launch/again.py -- --distributed=on$(printf ' %q' "${flags[@]}")"
    ;;
  status) list ${more[@]+"${more[@]}"} ;;
  delete)
    there=$(found)
    if [ -z "$dry_run" ] && [ -z "$there" ]; then
      echo "$workload: there is none of this name"
      exit
    fi
    run delete --cluster="$cluster" --workload="$workload" --force ${more[@]+"${more[@]}"}
    ;;
esac
