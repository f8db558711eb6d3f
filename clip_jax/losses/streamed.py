"""A contrastive loss whose logits are never whole: slices of rows, and a ring or one gather.

Letters: b images, j texts (captions and hard negatives), e embedding; of one device inside
shard_map, of the global batch outside.
Exact: rows and columns keep running maxima and sums; the backward pass makes each block of logits
again, from the embeddings and the saved log-sum-exps (as FlashAttention does): four products of
blocks instead of three, memory of one slice of rows. With `keep` the similarities stay instead:
three products, memory of b x j of the global batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.losses.logits import NOBODY, block, columns
from clip_jax.losses.travel import by_rows, ring
from clip_jax.sharding.mesh import BATCH_AXES

State = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A loss over all pairs, as what each block of logits s (b, j) adds.

    Attributes:
        rows: b -> empty State of the images; `best` is part of it.
        columns: j -> empty State of the texts; `best` is part of it.
        add: (rows, columns, s, positive) -> (rows, columns).
        combine: (columns, axes) -> columns of all devices, when the texts were gathered.
        finish: (rows, columns, groups of the texts) -> the sum of the loss over this device, and
            what `slope` needs of rows and columns.
        slope: (s, positive, rows, columns) -> derivative of the sum by s, (b, j).
        floor: rows -> the lowest loss that the groups allow (b,).
    """

    rows: Callable[[int], State]
    columns: Callable[[int], State]
    add: Callable[[State, State, jax.Array, jax.Array], tuple[State, State]]
    combine: Callable[[State, tuple[str, ...]], State]
    finish: Callable[[State, State, jax.Array], tuple[jax.Array, State, State]]
    slope: Callable[[jax.Array, jax.Array, State, State], jax.Array]
    floor: Callable[[State], jax.Array]


def best(n: int) -> State:
    """No positive and no negative seen yet."""
    lowest = jnp.full((n,), -jnp.inf, jnp.float32)
    return {"positive": lowest, "negative": lowest}


def merged_best(old: State, s: jax.Array, positive: jax.Array, axis: int) -> State:
    """Largest logit of the positives and of the negatives, over `axis` and before."""
    of = lambda mask: jnp.where(mask, s, -jnp.inf).max(axis)  # noqa: E731
    return {
        "positive": jnp.maximum(old["positive"], of(positive)),
        "negative": jnp.maximum(old["negative"], of(~positive)),
    }


def top(state: State) -> jax.Array:
    """Largest logit so far."""
    return jnp.maximum(state["positive"], state["negative"])


