"""The stages of a run as programs, and the step from one to the next.

Parameters go on (tables of positions are resized where the image size or the context changes), and
so does their moving average. Optimizer, schedule and the count of its steps start afresh, as in
FLIP's and CLIPA's tuning, which load the weights of the run before and nothing else.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.config import stages as parts
from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.interop import build
from clip_jax.interop.table import leaves, tree
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program
from clip_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Stage(parts.Stage):
    """A part of the run with its program; `index` counts from 0 of `count`."""

    prog: program.Program
    index: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the run ends with it."""
        return self.index + 1 == self.count

    @property
    def title(self) -> str:
        """'stage 2 of 3, tune'; empty for a run without stages."""
        return f"stage {self.index + 1} of {self.count}, {self.name}" if self.name else ""


def programs(cfg: Config) -> tuple[Stage, ...]:
    """All stages of `cfg`; nothing is compiled or allocated.

    Raises:
        UserError: a batch does not divide over the mesh, or a stage has other parameters.
    """
    found: list[Stage] = []
    plain = parts.expand(cfg)
    for i, part in enumerate(plain):
        try:
            prog = program.build(part.cfg, make_mesh(cfg.mesh), part.first)
        except UserError as e:
            raise UserError(f"stage '{part.name}': {e}" if part.name else str(e)) from e
        found.append(Stage(part.name, part.cfg, part.first, part.last, prog, i, len(plain)))
        _check(found[0], found[-1])
    return tuple(found)


def _check(first: Stage, stage: Stage) -> None:
    """Refuses other parameters: only tables of positions may have another shape."""
    states = [s.prog.abstract for s in (first, stage)]
    old, new = ({**leaves(x.params), **leaves(x.stats)} for x in states)
    for name in dict.fromkeys([*old, *new]):
        shapes = [x[name].shape if name in x else "missing" for x in (old, new)]
        table = name.endswith("posemb") and "missing" not in shapes
        if shapes[0] != shapes[1] and not (table and shapes[0][-1] == shapes[1][-1]):
            raise UserError(
                f"stage '{stage.name}': {name} is {shapes[1]}, and {shapes[0]} "
                f"in '{first.name}'; let all stages have one model but for image.size and context"
            )


def advance(state: TrainState, old: Stage, new: Stage) -> TrainState:
    """The first state of a stage from the last one of the stage before, which it uses up."""
    for x in jax.tree.leaves(state.opt_state):
        x.delete()  # its memory is wanted by the new one
    where = jax.tree.map(lambda x: x.sharding, new.prog.abstract)

    def kept(before: Any, after: Any) -> Any:
        before, after = leaves(before), leaves(after)
        for path, x in after.items():
            leaf = before[path]
            if leaf.shape != x.shape:
                leaf = _resized(path, leaf, old, new, x.sharding)
            after[path] = jax.device_put(leaf, x.sharding)
        return tree(after)

    with jax.set_mesh(new.prog.mesh):
        params = kept(state.params, new.prog.abstract.params)
        stats, ema = kept(state.stats, new.prog.abstract.stats), {}
        if new.prog.abstract.ema:
            ema = kept(state.ema, params) if state.ema else jax.tree.map(jnp.copy, params)
        begin = jax.jit(new.prog.begin, out_shardings=where, donate_argnums=(0, 1, 2))
        begun = begin(params, stats, ema, jax.random.key(new.cfg.seed))
    return dataclasses.replace(begun, skipped=state.skipped)


def _resized(path: str, leaf: jax.Array, old: Stage, new: Stage, where: Any) -> jax.Array:
    resize = lambda x: build.resized(path, x, old.cfg.model, new.cfg.model)  # noqa: E731
    return jax.jit(resize, out_shardings=where)(leaf)
