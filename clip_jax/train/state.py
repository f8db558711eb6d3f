"""What a run carries from step to step, made on its mesh without a host copy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.sharding.rules import shardings
from clip_jax.train.groups import split

Tree = Any
LAYOUT = ("params", "stats", "opt_state", "ema")  # a checkpoint item each; the rest is "rest"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Arrays only.

    step: int32 (), updates tried. params: float32. stats: running statistics of batch norms
    (empty without). opt_state: optax's, of the parameters that move. ema: moving average of the
    parameters (empty without). skipped, skipped_in_row: int32 (), steps whose loss or
    gradient was not finite. rng: uint32 key data of the run, never advanced.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: Tree
    ema: Tree
    skipped: jax.Array
    skipped_in_row: jax.Array
    rng: jax.Array


def make_begin(
    tx: optax.GradientTransformation, keep: Tree
) -> Callable[[Tree, Tree, Tree, jax.Array], TrainState]:
    """The pure function (params, stats, ema, the run's key) -> state before the first step.

    Args:
        tx: the optimizer of the parameters that move.
        keep: as in make_step.
    """

    def begin(params: Tree, stats: Tree, ema: Tree, rng: jax.Array) -> TrainState:
        zero, key = jnp.zeros((), jnp.int32), jax.random.key_data(rng)
        moving = split(params, keep)[0]
        return TrainState(zero, params, stats, tx.init(moving), ema, zero, zero, key)

    return begin


def make_init(
    init_model: Callable[[jax.Array], tuple[Tree, Tree]],
    begin: Callable[[Tree, Tree, Tree, jax.Array], TrainState],
    ema: float,
) -> Callable[[jax.Array], TrainState]:
    """The pure function from the run's key to its first state; `begin` of make_begin."""

    def init(rng: jax.Array) -> TrainState:
        params, stats = init_model(rng)
        # A copy of its own: state and average are donated to the step, each once.
        return begin(params, stats, jax.tree.map(jnp.copy, params) if ema else {}, rng)

    return init


def abstract_state(init: Callable[[jax.Array], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings(shapes, mesh),
    )


def init_state(
    init: Callable[[jax.Array], TrainState], abstract: TrainState, seed: int
) -> TrainState:
    """The first state, each array made where it will live."""
    # The key is an argument: of a constant one, XLA would fold all the random numbers slowly.
    jitted = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))
    return jitted(jax.random.key(seed))


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as the items of a checkpoint."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    items = {k: fields.pop(k) for k in LAYOUT}
    return {**items, "rest": fields}


def from_items(items: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    return TrainState(**{k: items[k] for k in LAYOUT}, **items["rest"])