def streamed_loss(
    math_: Streamed,
    mesh: Mesh,
    *,
    around: bool,
    chunk: int,
    keep: bool,
    wire_dtype: str,
    num_slices: int = 1,
) -> Callable[..., Any]:
    """The loss (z, logit, group) -> (scalar, metrics) as in losses/softmax.py.

    Args:
        math_: which loss.
        mesh: the batch is split over its axes data and fsdp.
        around: texts go around the ring; else they are gathered.
        chunk: images of a device at a time.
        keep: the similarities stay in memory for the backward pass.
        wire_dtype: of the embeddings that travel and enter the products; sums are float32.
        num_slices: of the mesh; the ring turns in each of them.
    """
    pairs = _pairs(Passes(math_, mesh, around, chunk, keep, num_slices))

    def loss(
        z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        y, y_group = columns(z, group)
        scale = jnp.exp(logit["scale"])
        bias = jnp.asarray(logit.get("bias", 0.0), jnp.float32)
        x, y = z["image"].astype(wire_dtype), y.astype(wire_dtype)
        value, metrics = pairs(x, y, scale, bias, group, y_group)
        return value, lax.stop_gradient(metrics)

    return loss


@dataclasses.dataclass(frozen=True)
class Passes:
    """Both passes as plain programs of one device, to be run inside shard_map.

    Letters as above, of one device; arguments as of `streamed_loss`. `texts` are a dict of arrays
    (j, ...): a hop's block of the ring, or all that were gathered.
    """

    math_: Streamed
    mesh: Mesh
    around: bool
    chunk: int
    keep: bool
    num_slices: int

    @property
    def num_devices(self) -> int:
        """Those that the batch is split over."""
        return math.prod(self.mesh.shape[a] for a in BATCH_AXES)

    @property
    def hops(self) -> int:
        """Blocks of texts that a device sees in turn."""
        return self.num_devices if self.around else 1

    def forward(self, x: Any, y: Any, scale: Any, bias: Any, x_group: Any, y_group: Any) -> Any:
        """(loss, metrics, residuals of rows, of columns, similarities (b, hops, j) if kept)."""
        m = self.math_

        def step(hop: Any, fixed: Any, texts: Any, columns: Any) -> Any:
            def body(images: Any, state: Any, columns: Any) -> Any:
                rows, kept = state
                dot = block(images["z"], texts["z"], jnp.float32(1.0))  # (chunk, j)
                if self.keep:
                    kept = lax.dynamic_update_slice_in_dim(kept, dot[:, None], hop, 1)
                rows, columns = m.add(rows, columns, scale * dot + bias, _same(images, texts))
                return (rows, kept), columns

            return by_rows(body, self.chunk, {"z": x, "group": x_group}, fixed, columns)

        b = x.shape[0]
        texts_at_once = self.num_devices * y.shape[0] // self.hops
        kept = jnp.zeros((b, self.hops if self.keep else 0, texts_at_once), jnp.float32)
        (rows, kept), columns = self._visit(
            step,
            (m.rows(b), kept),
            {"z": y, "group": y_group},
            m.columns,
            lambda acc: self._own(m.combine(acc, BATCH_AXES)),
        )
        total, row_residual, column_residual = m.finish(rows, columns, y_group)
        captions = (columns["positive"] > columns["negative"]) & (y_group != NOBODY)
        sums = {
            "loss": total,
            "accuracy/image_to_text": jnp.sum(rows["positive"] > rows["negative"]),
            "accuracy/text_to_image": jnp.sum(captions),
            "loss_floor": jnp.sum(m.floor(rows)),
        }
        means = {k: lax.psum(v, BATCH_AXES) / (b * self.num_devices) for k, v in sums.items()}
        return means.pop("loss"), means, row_residual, column_residual, kept

    def backward(
        self, x: Any, y: Any, scale: Any, bias: Any, x_group: Any, y_group: Any, rows: Any,
        cols: Any, kept: Any, g: Any,
    ) -> Any:  # fmt: skip
        """Gradients by x, y, scale and bias, for the slope `g` of the loss."""

        def step(hop: Any, grads: Any, texts: Any, dy: Any) -> Any:
            def body(images: Any, dx: Any, carry: Any) -> Any:
                dy, dscale, dbias = carry
                if self.keep:
                    dot = lax.dynamic_index_in_dim(images["kept"], hop, 1, keepdims=False)
                else:
                    dot = block(images["z"], texts["z"], jnp.float32(1.0))  # (chunk, j)
                ds = self.math_.slope(
                    scale * dot + bias, _same(images, texts), images["rows"], texts["columns"]
                )
                dscale, dbias = dscale + jnp.sum(ds * dot), dbias + jnp.sum(ds)
                ds = ds.astype(x.dtype)
                dx = dx + _product("bj,je->be", ds, texts["z"])
                dy = dy + _product("bj,be->je", ds, images["z"])
                return dx, (dy, dscale, dbias)

            dx, dscale, dbias = grads
            images = {"z": x, "group": x_group, "rows": rows, "kept": kept}
            dx, (dy, dscale, dbias) = by_rows(body, self.chunk, images, dx, (dy, dscale, dbias))
            return (dx, dscale, dbias), dy

        b, e = x.shape
        zero = jnp.float32(0.0)
        (dx, dscale, dbias), dy = self._visit(
            step,
            (jnp.zeros((b, e), jnp.float32), zero, zero),
            {"z": y, "group": y_group, "columns": cols},
            lambda j: jnp.zeros((j, e), jnp.float32),
            lambda dy: lax.psum_scatter(dy, BATCH_AXES, tiled=True),
        )
        g = g / (b * self.num_devices)
        dscale, dbias = lax.psum((dscale, dbias), BATCH_AXES)
        k = scale * g
        return (k * dx).astype(x.dtype), (k * dy).astype(y.dtype), g * dscale, g * dbias

    def _visit(self, step: Any, fixed: Any, texts: Any, empty: Any, combine: Any) -> Any:
        """`step` over all texts; the accumulated columns come back for this device's own texts."""
        if self.around:
            none = empty(texts["group"].shape[0])
            return ring(step, fixed, texts, none, BATCH_AXES, self.num_slices)
        texts = jax.tree.map(lambda v: lax.all_gather(v, BATCH_AXES, tiled=True), texts)
        fixed, acc = step(0, fixed, texts, empty(texts["group"].shape[0]))
        return fixed, combine(acc)

    def _own(self, acc: Any) -> Any:
        """This device's part of arrays that are equal on all devices."""
        size = lambda v: v.shape[0] // self.num_devices  # noqa: E731
        at = lax.axis_index(BATCH_AXES)
        return jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, at * size(v), size(v)), acc)


def _pairs(passes: Passes) -> Callable[..., Any]:
    """(x (b, e), y (j, e), scale, bias, x_group (b,), y_group (j,)) -> (loss, metrics).

    The rule for the gradient stands outside shard_map.
    """
    spread, whole = P(BATCH_AXES), P()
    on_mesh = functools.partial(jax.shard_map, mesh=passes.mesh, check_vma=False)
    arguments = (spread, spread, whole, whole, spread, spread)
    forward: Any = on_mesh(
        passes.forward, in_specs=arguments, out_specs=(whole, whole, spread, spread, spread)
    )
    backward: Any = on_mesh(
        passes.backward,
        in_specs=(*arguments, spread, spread, spread, whole),
        out_specs=(spread, spread, whole, whole),
    )

    @jax.custom_vjp
    def pairs(*args: Any) -> Any:
        return forward(*args)[:2]

    def save(*args: Any) -> Any:
        value, metrics, *residuals = forward(*args)
        return (value, metrics), (*args, *residuals)

    def pull(saved: Any, cotangents: Any) -> Any:
        return (*backward(*saved, cotangents[0]), None, None)  # groups have no gradient

    pairs.defvjp(save, pull)
    return pairs


def _same(images: Any, texts: Any) -> jax.Array:
    """bool (b, j): image and text belong together."""
    return images["group"][:, None] == texts["group"][None, :]


def _product(letters: str, ds: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.einsum(letters, ds, z, precision="highest", preferred_element_type=jnp.float32)
