"""The device mesh, and where batches and activations live on it.

The only place that creates a mesh. Axes are `data`, `fsdp` and `tensor`; the batch is split over
the first two. With several slices `data` is the axis that crosses the slow network between them:
its traffic is one sum of the gradient a step, and the loss's. `constrain` and `replicate` act on
the mesh of the surrounding `jax.set_mesh`, and do nothing without one, so that models and losses
run unchanged on a single device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.config.schema import MeshConfig
from clip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def mesh_shape(cfg: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of the axes (data, fsdp, tensor), with the -1 filled in.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    text = f"{cfg.data} x {cfg.fsdp} x {cfg.tensor}"
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise UserError(f"config.mesh: one axis may be -1, the others count (got {text})")
    known = math.prod(s for s in sizes if s != -1)
    if known > num_devices:
        raise UserError(
            f"config.mesh: {text} needs {known} devices, here are {num_devices}; make it smaller"
        )
    if num_devices % known:
        raise UserError(
            f"config.mesh: {text} does not divide the {num_devices} devices; choose divisors"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = num_devices // known
    return (sizes[0], sizes[1], sizes[2])


def check_slices(cfg: MeshConfig, sizes: tuple[int, int, int], num_devices: int) -> None:
    """Raises UserError unless each slice has an equal part of `data` and all its devices."""
    if cfg.num_slices == 1:
        return
    if sizes[0] % cfg.num_slices:
        raise UserError(
            f"config.mesh.num_slices: must divide the axis data, {sizes[0]} here "
            f"(got {cfg.num_slices}); set config.mesh.fsdp so that it fits into one slice"
        )
    if (count := math.prod(sizes)) < num_devices:
        raise UserError(
            f"config.mesh.num_slices: {count} of {num_devices} devices would leave a slice out; "
            "use them all (config.mesh.data=-1)"
        )


def make_mesh(cfg: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all by default; fewer when the sizes ask for fewer, one process).

    Raises:
        UserError: sizes or slices do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(cfg, len(devices))
    if cfg.num_slices > 1 or devices[0].platform == "tpu":  # a GPU's slice is its host
        devices = _by_slice(devices, cfg.num_slices)
    check_slices(cfg, sizes, len(devices))
    count = math.prod(sizes)
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(f"config.mesh: {count} of {len(devices)} devices; use them all (data=-1)")
    grid = np.array(devices[:count]).reshape(sizes)
    # Explicit axes, the default of jax.make_mesh, refuse `image @ text.T` and token pooling.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slice(devices: list[Any], num_slices: int) -> list[Any]:
    """The devices of one slice next to each other; those without a slice are cut into equal parts.

    Raises:
        UserError: the devices are of another number of slices.
    """
    slices = {getattr(d, "slice_index", None) for d in devices}
    if slices == {None}:  # CPUs, to try a multi-slice mesh out
        if len(devices) % num_slices:
            raise UserError(
                f"config.mesh.num_slices: {len(devices)} devices do not divide into {num_slices}; "
                "choose a divisor"
            )
        return devices
    if len(slices) != num_slices:
        raise UserError(
            f"config.mesh.num_slices: the devices are of {len(slices)} slices (got {num_slices}); "
            f"set it to {len(slices)}"
        )
    return sorted(devices, key=lambda d: d.slice_index)  # stable: the order inside stays


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dim over the batch axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[a] for a in BATCH_AXES)


def each_part_of_data(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """f(params, slices (a, b, ...)) -> (a, b, ...), run apart on each part of the axis `data`.

    What f adds up for the gradient of params stays on its device, in the parameters' type, and is
    summed over `data` once, at the end.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return f

    def own(params: Any, slices: Any) -> Any:
        # Said here, the sum over `data` that belongs to it stands here too, not inside f's loops.
        return f(jax.lax.pcast(params, ("data",), to="varying"), slices)

    part = P(None, "data")
    return jax.shard_map(own, in_specs=(P(), part), out_specs=part, axis_names={"data"})


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if mesh.manual_axes:  # inside each_part_of_data
        spec = P(*(_without(part, mesh.manual_axes) for part in spec))
    return jax.lax.with_sharding_constraint(x, spec)


def _without(part: Any, axes: tuple[str, ...]) -> Any:
    """An entry of a PartitionSpec less some axes."""
    kept = tuple(a for a in ((part,) if isinstance(part, str) else part or ()) if a not in axes)
    return kept or None


def constrain(x: jax.Array) -> jax.Array:
    """Keeps dim 0 of `x` (b, ...) spread over the batch axes, and the others whole."""
    return _constrain(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


def constrain_slices(x: jax.Array) -> jax.Array:
    """Keeps dim 1 of `x` (a, b, ...) spread over the batch axes; each device has all a."""
    return _constrain(x, P(None, BATCH_AXES, *(None,) * (x.ndim - 2)))


def replicate(x: jax.Array) -> jax.Array:
    """Makes `x` whole on every device: an all-gather if it was spread."""
    return _constrain(x, P())
