"""Accelerators and how they are wired: constants with their sources, topologies, their names.

Figures are the vendors' peaks, per chip; nothing here was measured except `usable`.
"""

import dataclasses
import math
import re

from clip_jax.errors import UserError, near

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
        flops: bfloat16 peak, FLOP/s.
        bandwidth: of the device memory, bytes/s.
        memory: device memory, bytes.
        usable: what a program may take of it, bytes: as the TPU compiler says; of a GPU, all.
        link: interconnect per link and direction, bytes/s; of a GPU, all of NVLink per direction.
        network: to other slices, over the data-centre network, bytes/s and direction; of a GPU, to
            other nodes: one 400 Gbit/s adapter each.
        dims: of the torus; 0 = a GPU, all to all within a node of 8.
        devices: JAX devices per chip; each has its share of all the figures above but `link`.
        clock: Hz, from flops / (FLOPs that the matrix units do in a cycle); 0 = not known.
        largest: chips in the largest slice.
        source: where the figures are from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    usable: float
    link: float
    network: float
    dims: int
    devices: int
    clock: float
    largest: int
    source: str


def _cycle(units: int, side: int) -> float:
    """FLOPs of a cycle: `units` matrix units of side x side multiply-adds."""
    return 2.0 * units * side * side


GOOGLE = "docs.cloud.google.com/tpu/docs"
BOOK = "jax-ml.github.io/scaling-book"

# usable: what libtpu 0.0.42.1 says to a program that is too large (v4, tpu7x: of two devices)
# link of v5e, v5p, v6e, tpu7x: "bidirectional ICI bandwidth per chip" / (2 x links of a chip)
# network of v5e, v6e: "data center network bandwidth per Pod" / its chips; v5p: given per chip; v4:
# the book's 25 GB/s of a host with four chips
CHIPS = {
    c.name: c
    for c in (
        Chip(
            "v4", 275e12, 1200e9, 32 * GIB, 30.5 * GIB, 45e9, 6.25e9, 3, 2,
            275e12 / _cycle(8, 128), 4096, f"{GOOGLE}/v4; link and network: {BOOK}/tpus",
        ),
        Chip(
            "v5e", 197e12, 819e9, 16 * GIB, 15.75 * GIB, 50e9, 3.125e9, 2, 1,
            197e12 / _cycle(4, 128), 256, f"{GOOGLE}/v5e",
        ),
        Chip(
            "v5p", 459e12, 2765e9, 96 * GIB, 95.74 * GIB, 100e9, 6.25e9, 3, 1,
            459e12 / _cycle(8, 128), 6144, f"{GOOGLE}/v5p",
        ),
        Chip(
            "v6e", 918e12, 1638e9, 32 * GIB, 31.25 * GIB, 100e9, 12.5e9, 2, 1,
            918e12 / _cycle(4, 256), 256, f"{GOOGLE}/v6e",
        ),
        Chip(
            "tpu7x", 2307e12, 7380e9, 192 * GIB, 189.5 * GIB, 100e9, 12.5e9, 3, 2, 0.0, 9216,
            f"{GOOGLE}/tpu7x; bandwidth, link and network not checked",
        ),
        Chip(
            "A100", 312e12, 2039e9, 80e9, 80e9, 300e9, 50e9, 0, 1, 0.0, 4096,
            "NVIDIA A100 80GB SXM data sheet",
        ),
        Chip(
            "H100", 989e12, 3350e9, 80e9, 80e9, 450e9, 50e9, 0, 1, 0.0, 4096,
            "NVIDIA H100 SXM data sheet, without sparsity",
        ),
        Chip(
            "H200", 989e12, 4800e9, 141e9, 141e9, 450e9, 50e9, 0, 1, 0.0, 4096,
            "NVIDIA H200 SXM data sheet, without sparsity",
        ),
    )
}  # fmt: skip

# What JAX calls the devices (`device_kind`).
KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip


