"""From counts to seconds, by rooflines: estimates, with the constants of config/chips.py.

`compute` is the FLOPs at the bfloat16 peak, `memory` the HBM traffic at full bandwidth, `cycles`
XLA's own sum, `interconnect` the bytes sent over the links that an axis has, `network` those sent
between slices (by bandwidth alone: its latency is not known). The step lies between `best` (all of
them at once: their maximum) and `seconds` (nothing is sent while anything is computed or sent
elsewhere). No host, no input, no start-up.
"""

import dataclasses
import itertools
import math
from typing import Any

from clip_jax.config.chips import HOP, NODE, Topology
from clip_jax.planner.compile import Measure
from clip_jax.planner.counts import SLICES_AXIS, Collective, within


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, and what follows.

    Attributes:
        compute, memory, cycles, interconnect, network: as above; cycles is 0 where XLA gives none.
        best: the lower end.
        seconds: the upper end, the one that the rest is from.
        examples: per second.
        mfu: share of the bfloat16 peak that the model's FLOPs (without remat) take.
        by_collective: seconds of each entry of `Measure.collectives`.
    """

    compute: float
    memory: float
    cycles: float
    interconnect: float
    network: float
    best: float
    seconds: float
    examples: float
    mfu: float
    by_collective: tuple[float, ...]

    @property
    def sent(self) -> float:
        """Of `seconds`, what devices spend on each other."""
        return self.interconnect + self.network


def estimate(
    measure: Measure, topology: Topology, mesh: dict[str, int], batch_size: int, model_flops: float
) -> Estimate:
    """Seconds of a step.

    Args:
        measure: of the program, or of its shapes with analytic collectives.
        topology: what it runs on.
        mesh: size of each axis, in order.
        batch_size: pairs a step.
        model_flops: FLOPs of the step without recomputation, all devices.
    """
    devices = math.prod(mesh.values())
    compute = measure.flops / devices / topology.device_flops
    memory = measure.traffic / topology.device_bandwidth
    clock = topology.chip.clock
    cycles = measure.cycles / clock if clock else 0.0
    each = tuple(collective_seconds(c, topology, mesh) for c in measure.collectives)
    pairs = zip(measure.collectives, each, strict=True)
    network = sum(s for c, s in pairs if c.axes == SLICES_AXIS)
    inside = sum(each) - network
    best = max(compute, memory, inside, network)
    seconds = max(compute, memory, cycles) + inside + network
    mfu = model_flops / (seconds * devices * topology.device_flops)
    examples = batch_size / seconds
    return Estimate(compute, memory, cycles, inside, network, best, seconds, examples, mfu, each)


def collective_seconds(c: Collective, topology: Topology, mesh: dict[str, int]) -> float:
    """Seconds of all collectives of an entry: bytes over links, or the way round at 1 us a hop."""
    if c.axes == SLICES_AXIS:
        return c.sent / (topology.chip.network / topology.chip.devices)
    axes, mesh = tuple(c.axes.split("+")), within(mesh, topology.slices)
    if topology.is_gpu:
        inside = _reach(axes, mesh) <= NODE
        return max(
            c.sent / (topology.chip.link if inside else topology.chip.network), c.count * HOP
        )
    bandwidth, hops = links(topology, mesh, axes)
    if c.kind == "collective-permute":
        return max(c.sent / topology.chip.link, c.count * HOP)
    rounds = 2 if c.kind == "all-reduce" else 1
    return max(c.sent / bandwidth, c.count * rounds * hops * HOP)


def _reach(axes: tuple[str, ...], mesh: dict[str, int]) -> int:
    """Devices from the first member of a group to the last, counted in the order of the mesh."""
    names, sizes = list(mesh), list(mesh.values())
    last = sum((mesh[a] - 1) * math.prod(sizes[names.index(a) + 1 :]) for a in axes if a in mesh)
    return last + 1


def links(topology: Topology, mesh: dict[str, int], axes: tuple[str, ...]) -> tuple[float, int]:
    """Bandwidth of a device to its group along `axes`, bytes/s, and hops round the group.

    A ring that closes sends both ways at once; a line, or a part of a ring, counts once. Groups
    that lie between each other share their links.
    """
    group = [_place(topology, p) for p in _group(mesh, axes)]
    bandwidth, hops = 0.0, 0
    for dim in range(len(topology.shape)):
        at = sorted({p[dim] for p in group})
        if len(at) < 2:
            continue
        step = at[1] - at[0]
        closes = topology.wraps(dim) and step * len(at) == topology.shape[dim]
        bandwidth += topology.chip.link * (2 if closes else 1) / step
        hops += topology.shape[dim] // 2 if closes else at[-1] - at[0]
    if not bandwidth:  # two devices of one chip
        return topology.chip.link * 2 * topology.chip.dims, 1
    return bandwidth / topology.chip.devices, max(1, hops)


def _group(mesh: dict[str, int], axes: tuple[str, ...]) -> list[int]:
    """Numbers of the devices that differ from device 0 along `axes` only."""
    sizes, names = list(mesh.values()), list(mesh)
    strides = {a: math.prod(sizes[names.index(a) + 1 :]) for a in names}
    steps = [[k * strides[a] for k in range(mesh[a])] for a in axes if a in mesh]
    return [sum(x) for x in itertools.product(*steps)]


def _place(topology: Topology, device: int) -> tuple[int, ...]:
    """Chip of a device: the cores of a chip come first, then x, then y, then z."""
    chip = device // topology.chip.devices
    place = []
    for n in topology.shape:
        place.append(chip % n)
        chip //= n
    return tuple(place)


def run_cost(
    e: Estimate, topology: Topology, samples: float, price: float | None
) -> dict[str, Any]:
    """Days, chip-hours and, with a price per chip and hour, cost of `samples` pairs."""
    hours = samples / e.examples / 3600
    chip_hours = hours * topology.num_chips
    found = {"samples": samples, "days": hours / 24, "chip_hours": chip_hours}
    return found if price is None else {**found, "price": price, "cost": chip_hours * price}
