"""Compiles the training step for a TPU topology, without the TPU, and takes its measure.

The program is `train.program.build`'s own; only the devices of the mesh are descriptions. Needs
libtpu, and the environment of cli/plan.py from before jax is imported.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import re
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax

from clip_jax.config.chips import Topology
from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.metrics.flops import count_jaxpr
from clip_jax.planner import counts, hlo
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program
from clip_jax.train.compiler import compiled


def topology_devices(topology: Topology) -> list[Any]:
    """Descriptions of its devices, for a mesh that only compiles.

    Raises:
        UserError: no libtpu, or one that does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        wanted = [r for r in importlib.metadata.requires("jax") or [] if r.startswith("libtpu")]
        pin = wanted[0].partition(";")[0].strip() if wanted else "libtpu"
        raise UserError(
            f"plan: the TPU compiler is not installed (jax {jax.__version__} wants {pin}); "
            "pip install 'clip-jax-pretrain[plan]'"
        )
    from jax.experimental import topologies

    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if math.prod(topology.shape) == 1:  # else libtpu expects the four chips of a usual host
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.slice_name, **more
        )
    except jax.errors.JaxRuntimeError as e:
        text = " ".join(str(e).split())
        raise UserError(
            f"--topology: libtpu {version('libtpu')} does not take {topology.name} ({text}); "
            "choose another"
        ) from e
    return list(found.devices)


def version(name: str) -> str:
    """Of an installed distribution; empty if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What was counted in a program; bytes are of one device, FLOPs of all.

    Attributes:
        parameters, optimizer, batch: by shape and sharding, without the padding of layouts; a
            moving average counts to the optimizer.
        arguments, outputs, reused, temporaries, peak: as the compiler tells; zeros if it gave up.
            `reused` are outputs in the place of donated arguments.
        over: by how much the program missed the memory; 0 if it compiled.
        flops: of the step as it runs, with what remat and micro-batches repeat.
        cycles: the sum of XLA's own estimates, without collectives; 0 if there are none.
        traffic: read from and written to HBM.
    """

    parameters: float
    optimizer: float
    batch: float
    flops: float
    arguments: float = 0.0
    outputs: float = 0.0
    reused: float = 0.0
    temporaries: float = 0.0
    peak: float = 0.0
    over: float = 0.0
    capacity: float = 0.0
    cycles: float = 0.0
    traffic: float = 0.0
    collectives: tuple[counts.Collective, ...] = ()
    host_transfers: float = 0.0
    host_bytes: float = 0.0
    seconds: float = 0.0

    @property
    def compiled(self) -> bool:
        """Whether the compiler found room for it."""
        return self.arguments > 0


def state_measure(prog: program.Program, flops: float) -> Measure:
    """What shapes alone tell."""
    state = prog.abstract
    return Measure(
        parameters=device_bytes((state.params, state.stats)),
        optimizer=device_bytes((state.opt_state, state.ema)),
        batch=device_bytes(prog.batch),
        flops=flops,
    )


def device_bytes(tree: Any) -> float:
    """Bytes of a tree of sharded shapes on one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        part = jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
        total += part.size * part.dtype.itemsize
    return float(total)


def measure(
    cfg: Config, devices: list[Any], meanwhile: Callable[[], object] = lambda: None
) -> Measure:
    """Compiles the step of `cfg` for `devices` and counts; `meanwhile` runs beside the compiler.

    Raises:
        UserError: the config does not fit the mesh.
    """
    prog = program.build(cfg, make_mesh(cfg.mesh, devices))
    found = state_measure(prog, count_jaxpr(prog.trace().jaxpr.jaxpr))
    lowered, start = prog.lower(), time.monotonic()
    try:
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(meanwhile)
            executable = compiled(lowered, prog.options)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        capacity, over = exhausted(str(e))
        seconds = time.monotonic() - start
        return dataclasses.replace(found, capacity=capacity, over=over, seconds=seconds)
    seconds = time.monotonic() - start
    memory = executable.memory_analysis()
    text = hlo.parse(executable.as_text())
    sizes = {k: int(v) for k, v in prog.mesh.shape.items()}
    slices = cfg.mesh.num_slices
    transfers, host_bytes = counts.host_transfers(text)
    return dataclasses.replace(
        found,
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        reused=float(memory.alias_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        peak=float(memory.peak_memory_in_bytes),
        cycles=counts.cycles(text),
        traffic=counts.memory_traffic(text),
        collectives=tuple(counts.collectives(text, sizes, slices)),
        host_transfers=transfers,
        host_bytes=host_bytes,
        seconds=seconds,
    )


def exhausted(message: str) -> tuple[float, float]:
    """(memory of the device, bytes too many) from XLA's message; zeros where it does not say."""
    number = r"([0-9.]+)([KMGT]?)"
    used = re.search(rf"[Uu]sed {number} of {number} hbm", message)
    if used:
        need, have = _bytes(used[1], used[2]), _bytes(used[3], used[4])
        return have, need - have
    need = re.search(rf"\({number}\) exceeds available HBM \({number}\)", message)
    if need:
        size, have = _bytes(need[1], need[2]), _bytes(need[3], need[4])
        return have, size - have
    return 0.0, 0.0


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024 ** ("KMGT".index(unit) + 1 if unit else 0)
