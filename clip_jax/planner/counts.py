"""What one call of a compiled program does on one device: what it sends, reads and writes."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from clip_jax.planner.hlo import Array, Computation, Instruction, Program, called

HOST_SPACE = 5  # S(5) in a layout: memory of the host; S(0) or none is HBM; others lie on the chip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# Views, containers and what is counted elsewhere.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "domain",
    "add-dependency",
}  # fmt: skip
SLICING = {"dynamic-slice", "slice", "gather"}
SLICES_AXIS = "slices"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over one set of mesh axes, in a step of one device.

    Attributes:
        kind: one of KINDS.
        axes: names of the mesh axes, joined by '+'; SLICES_AXIS between slices.
        count: how often.
        sent: bytes that a device sends, as a ring algorithm would.
        group: devices that take part in one of them.
    """

    kind: str
    axes: str
    count: float
    sent: float
    group: int


def within(mesh: dict[str, int], slices: int) -> dict[str, int]:
    """The part of a mesh that lies in one slice."""
    return {**mesh, "data": mesh["data"] // slices} if slices > 1 else mesh


def collectives(program: Program, mesh: dict[str, int], slices: int = 1) -> list[Collective]:
    """What the program sends between devices, by kind and mesh axes; largest first.

    Args:
        program: of `parse`.
        mesh: size of each axis, in order; partition numbers are row-major in it.
        slices: that the axis data spans. What goes between them, the compiler hands to the hosts as
            `send`; its other groups and numbers are those of one slice.
    """
    mesh = within(mesh, slices)
    total: dict[tuple[str, str, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for i, here, times in _once(program):
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = _groups(i, math.prod(mesh.values()))
        size = _bytes_of_operands(i, here)
        n = groups.shape[1]
        if kind == "all-reduce" and here.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # such a fusion keeps its own slice only
        key = (kind, _axes(kind, groups, mesh), 2 if kind == "collective-permute" else n)
        total[key][0] += times
        total[key][1] += times * size * _share(kind, n)
    for i, here, times, _ in program.walk():
        if i.opcode == "send" and (kind := _between_slices(i)):
            key = (kind, SLICES_AXIS, 2 if kind == "collective-permute" else slices)
            total[key][0] += times
            total[key][1] += times * _bytes_of_operands(i, here) * _share(kind, slices)
    found = [Collective(k, a, c, s, n) for (k, a, n), (c, s) in total.items() if a]
    return sorted(found, key=lambda c: -c.sent)


def _between_slices(i: Instruction) -> str:
    """Which of KINDS a send or recv is a part of, over the data-centre network; '' if of none."""
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
    if not match:
        return ""
    name = match[1].lower().replace("_", "-")
    return name if name in KINDS else "collective-permute"


def _once(program: Program) -> Iterator[tuple[Instruction, Computation, float]]:
    """The walk's collectives, each channel once: fusions that overlap one with work repeat it."""
    found: dict[str, tuple[Instruction, Computation, float]] = {}
    for number, (i, here, times, _) in enumerate(program.walk()):
        if i.opcode.removesuffix("-start") not in KINDS:
            continue
        channel = re.search(r"channel_id=\d+", i.rest)
        name = channel[0] if channel else str(number)
        if name not in found or times > found[name][2]:
            found[name] = (i, here, times)
    yield from found.values()


def _share(kind: str, n: int) -> float:
    """Bytes that a device sends, per byte of its operand, among n devices in a ring."""
    return {
        "all-gather": n - 1.0,
        "all-reduce": 2.0 * (n - 1) / n,
        "collective-permute": 1.0,
    }.get(kind, (n - 1) / n)


def host_transfers(program: Program) -> tuple[float, float]:
    """(how many, bytes): sends, feeds and copies between device and host."""
    count = size = 0.0
    for i, here, times, _ in program.walk():
        moved = i.opcode in ("infeed", "outfeed") or (
            i.opcode in ("send", "recv")
            and "is_host_transfer=true" in i.rest
            and not _between_slices(i)
        )
        if i.opcode in ("copy", "copy-start", "custom-call"):
            reads = [a.space == HOST_SPACE for a in _operands(i, here)]
            writes = [a.space == HOST_SPACE for a in i.arrays]
            moved = any(reads) != any(writes) or (any(reads) and not all(reads + writes))
        if moved:
            count += times
            size += times * max(_bytes_of_operands(i, here), sum(a.bytes for a in i.arrays[:1]))
    return count, size


def cycles(program: Program) -> float:
    """Sum of XLA's own estimates; 0 where it gives none. Collectives carry none."""
    total = 0.0
    for i, _, times, fusion in program.walk():
        match = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
        if match and not fusion:
            total += times * int(match[1])
    return total


def memory_traffic(program: Program) -> float:
    """Bytes read from and written to HBM, if each instruction reads and writes its arrays once.

    A slice counts as what it takes, an update in place as what it writes; arrays that the compiler
    placed on the chip count as nothing.
    """
    total = 0.0
    for i, here, times, fusion in program.walk():
        if fusion or i.opcode in FREE or i.opcode.endswith(("-done", "-update")):
            continue
        if i.opcode == "async-start":
            continue  # its computation is walked
        total += times * (_read(program, i, here) + _written(program, i, here))
    return total


def _read(program: Program, i: Instruction, here: Computation) -> float:
    inner = program.computations.get(called(i, "calls")) if i.opcode == "fusion" else None
    total = 0.0
    for number, name in enumerate(i.operands):
        source = here.by_name.get(name)
        if source is None:
            continue
        size = sum(a.bytes for a in source.arrays if a.space == 0)
        if not size:
            continue
        if inner is not None and number in inner.parameters:
            total += min(size, _used(program, inner, inner.parameters[number]))
        elif i.opcode.removesuffix("-start") in SLICING and number == 0:
            total += min(size, sum(a.bytes for a in _filled(i)))
        elif not (i.opcode in ("dynamic-update-slice", "scatter") and number == 0):
            total += size
    return total


def _used(program: Program, here: Computation, value: Instruction) -> float:
    """Bytes of `value` that a fused computation reads."""
    size, total = sum(a.bytes for a in value.arrays), 0.0
    for user in here.users[value.name]:
        numbers = [n for n, name in enumerate(user.operands) if name == value.name]
        if user.opcode in SLICING and numbers == [0]:
            total += sum(a.bytes for a in user.arrays)
        elif user.opcode == "dynamic-update-slice" and numbers == [0]:
            continue
        elif user.opcode == "bitcast":
            total += _used(program, here, user)
        elif user.opcode == "fusion" and (inner := program.computations.get(called(user, "calls"))):
            total += sum(_used(program, inner, inner.parameters[n]) for n in numbers)
        else:
            return size
    return min(size, total)


def _written(program: Program, i: Instruction, here: Computation) -> float:
    if i.opcode in ("send", "recv", "outfeed", "infeed"):
        return 0.0
    inner = program.computations.get(called(i, "calls")) if i.opcode == "fusion" else None
    if inner is not None:
        return _result(inner, inner.root, i.arrays)
    return _result(here, i, _filled(i))


def _filled(i: Instruction) -> tuple[Array, ...]:
    """The arrays of a result; of an asynchronous start (result, operand, context) for a copy, and
    (operand, result, context) for all else, the one that will be written."""
    if not i.opcode.endswith("-start"):
        return i.arrays
    return i.arrays[:1] if i.opcode == "copy-start" else i.arrays[1:2] or i.arrays


def _result(here: Computation, i: Instruction, arrays: tuple[Array, ...]) -> float:
    """Bytes that `i` writes to HBM as `arrays`; an update in place writes its update."""
    size = sum(a.bytes for a in arrays if a.space == 0)
    if i.opcode == "tuple" and len(i.operands) == len(arrays):
        parts = [here.by_name.get(n) for n in i.operands]
        return sum(_result(here, p, (a,)) for p, a in zip(parts, arrays, strict=True) if p)
    if i.opcode == "bitcast" and i.operands[0] in here.by_name:
        return min(size, _result(here, here.by_name[i.operands[0]], arrays))
    if i.opcode == "dynamic-update-slice" and (update := here.by_name.get(i.operands[1])):
        return min(size, sum(a.bytes for a in update.arrays))
    return size


def _operands(i: Instruction, here: Computation) -> Iterator[Array]:
    for name in i.operands:
        if name in here.by_name:
            yield from here.by_name[name].arrays


def _bytes_of_operands(i: Instruction, here: Computation) -> float:
    return sum(a.bytes for a in _operands(i, here))


def _groups(i: Instruction, devices: int) -> np.ndarray:
    """Who exchanges with whom: partition numbers (groups, members); of a permute, its pairs."""
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", i.rest):
        return np.array([[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)", match[1] + "}")])
    if "replica_groups=mesh[" in i.rest:
        return _mesh_groups(i.rest)
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.rest):
        shape, dims = (tuple(map(int, match[k].split(","))) for k in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            ids = ids.transpose(tuple(map(int, match[3].split(","))))
        return ids.reshape(shape)
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", i.rest):
        return np.array(
            [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", match[1])]
        )
    return np.arange(devices)[None]


def _mesh_groups(rest: str) -> np.ndarray:
    """mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}: groups along axes of the compiler's mesh.

    A part of an axis is 'b':(2)2, the second 2 of 2 x 2.
    """
    match = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}(?:, |$)", rest
    )
    if match is None:
        raise ValueError(f"planner: replica groups not understood: {rest[:200]}")
    sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])}
    ids = np.arange(math.prod(sizes.values()))
    if match[2]:
        dims, _, order = match[2].partition("T")
        ids = ids.reshape(_numbers(dims))
        if order:
            ids = ids.transpose(_numbers(order))
    parts = {
        n: (int(before or 1), int(size or sizes[n]))
        for n, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
    }
    shape: list[int] = []
    along: list[int] = []
    for name, whole in sizes.items():
        before, size = parts.get(name, (1, 1))
        along += [len(shape) + 1] if name in parts else []
        shape += [before, size, whole // (before * size)]
    ids = ids.reshape(shape)
    others = [k for k in range(len(shape)) if k not in along]
    members = math.prod(ids.shape[k] for k in along)
    return ids.transpose(*others, *along).reshape(-1, members)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _axes(kind: str, groups: np.ndarray, mesh: dict[str, int]) -> str:
    """Axes along which members of a group differ."""
    places = np.array(np.unravel_index(groups, tuple(mesh.values())))  # (axis, group, member)
    moves = (places != places[:, :, :1]).any(axis=(1, 2))
    return "+".join(a for a, m in zip(mesh, moves, strict=True) if m)
