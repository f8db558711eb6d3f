"""Which job of several processes an environment tells of, and what --distributed makes of it."""

import http.server
import sys
import threading

import pytest

from clip_jax.errors import UserError
from clip_jax.sharding import start

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OURS = {
    "CLIP_JAX_COORDINATOR": "127.0.0.1:4567",
    "CLIP_JAX_NUM_PROCESSES": "2",
    "CLIP_JAX_PROCESS_ID": "1",
}
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "3"}
INDEXED = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


def found(environ):
    cluster = start.find(environ)
    return cluster and (cluster.name, cluster.num_processes)


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(start, "_has_tpu", lambda: True)


def test_clusters_by_their_variables():
    assert found({}) is None
    assert found(SLURM) == ("Slurm", 4)
    assert found(MPI) == ("Open MPI", 3)
    assert found(OURS) == ("launch/local.sh", 2)
    assert found({**SLURM, **OURS}) == ("launch/local.sh", 2)  # a test inside of a job


@pytest.mark.parametrize("name", SLURM)
def test_an_allocation_without_srun_is_no_job(name):
    assert found({k: v for k, v in SLURM.items() if k != name}) is None


def test_tpu_hosts_count_only_where_a_tpu_is(monkeypatch):
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b"}
    monkeypatch.setattr(start, "_has_tpu", lambda: False)
    assert found(hosts) is None
    monkeypatch.setattr(start, "_has_tpu", lambda: True)
    assert found(hosts) == ("GKE", 2)
    assert found({**hosts, "MEGASCALE_NUM_SLICES": "3"}) == ("GKE", 6)
    assert found({"TPU_WORKER_HOSTNAMES": "localhost"}) == ("GKE", 1)


def test_compute_engine_is_asked(tpu):
    answers = {"worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.rpartition("/")[2]
            known = key in answers and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(key, "").encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        assert found(environ) == ("Compute Engine", 2)
        answers["tpu-env"] = "MEGASCALE_NUM_SLICES: '2'"
        assert found(environ) == ("Compute Engine", 0)  # jax.distributed counts them
        assert found({**environ, "TPU_SKIP_MDS_QUERY": "1"}) is None
        answers.clear()
        assert found(environ) is None
        server.shutdown()


def test_kubernetes_needs_an_indexed_job_and_its_package(monkeypatch):
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    assert found(INDEXED) is None
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert found(INDEXED) == ("Kubernetes", 0)
    assert found({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


def test_our_launcher_stays_on_this_machine():
    arguments = start.find(OURS).arguments
    assert arguments["coordinator_bind_address"] == "127.0.0.1:4567"
    assert arguments["heartbeat_timeout_seconds"] == 20
    assert (arguments["num_processes"], arguments["process_id"]) == (2, 1)
    elsewhere = start.find({**OURS, "CLIP_JAX_COORDINATOR": "node1:4567"}).arguments
    assert "coordinator_bind_address" not in elsewhere


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**OURS, "CLIP_JAX_PROCESS_ID": ""}, "CLIP_JAX_PROCESS_ID: must be a whole number"),
        ({**OURS, "CLIP_JAX_COORDINATOR": "node1"}, "must be host:port"),
        ({**SLURM, "SLURM_NTASKS": "4(x2)"}, "SLURM_NTASKS: must be a whole number"),
    ],
)
def test_a_broken_environment_is_named(environ, message):
    with pytest.raises(UserError, match=message):
        start.find(environ)


@pytest.fixture
def calls(monkeypatch):
    import jax

    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: made.append(options))
    for name in (*SLURM, *OURS, *MPI, *INDEXED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(start, "_has_tpu", lambda: False)
    return made


def set_all(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_auto_joins_several_processes_only(monkeypatch, calls):
    start.start("auto")
    set_all(monkeypatch, {**SLURM, "SLURM_NTASKS": "1"})
    start.start("auto")
    assert calls == []
    start.start("on")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    start.start("off")
    assert len(calls) == 1
    start.start("auto")
    assert len(calls) == 2


def test_on_without_a_cluster_says_what_to_do(monkeypatch, calls):
    with pytest.raises(UserError, match="'on', but no cluster is seen here; .*launch/local.sh"):
        start.start("on")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(UserError, match="inside an allocation of Slurm start it with srun"):
        start.start("on")
    assert calls == []


def test_processes_that_do_not_meet(monkeypatch, calls):
    import jax

    def initialize(**options):
        raise RuntimeError("DEADLINE_EXCEEDED: \n Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    set_all(monkeypatch, SLURM)
    with pytest.raises(UserError, match="of Slurm do not find each other .*Barrier timed out"):
        start.start("auto")


def test_an_unknown_mode(calls):
    with pytest.raises(UserError, match="must be auto, off or on .*did you mean 'auto'"):
        start.start("atuo")


def test_a_single_process_just_returns():
    assert "jax" in sys.modules and not start.several()
    start.leave(3)
