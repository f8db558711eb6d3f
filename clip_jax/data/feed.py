"""Host batches -> global arrays on the mesh, one batch ahead of the step.

uint8 images travel; `b` is split over the batch axes of the mesh.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.data.pipeline import HostBatch
from clip_jax.sharding.mesh import batch_sharding


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
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in arrays.items()}


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