def peak_flops(device_kind: str) -> float:
    """bfloat16 peak of one JAX device, FLOP/s; 0 where it is not known."""
    gpus = (c.name for c in CHIPS.values() if not c.dims and f"NVIDIA {c.name}" in device_kind)
    chip = CHIPS.get(KINDS.get(device_kind) or next(gpus, ""))
    return chip.flops / chip.devices if chip else 0.0


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e, by chips
CUBES = (  # v4 and v5p, by chips; the usual shape of a size
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
    "16x16x16", "16x16x24",
)  # fmt: skip
# Accelerator types: (chip, what their number counts per chip)
TYPES = {"v5litepod": ("v5e", 1), "v5e": ("v5e", 1), "v6e": ("v6e", 1), "v5p": ("v5p", 2)}
TYPES |= {"v4": ("v4", 2)}
NODE = 8  # GPUs that NVLink joins
HOP = 1e-6  # seconds per hop of a collective, at least: scaling-book/tpus ("1us per hop")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind: the shape of a slice, in chips, and how many slices.

    The shape is (x, y) or (x, y, z), or (n,) of GPUs, which have no slices.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def is_gpu(self) -> bool:
        """Whether only the analytic part of a plan exists."""
        return self.chip.dims == 0

    @property
    def num_chips(self) -> int:
        """All chips."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """What `jax.devices()` would list."""
        return self.num_chips * self.chip.devices

    @property
    def name(self) -> str:
        """'v5e:16x16', '2 x v5e:16x16', 'H100:8'."""
        return self.slice_name if self.slices == 1 else f"{self.slices} x {self.slice_name}"

    @property
    def slice_name(self) -> str:
        """Of one slice, as JAX wants it: 'v5e:16x16'."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def device_flops(self) -> float:
        """bfloat16 peak of a JAX device, FLOP/s."""
        return self.chip.flops / self.chip.devices

    @property
    def device_bandwidth(self) -> float:
        """Memory bandwidth of a JAX device, bytes/s."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def device_usable(self) -> float:
        """Memory that a program may take on a JAX device, bytes."""
        return self.chip.usable / self.chip.devices

    def wraps(self, dim: int) -> bool:
        """Whether a dim of the torus closes: 16 chips of v5e and v6e, cubes of 4 of the others."""
        n = self.shape[dim]
        if self.chip.dims == 2:
            return n == 16
        return all(s % 4 == 0 for s in self.shape)


def parse_topology(text: str) -> Topology:
    """A topology (v5e:16x16), an accelerator type (v5litepod-256, v5p-1024), or GPUs (H100:8).

    Raises:
        UserError: an unknown chip, or a shape that its slices do not have.
    """
    name, separator, rest = text.strip().partition(":")
    if not separator and "-" in name:
        return _from_type(text)
    chip = next((c for c in CHIPS.values() if c.name.lower() == name.lower()), None)
    if chip is None:
        raise _unknown(text)
    if chip.dims == 0:
        if rest and not (re.fullmatch(r"[0-9]{1,4}", rest) and 1 <= int(rest) <= chip.largest):
            raise UserError(
                f"--topology: a number of GPUs from 1 to {chip.largest} stands after {chip.name}: "
                f"(got '{text}'); write {chip.name}:8"
            )
        return Topology(chip, (int(rest or 1),))
    if not re.fullmatch(r"[0-9]+(x[0-9]+)*", rest):
        raise UserError(f"--topology: no shape (got '{text}'); {_shapes(chip)}")
    shape = tuple(map(int, rest.split("x")))
    found = Topology(chip, shape)
    known = rest in FLAT if chip.dims == 2 else len(shape) == 3 and _is_cuboid(shape)
    if not known or found.num_chips > chip.largest:
        raise UserError(f"--topology: no such {chip.name} (got '{text}'); {_shapes(chip)}")
    return found


def joined(topology: Topology, slices: int) -> Topology:
    """So many slices of it, as `config.mesh.num_slices` says.

    Raises:
        UserError: more than one of GPUs.
    """
    if slices > 1 and topology.is_gpu:
        raise UserError(
            f"config.mesh.num_slices: slices are of TPUs (got {slices} of {topology.name}); plan "
            f"{topology.chip.name}:{slices * topology.num_chips} with config.mesh.num_slices=1"
        )
    return dataclasses.replace(topology, slices=slices)


def _from_type(text: str) -> Topology:
    kind, _, count = text.strip().rpartition("-")
    if kind.lower() not in TYPES or not re.fullmatch("[0-9]+", count):
        raise _unknown(text)
    name, per_chip = TYPES[kind.lower()]
    chip = CHIPS[name]
    shapes = {
        math.prod(map(int, s.split("x"))) * per_chip: s for s in (FLAT if chip.dims == 2 else CUBES)
    }
    if int(count) not in shapes:
        sizes = ", ".join(f"{kind}-{n}" for n in shapes)
        raise UserError(f"--topology: no such size (got '{text}'); known: {sizes}")
    return parse_topology(f"{name}:{shapes[int(count)]}")


def _is_cuboid(shape: tuple[int, ...]) -> bool:
    """A known small shape, or cubes of 4 x 4 x 4 put together, sides in order."""
    if "x".join(map(str, shape)) in CUBES:
        return True
    return all(n > 0 and n % 4 == 0 for n in shape) and tuple(sorted(shape)) == shape


def _shapes(chip: Chip) -> str:
    if chip.dims == 2:
        return f"known: {', '.join(f'{chip.name}:{s}' for s in FLAT)}"
    return (
        f"known: {', '.join(f'{chip.name}:{s}' for s in CUBES[:8])}, and multiples of 4 in "
        f"ascending order up to {chip.largest} chips"
    )


def _unknown(text: str) -> UserError:
    tpus = [f"{c.name}:{'16x16' if c.dims == 2 else '4x4x4'}" for c in CHIPS.values() if c.dims]
    types = ["v5litepod-256", "v6e-256", "v5p-1024", "v4-512"]
    gpus = [c.name for c in CHIPS.values() if not c.dims]
    return UserError(
        f"--topology: unknown (got '{text}'); known are topologies ({', '.join(tpus)}), "
        f"accelerator types ({', '.join(types)}) and GPUs ({', '.join(gpus)}, also {gpus[-1]}:8)"
        f"{near(text, [*tpus, *types, *gpus])}"
    )
