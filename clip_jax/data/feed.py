"""Host batches -> global arrays on the mesh, one batch ahead of the step.

uint8 images travel; `b` is split over the batch axes of the mesh.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax.data.pipeline import HostBatch
from clip_jax.sharding.mesh import batch_sharding, num_batch_shards


def host_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """Rows of the global batch that this host's devices hold, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows: set[int] = set()
    for (piece,) in (p for p in places.values() if p is not None):
        rows.update(range(*piece.indices(batch_size)))
    return sorted(rows)


def put(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of this host's rows (the other hosts bring theirs)."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # meant, though jax takes it for an accident
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in arrays.items()}


def total(counts: np.ndarray, mesh: Mesh) -> np.ndarray | jax.Array:
    """The sum of int32 counts (n,) over the rows of all hosts; does not wait for the others.

    All processes call this. Hosts that hold the same rows count them once.
    """
    if jax.process_count() == 1:
        return counts
    rows = host_rows(num_batch_shards(mesh), mesh)
    local = np.zeros((len(rows), len(counts)), np.int32)
    local[0] = counts
    return _summed(mesh)(put({"counts": local}, mesh)["counts"])


@functools.cache
def _summed(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)


def feed(
    batches: Iterator[HostBatch], mesh: Mesh
) -> Iterator[tuple[dict[str, jax.Array], HostBatch]]:
    """Each batch on the devices, with what the host knows of it; the next one is under way."""
    ahead = None
    for batch in batches:
        now, ahead = ahead, (put(batch.arrays, mesh), batch)
        if now is not None:
            yield now
    if ahead is not None:
        yield ahead
