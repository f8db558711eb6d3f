"""Counts in the text of compiled programs, against numbers worked out by hand.

tests/golden/planner/scan_v5e_2x2.hlo is what libtpu 0.0.42.1 made of a loop over five layers
x = tanh(x @ w), x bf16 (512, 1024) over (data, fsdp) = (2, 2), w bf16 (5, 1024, 1024) over fsdp,
and the sum of the result; all but `estimated_cycles` is cut from its backend configs.
"""

from pathlib import Path

import pytest

from clip_jax.planner import counts, hlo

MIB = 2**20
MESH = {"data": 2, "fsdp": 2, "tensor": 1}
SCAN = hlo.parse((Path(__file__).parents[1] / "golden/planner/scan_v5e_2x2.hlo").read_text())


def collectives(text, mesh=MESH, slices=1):
    return [
        (c.kind, c.axes, c.count, c.sent, c.group)
        for c in counts.collectives(hlo.parse(text), mesh, slices)
    ]


def test_a_loop_counts_as_often_as_it_runs():
    assert [(c.kind, c.axes, c.count, c.group) for c in counts.collectives(SCAN, MESH)] == [
        ("all-gather", "fsdp", 5, 2),
        ("all-reduce", "data+fsdp", 1, 4),
    ]
    gather, total = counts.collectives(SCAN, MESH)
    assert gather.sent == 5 * 1024 * 512 * 2  # its half of each layer's weights, to one other
    assert total.sent == 2 * 4 * 3 / 4  # one float: reduced and handed out
    assert counts.cycles(SCAN) == 5 * (8596 + 2946 + 5170) + 3511
    assert counts.host_transfers(SCAN) == (0, 0)


def test_memory_traffic_reads_slices_and_leaves_the_chip_out():
    """Per layer its slice of w; x once at the start; all else lies on the chip (S(1))."""
    slices, x = 5 * 1024 * 512 * 2, 128 * 1024 * 2
    assert counts.memory_traffic(SCAN) == pytest.approx(slices + x, rel=1e-4)


MODULE = """HloModule m, num_partitions=4

{}
ENTRY %main (p: f32[8,128]) -> f32[8,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
{}
}}
"""


def entry(*lines, before=""):
    return MODULE.format(before, "\n".join(f"  {x}" for x in lines))


@pytest.mark.parametrize(
    ("groups", "axes", "members"),
    [
        ("{{0,1},{2,3}}", "fsdp", 2),
        ("{{0,2},{1,3}}", "data", 2),
        ("{{0,1,2,3}}", "data+fsdp", 4),
        ("{}", "data+fsdp", 4),
        ("[2,2]<=[4]", "fsdp", 2),
        ("[2,2]<=[2,2]T(1,0)", "data", 2),
        ("[1,4]<=[4]", "data+fsdp", 4),
        ("mesh['a'=2,'b'=2] {'b'}", "fsdp", 2),
        ("mesh['a'=2,'b'=2] {'a'}", "data", 2),
        ("mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}", "fsdp", 2),
        ("mesh['a'=2,'b'=2] {'a','b'}", "data+fsdp", 4),
        ("mesh['a'=4] {'a':(1)2}", "data", 2),
        ("mesh['a'=4] {'a':(2)2}", "fsdp", 2),
    ],
)
def test_groups_are_named_by_mesh_axes(groups, axes, members):
    line = (
        "ROOT %r = f32[8,128]{1,0} all-reduce(%p), channel_id=1, "
        f"replica_groups={groups}, use_global_device_ids=true, to_apply=%add"
    )
    sent = 2 * 4096 * (members - 1) / members
    assert collectives(entry(line)) == [("all-reduce", axes, 1, sent, members)]


def test_bytes_of_each_kind():
    to_all = "channel_id={}, replica_groups={{{{0,1,2,3}}}}"
    text = entry(
        f"%g = f32[32,128]{{1,0}} all-gather(%p), {to_all.format(1)}, dimensions={{0}}",
        f"%s = f32[2,128]{{1,0}} reduce-scatter(%p), {to_all.format(2)}, dimensions={{0}}",
        f"%a = f32[8,128]{{1,0}} all-to-all(%p), {to_all.format(3)}, dimensions={{0}}",
        "%c = f32[8,128]{1,0} collective-permute(%p), channel_id=4, "
        "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}",
        "ROOT %n = f32[8,128]{1,0} copy(%p)",
    )
    assert sorted(collectives(text)) == [
        ("all-gather", "data+fsdp", 1, 3 * 4096, 4),
        ("all-to-all", "data+fsdp", 1, 4096 * 3 / 4, 4),
        ("collective-permute", "fsdp", 1, 4096, 2),
        ("reduce-scatter", "data+fsdp", 1, 4096 * 3 / 4, 4),
    ]


def between(name, kind, shape="8,128"):
    """A send to the hosts, as libtpu 0.0.42.1 writes it for a collective between slices."""
    return (
        f"%{name} = (f32[{shape}]{{1,0:T(8,128)}}, u32[], token[]) send(%p, %t), channel_id=2, "
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="'
        f'xla_megascale_runtime",_xla_host_transfer_rendezvous="{name}_0",'
        f'_xla_megascale_target="{{1,2}}x{{0:3}}",_xla_megascale_transfer_type="{kind}"}}'
    )


