"""Seconds from counts, against numbers worked out by hand."""

import dataclasses

import pytest

from clip_jax.config.chips import joined, parse_topology
from clip_jax.planner.compile import Measure
from clip_jax.planner.counts import Collective
from clip_jax.planner.estimate import collective_seconds, estimate, links, run_cost

POD = parse_topology("v5e:16x16")
MESH = {"data": 16, "fsdp": 16, "tensor": 1}
NOTHING = Measure(parameters=0.0, optimizer=0.0, batch=0.0, flops=0.0)


def test_rooflines():
    measure = dataclasses.replace(
        NOTHING,
        flops=256 * 197e12 * 0.5,  # half a second on 256 chips at their peak
        traffic=819e9 * 0.25,
        cycles=1.5e9 * 0.75,
        collectives=(Collective("all-gather", "fsdp", 10, 1e9, 16),),
    )
    e = estimate(measure, POD, MESH, 32_768, model_flops=256 * 197e12 * 0.4)
    assert e.compute == pytest.approx(0.5)
    assert e.memory == pytest.approx(0.25)
    assert e.cycles == pytest.approx(0.75, rel=3e-3)  # 197 TFLOP/s are 1.503 GHz
    assert e.interconnect == pytest.approx(0.01)  # 1e9 bytes over two links of 50e9 bytes/s
    assert e.best == pytest.approx(0.5)
    assert e.seconds == pytest.approx(e.cycles + 0.01)
    assert e.examples == pytest.approx(32_768 / e.seconds)
    assert e.mfu == pytest.approx(0.4 / e.seconds)


def test_links_of_a_pod():
    assert links(POD, MESH, ("fsdp",)) == (100e9, 8)  # a ring of 16: both ways, 8 hops at most
    assert links(POD, MESH, ("data",)) == (100e9, 8)
    assert links(POD, MESH, ("data", "fsdp")) == (200e9, 16)
    small = {"data": 64, "fsdp": 4, "tensor": 1}  # 4 of 16 in a row: a line
    assert links(POD, small, ("fsdp",)) == (50e9, 3)
    # one of four in x, closing: 2 x 50e9 / 4; and all of y: 2 x 50e9
    assert links(POD, small, ("data",))[0] == pytest.approx(125e9)
    assert links(parse_topology("v5e:8x8"), {"data": 8, "fsdp": 8, "tensor": 1}, ("fsdp",)) == (
        50e9,
        7,
    )
    cube = {"data": 4, "fsdp": 16, "tensor": 1}  # two dims of 4 that close
    assert links(parse_topology("v5p:4x4x4"), cube, ("fsdp",)) == (400e9, 4)


def test_many_small_collectives_cost_their_hops():
    c = Collective("all-reduce", "fsdp", 1000, 8.0, 16)
    assert collective_seconds(c, POD, MESH) == pytest.approx(1000 * 2 * 8 * 1e-6)
    ring = Collective("collective-permute", "data+fsdp", 256, 256.0, 2)
    assert collective_seconds(ring, POD, MESH) == pytest.approx(256e-6)


def test_gpus_leave_nvlink_behind_eight():
    c = Collective("all-gather", "fsdp", 1, 45e9, 8)
    node = {"data": 1, "fsdp": 8, "tensor": 1}
    assert collective_seconds(c, parse_topology("H100:8"), node) == pytest.approx(0.1)
    two = {"data": 2, "fsdp": 8, "tensor": 1}
    assert collective_seconds(c, parse_topology("H100:16"), two) == pytest.approx(0.1)
    across = dataclasses.replace(c, axes="data")
    assert collective_seconds(across, parse_topology("H100:16"), two) == pytest.approx(0.9)


def test_slices_have_links_of_their_own_and_a_network_between_them():
    two, mesh = joined(POD, 2), {"data": 32, "fsdp": 16, "tensor": 1}
    inside = Collective("all-gather", "data", 10, 1e9, 16)
    assert collective_seconds(inside, two, mesh) == collective_seconds(inside, POD, MESH)
    between = Collective("all-reduce", "slices", 10, 1e9, 2)  # 6.4 Tbit/s of 256 chips
    assert collective_seconds(between, two, mesh) == pytest.approx(1e9 * 8 * 256 / 6.4e12)
    v4 = collective_seconds(between, joined(parse_topology("v4:4x4x4"), 2), mesh)
    assert v4 == pytest.approx(1e9 / (25e9 / 8))  # a host's share of each of its eight devices
    measure = dataclasses.replace(NOTHING, flops=1e15, collectives=(inside, between))
    e = estimate(measure, two, mesh, 1024, 1e15)
    assert e.compute == pytest.approx(1e15 / (512 * 197e12))
    assert (e.interconnect, e.network) == (pytest.approx(0.01), pytest.approx(0.32))
    assert e.best == e.network and e.seconds == pytest.approx(e.compute + 0.33)
    assert run_cost(e, two, 1e6, None)["chip_hours"] == pytest.approx(1e6 / e.examples / 3600 * 512)


def test_days_hours_and_cost():
    e = estimate(dataclasses.replace(NOTHING, flops=256 * 197e12), POD, MESH, 25_600, 256 * 197e12)
    run = run_cost(e, POD, 25_600 * 3600 * 24, None)
    assert run == {
        "samples": 25_600 * 3600 * 24,
        "days": pytest.approx(1.0),
        "chip_hours": pytest.approx(256 * 24),
    }
    assert run_cost(e, POD, 25_600 * 3600, 1.5)["cost"] == pytest.approx(256 * 1.5)
