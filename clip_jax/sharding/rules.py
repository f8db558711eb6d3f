"""Which dim of which parameter lives on which mesh axis: one table, by path.

Works for any tree whose paths end like the parameters' (optimizer moments too).
Letters: l layers, d width, f mlp hidden, v vocabulary.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# First match wins. Of a dim's axes, those stay that divide it, from the left. Hidden layers are
# split along f: f / 128 is a multiple of 8 where d / 128 is not, and then XLA scatters sums
# over 128 devices instead of giving all of them to all.
BOTH = ("tensor", "fsdp")
RULES: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    (r"attn/[qkv]/kernel$", ((), ("fsdp",), ("tensor",))),  # (l, d, d)
    (r"attn/[qkv]/bias$", ((), BOTH)),  # (l, d)
    (r"attn/out/kernel$", ((), ("tensor",), ("fsdp",))),  # (l, d, d)
    (r"mlp/up/kernel$", ((), (), BOTH)),  # (l, d, f)
    (r"mlp/up/bias$", ((), BOTH)),  # (l, f)
    (r"mlp/down/kernel$", ((), BOTH, ())),  # (l, f, d)
)
SMALLEST_SHARDED = 1024  # elements; below, gathering costs more than keeping copies
LARGE = 2**20  # elements; a copy of so many on every device is worth a word


def path_of(key_path: tuple[Any, ...]) -> str:
    """'image/blocks/attn/q/kernel' from a key path of jax.tree_util."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """PartitionSpec of one array; the last rule puts the largest divisible dim on `fsdp`."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            return P(*(_dividing(a, n, mesh) for a, n in zip(axes, shape, strict=True)))
    size = mesh.shape["fsdp"]
    first = 1 if "/blocks/" in path else 0  # never split the layer dim: the scan slices it
    dims = [i for i in range(first, len(shape)) if shape[i] % size == 0]
    if not dims or math.prod(shape) < SMALLEST_SHARDED:
        return P()
    largest = max(dims, key=lambda i: shape[i])
    return P(*("fsdp" if i == largest else None for i in range(len(shape))))


def _dividing(axes: tuple[str, ...], size: int, mesh: Mesh) -> Any:
    """The entry of a PartitionSpec for a dim of this size."""
    kept: tuple[str, ...] = ()
    for a in axes:
        if size % math.prod(mesh.shape[x] for x in (*kept, a)) == 0:
            kept = (*kept, a)
    return kept[0] if len(kept) == 1 else kept or None


def shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf (array or ShapeDtypeStruct) of `tree`."""
    return jax.tree_util.tree_map_with_path(
        lambda p, x: NamedSharding(mesh, spec(path_of(p), x.shape, mesh)), tree
    )


def copies_line(copies: Iterable[str]) -> str:
    """What a run says of them."""
    return f"whole on every device, though large: {', '.join(copies)}"


def large_copies(tree: Any, mesh: Mesh) -> list[str]:
    """Paths and shapes of large arrays that every device holds whole, though the mesh shares some.

    `fsdp` and `tensor` do; without either nothing is meant to be shared.
    """
    if all(mesh.shape[a] == 1 for a in BOTH):
        return []
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        f"{path_of(p)} {x.shape}"
        for p, x in flat
        if math.prod(x.shape) >= LARGE
        and NamedSharding(mesh, spec(path_of(p), x.shape, mesh)).is_fully_replicated
    ]