def test_what_goes_between_slices_is_no_transfer_to_the_host():
    """Three slices of data x fsdp = 2 x 2: groups inside are numbered within a slice."""
    text = entry(
        "%t = token[] after-all()",
        between("gathered", "ALL_GATHER"),
        between("summed", "ALL_REDUCE"),
        between("passed", "ONE_TO_ONE"),
        between("taken", "ONE_TO_ONE").replace("send(%p, %t)", "recv(%t)"),  # what another sent
        "%g = f32[32,128]{1,0} all-gather(%p), channel_id=3, replica_groups={}, dimensions={0}",
        "ROOT %r = f32[8,128]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,2},{1,3}}, "
        "use_global_device_ids=true, to_apply=%add",
    )
    mesh = {"data": 6, "fsdp": 2, "tensor": 1}
    assert sorted(collectives(text, mesh, slices=3)) == [
        ("all-gather", "data+fsdp", 1, 3 * 4096, 4),
        ("all-gather", "slices", 1, 2 * 4096, 3),
        ("all-reduce", "data", 1, 4096, 2),
        ("all-reduce", "slices", 1, 2 * 4096 * 2 / 3, 3),
        ("collective-permute", "slices", 1, 4096, 2),
    ]
    assert counts.host_transfers(hlo.parse(text)) == (0, 0)


FUSED = """%{name} (q: f32[8,128]) -> f32[16,128] {{
  %q = f32[8,128]{{1,0}} parameter(0)
  ROOT %g = f32[16,128]{{1,0}} all-gather(%q), channel_id=7, replica_groups=[2,2]<=[4]
}}
"""


def test_one_gather_that_overlaps_with_work_is_repeated_in_the_text_only():
    before = "".join(FUSED.format(name=n) for n in ("start", "beside", "done"))
    text = entry(
        *(
            f"%{n}.1 = f32[16,128]{{1,0}} fusion(%p), kind=kCustom, calls=%{n}"
            for n in ("start", "beside", "done")
        ),
        before=before,
    )
    assert collectives(text) == [("all-gather", "fsdp", 1, 4096, 2)]


def test_an_asynchronous_one_counts_once():
    text = entry(
        "%s = (f32[8,128]{1,0}, f32[16,128]{1,0}) all-gather-start(%p), channel_id=7, "
        "replica_groups=[2,2]<=[4]",
        "ROOT %d = f32[16,128]{1,0} all-gather-done(%s)",
    )
    assert collectives(text) == [("all-gather", "fsdp", 1, 4096, 2)]


def test_a_reduction_whose_fusion_keeps_a_slice_is_a_reduce_scatter():
    before = """%all-reduce-scatter.2 (q: f32[8,128]) -> f32[4,128] {
  %q = f32[8,128]{1,0} parameter(0)
  ROOT %r = f32[8,128]{1,0} all-reduce(%q), channel_id=7, replica_groups=[2,2]<=[4], to_apply=%add
}
"""
    line = "ROOT %f = f32[4,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2"
    assert collectives(entry(line, before=before)) == [("reduce-scatter", "fsdp", 1, 2048, 2)]


def test_transfers_to_the_host():
    text = entry(
        "%h = f32[8,128]{1,0:T(8,128)S(5)} copy(%p)",
        "%o = token[] outfeed(%p, %t), outfeed_shape=f32[8,128]",
        "%s = (f32[8,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true",
        "%k = (f32[8,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=1",
        "ROOT %c = f32[8,128]{1,0:T(8,128)S(1)} copy(%p)",
    )
    assert counts.host_transfers(hlo.parse(text)) == (3, 3 * 4096)


def test_updates_in_place_write_what_they_change():
    before = """%update (a: f32[64,128], b: f32[1,128], i: s32[]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %b = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[64,128]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}
"""
    text = entry(
        "%big = f32[64,128]{1,0} broadcast(%p), dimensions={}",
        "%row = f32[1,128]{1,0} slice(%p), slice={[0:1], [0:128]}",
        "%i = s32[] constant(3)",
        "ROOT %f = f32[64,128]{1,0} fusion(%big, %row, %i), kind=kLoop, calls=%update",
        before=before,
    )
    broadcast, row = 4096 + 64 * 512, 2 * 512
    assert counts.memory_traffic(hlo.parse(text)) == broadcast + row + (512 + 4) + 512


HBM, CHIP = "f32[8,128]{1,0:T(8,128)}", "f32[8,128]{1,0:T(8,128)S(1)}"
PART = "f32[2,128]{1,0:T(8,128)S(1)}"


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        (f"({CHIP}, {HBM}, u32[]{{:S(2)}}) copy-start(%p)", 4096),  # read once
        (f"({HBM}, {CHIP}, u32[]{{:S(2)}}) copy-start(%chip)", 4096),  # written once
        (f"(({HBM}), {PART}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:2], [0:128]}}", 1024),
    ],
)
def test_asynchronous_copies_count_where_they_touch_the_memory(line, moved):
    chip = f"%chip = {CHIP} broadcast(%z), dimensions={{}}"
    zero = "%z = f32[]{:T(128)S(6)} constant(0)"
    start = f"%s = {line}"
    kind = line.split("-start")[0].split()[-1]
    end = f"ROOT %d = f32[8,128]{{1,0}} {kind}-done(%s)"
    assert counts.memory_traffic(hlo.parse(entry(zero, chip, start, end))) == moved


def test_a_loop_without_a_constant_runs_once():
    program = hlo.parse(
        """HloModule m

%cond (c: s32[]) -> pred[] {
  %c = s32[] parameter(0)
  ROOT %l = pred[] compare(%c, %c), direction=LT
}

%body (b: s32[]) -> s32[] {
  ROOT %b = s32[] parameter(0)
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %w = s32[] while(%p), condition=%cond, body=%body
}
"""
    )
    assert program.trips(program.computations["main"].root) == 1
