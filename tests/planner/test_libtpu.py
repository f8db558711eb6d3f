"""What the TPU compiler makes of our programs: memory, traffic, options. .ci/run installs it."""

import importlib.util
import json
import subprocess
import sys

import command
import gathered
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs libtpu: pip install 'clip-jax-pretrain[plan]'",
    ),
]
MIB = 2**20


@pytest.fixture(scope="module")
def found():
    """The result of a job of tests/on_a_tpu.py; all run in one process."""
    done = subprocess.run(
        [sys.executable, str(command.TESTS / "on_a_tpu.py")],
        env={**command.environment(), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])

    def of(job):
        result = results[job]
        assert not (isinstance(result, dict) and "failed" in result), result["failed"]
        return result

    return of


@pytest.mark.parametrize(("pairs", "most"), [(1_048_576, 128), (4_194_304, 288)])
def test_the_ring_loss_stays_below_its_bars(found, pairs, most):
    """On 256 chips; embeddings and gradients, 24 and 96 MiB a chip, are in it."""
    assert found(f"ring of {pairs:,}") <= most * MIB


def test_the_ring_does_not_grow_with_the_number_of_chips(found):
    """4,096 pairs a chip, on 16 and on 256."""
    assert found("ring of 65,536") == pytest.approx(found("ring of 1,048,576"), rel=0.01)


def test_layers_gather_their_own_weights_and_no_states(found):
    step = found("sharded")
    shapes = [[tuple(s) for s in step[where]] for where in ("inside", "outside")]
    assert gathered.faults(*shapes) == []


def test_weights_and_their_gradients_travel_in_the_type_of_the_towers(found):
    assert found("sharded")["types"] == ["bf16"]


def test_a_device_holds_its_share_of_the_state(found):
    step = found("sharded")
    assert step["all"] / 8 <= step["arguments"] <= 1.15 * step["all"] / 8


def test_a_chip_of_a_pod_holds_its_share_of_the_largest_model(found):
    """ViT-bigG-14 with AdamW, data 2 x fsdp 128: no more than 1.15 of it, padding included."""
    state = found("largest")
    assert state["share"] <= state["arguments"] <= 1.15 * state["share"]


def test_the_compiler_takes_our_preset_and_no_other_name(found):
    said = found("presets")
    assert said["tpu_overlap"] == "" and "xla_tpu_enable_luck" in said[""]


def test_activations_wait_in_the_memory_of_the_host(found):
    measure = found("offload")
    assert measure["peak"] > 0 and measure["host_transfers"] > 0


def test_devices_stand_where_the_estimates_believe(found):
    places = found("places")
    assert len(places) == 4 and all(places.values()), places


def test_the_step_is_traced_as_for_cpus(found):
    assert found("same")


def test_a_measure_of_a_step(found):
    measure = found("measure")
    assert measure["temporaries"] > 0 and measure["peak"] > 0 and measure["cycles"] > 0
    assert measure["arguments"] >= measure["parameters"] + measure["optimizer"]
    assert {c["kind"] for c in measure["collectives"]} >= {"all-gather"}
    assert measure["host_transfers"] == 0


def test_between_slices_goes_what_each_has_summed(found):
    """Texts, their sums and gradients go on once a slice, not at each of the eight hops; gradients
    are summed once a step, not once a micro-batch."""
    several = found("several")
    assert several["slices"] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    sent = several["measure"]["collectives"]
    between = {c["kind"]: c for c in sent if c["axes"] == "slices"}
    assert 0 < between["collective-permute"]["count"] <= 20
    assert 0 < between["all-reduce"]["count"] <= several["leaves"]
    assert several["measure"]["host_transfers"] == 0
