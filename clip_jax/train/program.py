"""The compiled training program of a config on a mesh: model, loss, optimizer, shardings, step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax import losses
from clip_jax.config.schema import CompileConfig, Config, MeshConfig
from clip_jax.errors import UserError
from clip_jax.metrics.flops import count_jaxpr
from clip_jax.models import dual
from clip_jax.sharding.mesh import batch_sharding, make_mesh, num_batch_shards
from clip_jax.train.compiler import compiled
from clip_jax.train.compiler import options as compiler_options
from clip_jax.train.groups import decay_mask, moving, split
from clip_jax.train.optimizer import make_optimizer
from clip_jax.train.schedule import make_schedule
from clip_jax.train.state import TrainState, abstract_state, make_begin, make_init
from clip_jax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs, before anything is allocated.

    init makes the first state of a run, begin (make_begin) that of a stage which goes on from
    another; abstract and batch are trees of ShapeDtypeStruct with shardings; step is jitted,
    donates the state, and is compiled by `compile`.
    """

    model: dual.DualEncoder
    mesh: Mesh
    init: Callable[[jax.Array], TrainState]
    begin: Callable[[Any, Any, Any, jax.Array], TrainState]
    abstract: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    step: Any
    options: CompileConfig

    def trace(self) -> Any:
        """The traced step: its `jaxpr` tells the FLOPs. `lower` does not trace it again."""
        with jax.set_mesh(self.mesh):
            return self.step.trace(self.abstract, self.batch)

    def lower(self) -> Any:
        """The step as the compiler gets it: the same for training and for planning."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.abstract, self.batch)

    def compile(self) -> Any:
        """The executable (state, batch) -> (state, metrics)."""
        return compiled(self.lower(), self.options)


def build(cfg: Config, mesh: Mesh, steps_before: int = 0) -> Program:
    """The program of `cfg` on `mesh`; `steps_before` are those of earlier stages.

    Raises:
        UserError: the batch does not divide over the mesh, its devices lack the attention, or
            there is no such preset of the compiler.
    """
    compiler_options(cfg.compile)  # now, not after the minutes until it is compiled
    platform = mesh.devices.flat[0].platform
    if cfg.model.attention == "cudnn" and platform != "gpu":
        raise UserError(
            "config.model.attention: 'cudnn' needs NVIDIA GPUs, for training as for planning "
            f"(these devices are of the platform {platform}); set it to xla"
        )
    check_batch(cfg.batch_size, cfg.num_microbatches, num_batch_shards(mesh))
    model = dual.build(cfg.model, cfg.augment)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    if stats and cfg.num_microbatches > 1:
        raise UserError(
            "config.num_microbatches: must be 1 for a tower with batch norm: its statistics are "
            f"those of the whole batch (got {cfg.num_microbatches}); use more devices or a lower "
            "config.batch_size"
        )
    num_negatives = len(cfg.data.negatives)
    loss = losses.chosen(cfg.loss, mesh, cfg.batch_size, num_negatives)
    keep = moving(cfg.optim, params)
    decays = split(decay_mask(cfg.optim.decay, params), keep)[0]
    tx = make_optimizer(cfg.optim, split(params, keep)[0], decays)
    begin = make_begin(tx, keep)
    init = make_init(model.init, begin, cfg.optim.ema)
    abstract = abstract_state(init, mesh)
    step = make_step(
        model.embed,
        losses.build(loss, mesh, cfg.batch_size, num_negatives, cfg.mesh.num_slices),
        tx,
        make_schedule(cfg.optim, cfg.num_steps),
        cfg.optim,
        keep,
        cfg.num_microbatches,
        steps_before,
    )
    jitted = jax.jit(
        step,
        in_shardings=(jax.tree.map(lambda x: x.sharding, abstract), batch_sharding(mesh)),
        out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), None),
        donate_argnums=0,
    )
    batch = abstract_batch(cfg, mesh)
    return Program(model, mesh, init, begin, abstract, batch, jitted, cfg.compile)


def model_flops(cfg: Config) -> float:
    """FLOPs of a step over all devices without recomputation: what MFU is a share of."""
    kind = cfg.loss.kind
    if ":" not in kind:
        kind = "sigmoid" if kind.startswith("sigmoid") else "softmax"
    plain = dataclasses.replace(
        cfg,
        num_microbatches=1,
        mesh=MeshConfig(data=1),
        model=dataclasses.replace(cfg.model, remat="none", attention="kept"),
        loss=dataclasses.replace(cfg.loss, kind=kind),
    )
    one = make_mesh(plain.mesh, jax.devices()[:1])
    return count_jaxpr(build(plain, one).trace().jaxpr.jaxpr)


def abstract_batch(cfg: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch: image u8 (b, y, x, c), text (b, t), index (b, 2), group (b,).

    With hard negatives also negative (b, k, t).
    """
    b, k = cfg.batch_size, len(cfg.data.negatives)
    shapes = {
        "image": ((b, *cfg.model.image.shape()), jnp.uint8),
        "text": ((b, cfg.model.text.context), jnp.int32),
        "index": ((b, 2), jnp.uint32),
        "group": ((b,), jnp.int32),
    }
    if k:
        shapes["negative"] = ((b, k, cfg.model.text.context), jnp.int32)
    where = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=where) for k, (s, d) in shapes.items()}


def check_batch(batch_size: int, microbatches: int, shards: int) -> None:
    """Raises a UserError unless each of so many devices gets its part of every micro-batch."""
    unit = shards * microbatches
    if batch_size % unit:
        low = batch_size // unit * unit
        choices = [str(n) for n in (low, low + unit) if n > 0]
        of = f"{shards}, the devices on the axes data and fsdp"
        if microbatches > 1:
            of = f"{unit}: {of}, times num_microbatches={microbatches}"
        raise UserError(
            f"config.batch_size: must be a multiple of {of} "
            f"(got {batch_size}); the nearest are {' and '.join(choices)}"
        )


def num_params(tree: Any) -> int:
    """Elements in all arrays of a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def memory_line(executable: Any) -> str:
    """Memory of the compiled step per device, as the compiler tells."""
    memory = executable.memory_analysis()
    if memory is None:
        return "memory per device: the compiler does not tell"
    held, extra = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    extra += max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    total = (held + extra) / 2**20
    return (
        f"memory per device: {total:,.0f} MiB (state and batch {held / 2**20:,.0f}, "
        f"temporaries {extra / 2**20:,.0f})"
    )
