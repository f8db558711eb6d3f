#!/usr/bin/env bash
# Trains on TPUs in GKE by XPK, also TPU7x and several slices.
#   bash launch/gke.sh train  NAME --cluster=C --type=tpu7x-4x4x4 --image=IMAGE [--slices=2] -- FLAGS
#   bash launch/gke.sh status NAME --cluster=C
#   bash launch/gke.sh delete NAME --cluster=C
# FLAGS are those of clip_jax train, with --workdir=gs://BUCKET/RUN. The workload is called clip-NAME,
# and only such are deleted. GKE starts it again on status 42 and on signals, at most 50 times.
# --dry_run prints the command instead. IMAGE: built from the Dockerfile of this checkout.
set -euo pipefail

fail() { echo "error: launch/gke.sh: $1" >&2; exit 2; }

case ${1:-} in
  train | status | delete) verb=$1 ;;
  -h | --help) sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail "knows train, status and delete (got '${1:-}')" ;;
esac
shift
name=${1:-}
case $name in
  "" | -*) fail "$verb: give a NAME first" ;;
  *[!a-z0-9-]*) fail "$verb: names hold a-z, 0-9 and - (got '$name')" ;;
esac
shift
cluster="" type="" image="" slices=1 dry_run="" flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --cluster=?*) cluster=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --slices=[1-9]*) slices=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    --) shift; flags=("$@"); break ;;
    *) fail "$verb: no such option (got '$1')" ;;
  esac
  shift
done
if [ -z "$cluster" ]; then fail "$verb: give --cluster=CLUSTER"; fi
if [ -z "$dry_run" ] && ! command -v xpk >/dev/null; then
  fail "xpk is not here; pip install xpk, or look at the command with --dry_run"
fi
workload=clip-$name

run() {
  if [ -n "$dry_run" ]; then
    printf xpk; printf ' %q' "$@"; echo
  else
    xpk "$@"
  fi
}

case $verb in
  train)
    if [ -z "$type" ]; then fail "train: give --type=TYPE, such as v6e-256"; fi
    if [ -z "$image" ]; then fail "train: give --image=IMAGE, with clip_jax in it"; fi
    case " ${flags[*]-} " in
      *" --workdir="*) ;;
      *) fail "train: give the flags of clip_jax train after --, with --workdir=gs://BUCKET/RUN" ;;
    esac
    if [ "$slices" -gt 1 ]; then flags+=("--config.mesh.num_slices=$slices"); fi
    run workload create --cluster="$cluster" --workload="$workload" --tpu-type="$type" \
      --num-slices="$slices" --docker-image="$image" --max-restarts=50 \
      --restart-on-exit-codes=42,134,137,139,143 --termination-grace-period-seconds=180 \
      --command="python -u -m clip_jax train --distributed=on$(printf ' %q' "${flags[@]}")"
    ;;
  status) run workload list --cluster="$cluster" --filter-by-job="$workload" ;;
  delete) run workload delete --cluster="$cluster" --workload="$workload" --force ;;
esac
