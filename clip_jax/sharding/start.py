"""Joining the processes of a job, and leaving them.

`find` only reads the environment (on a TPU VM of Compute Engine also its metadata server), so
nothing waits for other hosts before it is known that there are any. What JAX recognises by itself
it also sets up by itself; the table of docs/processes.md says by which variables.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import sys
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError, near

MODES = ("auto", "off", "on")
COORDINATOR = "CLIP_JAX_COORDINATOR"  # host:port of process 0; these three from launch/local.py
NUM_PROCESSES = "CLIP_JAX_NUM_PROCESSES"
PROCESS_ID = "CLIP_JAX_PROCESS_ID"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
LOCAL_HEARTBEAT_S = 20  # a process of this machine that is silent for so long is dead
SHUTDOWN_S = 60
LINGER_S = 2.0
LAST_S = 0.5  # from a process's last word to its end


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A job of several processes.

    Attributes:
        name: for messages.
        num_processes: 0 where only jax.distributed can tell.
        arguments: of jax.distributed.initialize; what is left out it finds by itself.
    """

    name: str
    num_processes: int
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def start(mode: str) -> None:
    """Joins the other processes, if there are any. Call it before anything touches a device.

    Args:
        mode: "auto": where a cluster is recognised and has several processes; "on": in any case;
            "off": never.

    Raises:
        UserError: an unknown mode, no cluster with "on", or the others are not found.
    """
    check_mode(mode)
    cluster = find(os.environ) if mode != "off" else None
    if cluster is None and mode == "on":
        raise UserError(f"--distributed: 'on', but no cluster is seen here; {_advice(os.environ)}")
    if cluster is None or (mode == "auto" and cluster.num_processes == 1):
        return
    import jax

    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=SHUTDOWN_S, **cluster.arguments)
    except (RuntimeError, ValueError, OSError) as e:
        why = " ".join(str(e).split())[:200]
        raise UserError(
            f"--distributed: the processes of {cluster.name} do not find each other ({why}); see "
            "that all are started and reach process 0, or give --distributed=off"
        ) from e


def check_mode(mode: str) -> None:
    """Raises UserError for an unknown mode."""
    if mode not in MODES:
        raise UserError(f"--distributed: must be auto, off or on (got '{mode}'){near(mode, MODES)}")


def find(environ: Mapping[str, str]) -> Cluster | None:
    """The job that this process belongs to, if it is recognised; in the order that JAX looks."""
    for look in (_ours, _open_mpi, _slurm, _gke_tpu, _gce_tpu, _kubernetes):
        if (cluster := look(environ)) is not None:
            return cluster
    return None


def _ours(environ: Mapping[str, str]) -> Cluster | None:
    if COORDINATOR not in environ:
        return None
    count, address = _number(environ, NUM_PROCESSES), environ[COORDINATOR]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{COORDINATOR}: must be host:port (got '{address}')")
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": _number(environ, PROCESS_ID),
        "cluster_detection_method": "deactivate",
    }
    if host in ("127.0.0.1", "localhost"):
        arguments["coordinator_bind_address"] = address  # else it listens to the whole network
        arguments["heartbeat_timeout_seconds"] = LOCAL_HEARTBEAT_S
    return Cluster("launch/local.sh", count, arguments)


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        return None
    return Cluster("Open MPI", _number(environ, "OMPI_COMM_WORLD_SIZE"))


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    if not all(name in environ for name in SLURM):  # only srun sets them all
        return None
    return Cluster("Slurm", _number(environ, "SLURM_NTASKS"))


def _gke_tpu(environ: Mapping[str, str]) -> Cluster | None:
    names = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
    if not names or not _has_tpu():
        return None
    return Cluster("GKE", len(names.split(",")) * _slices(environ))


def _gce_tpu(environ: Mapping[str, str]) -> Cluster | None:
    if "TPU_SKIP_MDS_QUERY" in environ or not _has_tpu():
        return None
    workers = _metadata(environ, "worker-network-endpoints")
    if not workers:
        return None
    if "MEGASCALE_NUM_SLICES" in _metadata(environ, "tpu-env"):
        return Cluster("Compute Engine", 0)
    return Cluster("Compute Engine", len(workers.split(",")) * _slices(environ))


def _kubernetes(environ: Mapping[str, str]) -> Cluster | None:
    indexed = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    if not indexed or importlib.util.find_spec("kubernetes") is None:
        return None
    return Cluster("Kubernetes", 0)


def _slices(environ: Mapping[str, str]) -> int:
    return _number(environ, "MEGASCALE_NUM_SLICES") if environ.get("MEGASCALE_NUM_SLICES") else 1


def _has_tpu() -> bool:
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _metadata(environ: Mapping[str, str], key: str) -> str:
    """An attribute of this virtual machine; "" where there is no such server or attribute."""
    host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name}: must be a whole number (got '{text}'); mend the environment")
    return int(text)


def _advice(environ: Mapping[str, str]) -> str:
    if "SLURM_JOB_ID" in environ:
        return "inside an allocation of Slurm start it with srun"
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "in Kubernetes it takes an Indexed Job and `pip install 'jax[k8s]'`"
    return (
        "start it with srun, mpirun, on a TPU or in an Indexed Job, on one machine with "
        "launch/local.sh, or give --distributed=auto"
    )


# Leaving


def several() -> bool:
    """Whether this process has joined others. Touches no device."""
    return "jax" in sys.modules and _state().client is not None and _state().num_processes > 1


def leave(status: int, at_once: bool = False) -> None:
    """Ends this process if it is one of several or `at_once` is true; does nothing otherwise.

    The usual way out waits for the others, and they may be stuck in a step that this process will
    never join. Process 0 stays a moment for those that are leaving too: its end would abort them.
    """
    if not several() and not at_once:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if several():
        with contextlib.suppress(Exception):  # whatever it is, the end has come
            _see_off(_state())
    os._exit(status)


def _see_off(state: Any) -> None:
    if state.process_id:
        state.client.key_value_set(f"clip_jax/left/{state.process_id}", "=")
        return
    end = time.monotonic() + LINGER_S
    for i in range(1, state.num_processes):
        left_ms = int(1000 * (end - time.monotonic()))
        state.client.blocking_key_value_get(f"clip_jax/left/{i}", max(left_ms, 1))
    time.sleep(LAST_S)


def _state() -> Any:
    from jax._src import distributed  # has no public name

    return distributed.global_state
