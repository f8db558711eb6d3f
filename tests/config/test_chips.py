"""Topologies and accelerator types by their names, and what a wrong one is told."""

import pytest

from clip_jax.config.chips import CHIPS, joined, parse_topology
from clip_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "name", "chips", "devices"),
    [
        ("v5e:16x16", "v5e:16x16", 256, 256),
        ("V5E:2x2", "v5e:2x2", 4, 4),
        ("v5litepod-256", "v5e:16x16", 256, 256),
        ("v5litepod-8", "v5e:2x4", 8, 8),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("v5p-1024", "v5p:8x8x8", 512, 512),  # TensorCores, two a chip
        ("v5p-32", "v5p:2x2x4", 16, 16),
        ("v5p-12288", "v5p:16x16x24", 6144, 6144),
        ("v4-128", "v4:4x4x4", 64, 128),
        ("v4:4x4x8", "v4:4x4x8", 128, 256),
        ("v5p:4x4x12", "v5p:4x4x12", 192, 192),
        ("H100", "H100:1", 1, 1),
        ("h200:64", "H200:64", 64, 64),
    ],
)
def test_names(text, name, chips, devices):
    found = parse_topology(text)
    assert (found.name, found.num_chips, found.num_devices) == (name, chips, devices)
    assert parse_topology(found.name) == found


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("v7:4x4", ["unknown (got 'v7:4x4')", "v5e:16x16", "v5litepod-256", "H100"]),
        ("v5e-16x16", ["unknown (got 'v5e-16x16')"]),
        ("v5e:16x17", ["no such v5e (got 'v5e:16x17')", "v5e:8x16"]),
        ("v5e:32x32", ["no such v5e", "v5e:16x16"]),
        ("v5e", ["no shape (got 'v5e')", "v5e:2x4"]),
        ("v5e:four", ["no shape (got 'v5e:four')"]),
        ("v5p:4x4", ["no such v5p", "v5p:4x4x4"]),
        ("v5p:8x4x4", ["no such v5p"]),
        ("v5p:16x24x24", ["no such v5p"]),
        ("v5litepod-48", ["no such size", "v5litepod-64"]),
        ("B200", ["unknown (got 'B200')"]),
        ("H100:0", ["number of GPUs", "H100:8"]),
        ("", ["unknown (got '')"]),
    ],
)
def test_wrong_names(text, parts):
    with pytest.raises(UserError) as e:
        parse_topology(text)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_slices():
    pod = parse_topology("v5e:16x16")
    two = joined(pod, 2)
    assert (two.name, two.slice_name) == ("2 x v5e:16x16", "v5e:16x16")
    assert (two.num_chips, two.num_devices) == (512, 512)
    assert joined(pod, 1) == pod
    with pytest.raises(UserError, match="slices are of TPUs .got 2 of H100:8.; plan H100:16 with"):
        joined(parse_topology("H100:8"), 2)


def test_tori_close_where_google_says():
    assert [parse_topology("v5e:16x16").wraps(d) for d in (0, 1)] == [True, True]
    assert [parse_topology("v5e:8x16").wraps(d) for d in (0, 1)] == [False, True]
    assert parse_topology("v5p:4x4x4").wraps(2)
    assert not parse_topology("v5p:2x4x4").wraps(2)


def test_a_device_has_its_share_of_a_chip():
    v4 = parse_topology("v4:2x2x1")
    assert v4.device_flops == 275e12 / 2
    assert v4.device_usable == CHIPS["v4"].usable / 2


def test_every_chip_names_a_source_and_clocks_are_plausible():
    for chip in CHIPS.values():
        assert chip.source and chip.usable <= chip.memory
        assert chip.clock == 0 or 0.9e9 < chip.clock < 2e9
    assert CHIPS["v5e"].clock == pytest.approx(1.5e9, rel=0.01)
