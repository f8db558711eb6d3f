"""What shapes alone tell of a step: FLOPs, state, saved activations, traffic between devices.

Nothing is compiled. It is the whole plan of a GPU, and what the search prunes by. The memory is a
lower bound: what the compiler needs to work on a layer is left out.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from clip_jax import losses
from clip_jax.config.schema import Config, MeshConfig, ModelConfig
from clip_jax.metrics.flops import count_jaxpr, inner_jaxprs
from clip_jax.models.resnet import ModifiedResNet
from clip_jax.models.vit import grid
from clip_jax.planner.compile import Measure, device_bytes
from clip_jax.planner.counts import SLICES_AXIS, Collective, within
from clip_jax.sharding.mesh import AXES, batch_sharding, check_slices, make_mesh, mesh_shape
from clip_jax.sharding.rules import large_copies, shardings
from clip_jax.train import groups, program

ONE = MeshConfig(data=1, fsdp=1, tensor=1)


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a step does on any mesh; sums over all devices.

    Attributes:
        flops: of matrix products and convolutions.
        saved: bytes of the activations that loops over layers, or a ResNet's stages, keep on the
            device for the backward pass, of one micro-batch.
        params, opt_state, batch: shapes; a moving average counts to the optimizer.
        moving: of the parameters that get a gradient.
    """

    flops: float
    saved: float
    params: Any
    opt_state: Any
    batch: Any
    moving: Any


model_flops = functools.lru_cache(maxsize=32)(program.model_flops)


@functools.lru_cache(maxsize=32)
def traced(cfg: Config) -> Traced:
    """Traces the step of `cfg`, whose loss kind is no longer auto, for one device."""
    if cfg.model.attention == "cudnn":  # it also computes scores again, but only GPUs trace it
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, attention="xla"))
    prog = program.build(dataclasses.replace(cfg, mesh=ONE), make_mesh(ONE, jax.devices()[:1]))
    jaxpr = prog.trace().jaxpr.jaxpr
    state = prog.abstract
    stacked = frozenset(x.shape for x in jax.tree.leaves(state.params))
    pairs = cfg.batch_size // cfg.num_microbatches
    moving = groups.split(state.params, groups.moving(cfg.optim, state.params))[0]
    saved = _saved(jaxpr, pairs, stacked)
    if cfg.model.image.kind == "resnet" and jax.tree.leaves(moving.get("image")):
        saved += pairs * _feature_maps(cfg.model)
    return Traced(
        count_jaxpr(jaxpr),
        0.0 if cfg.model.remat == "offload" else saved,
        (state.params, state.stats),
        (state.opt_state, state.ema),
        prog.batch,
        moving,
    )


def _saved(jaxpr: Any, pairs: int, stacked: frozenset[tuple[int, ...]]) -> float:
    """Bytes that scans hand out per iteration (l, b, ...): activations for the backward pass.

    Args:
        jaxpr: of a step.
        pairs: of a micro-batch.
        stacked: shapes of parameters, which gradients have too; they are no activations.
    """
    total = 0.0
    for e in jaxpr.eqns:
        if e.primitive.name == "shard_map":  # the streamed losses keep nothing per block
            continue
        if e.primitive.name == "scan":
            for v in e.outvars[e.params["num_carry"] :]:
                shape = v.aval.shape
                if len(shape) > 1 and shape[1] % pairs == 0 and shape not in stacked:
                    total += v.aval.size * v.aval.dtype.itemsize
        total += sum(_saved(inner, pairs, stacked) for inner in inner_jaxprs(e.params))
    return total


def _feature_maps(model: ModelConfig) -> float:
    """Bytes that a ResNet keeps of one image for the backward pass.

    Without remat no less than `dots` keeps: convolutions are not computed again.
    """
    cfg, remat = model.image, "dots" if model.remat == "none" else model.remat
    tower = ModifiedResNet(cfg, model.embed_dim, jnp.dtype(model.dtype), remat)
    images = jax.ShapeDtypeStruct((2, *cfg.shape()), jnp.float32)  # no kernel is 2 wide
    key = jax.eval_shape(lambda: jax.random.key(0))

    def backward(variables: Any, images: Any, key: Any) -> Any:
        embed = lambda v: tower.apply(v, images, key, mutable=["stats"])  # noqa: E731
        return jax.vjp(embed, variables)[1]

    kept = jax.eval_shape(backward, jax.eval_shape(tower.init, key, images), images, key)
    maps = [x for x in jax.tree.leaves(kept) if x.ndim == 4 and x.shape[0] == 2]
    return sum(x.size * x.dtype.itemsize for x in maps) / 2


def sizes(cfg: Config, num_devices: int) -> dict[str, int]:
    """Mesh axes of `cfg` on so many devices. Raises UserError if they do not fit."""
    found = mesh_shape(cfg.mesh, num_devices)
    check_slices(cfg.mesh, found, num_devices)
    return dict(zip(AXES, found, strict=True))


def settled(cfg: Config, mesh: dict[str, int]) -> Config:
    """`cfg` with the loss that it gets on this mesh."""
    if ":" in cfg.loss.kind:
        return cfg
    where: Any = _abstract(mesh)
    loss = losses.chosen(cfg.loss, where, cfg.batch_size, len(cfg.data.negatives))
    return dataclasses.replace(cfg, loss=loss)


def whole(cfg: Config, mesh: dict[str, int]) -> list[str]:
    """Large parameters that every device would hold, though the mesh has axes that share them."""
    params, _ = traced(dataclasses.replace(settled(cfg, mesh), mesh=ONE)).params
    where: Any = _abstract(mesh)
    return large_copies(params, where)


def measure(cfg: Config, mesh: dict[str, int]) -> tuple[Measure, float]:
    """What a device holds and sends, and the least memory that it needs, in bytes.

    Raises:
        UserError: the batch does not divide over the mesh.
    """
    shards = mesh["data"] * mesh["fsdp"]
    program.check_batch(cfg.batch_size, cfg.num_microbatches, shards)
    cfg = settled(cfg, mesh)
    found = traced(dataclasses.replace(cfg, mesh=ONE))
    where: Any = _abstract(mesh)
    params, moving = _spread(found.params, where), _spread(found.moving, where)
    batch = jax.tree.map(lambda x: _with(x, batch_sharding(where)), found.batch)
    state = Measure(
        parameters=device_bytes(params),
        optimizer=device_bytes(_spread(found.opt_state, where)),
        batch=device_bytes(batch),
        flops=found.flops,
    )
    logits = whole_logits(cfg, mesh)
    saved = found.saved / shards / mesh["tensor"]  # some of it is whole on each of them
    live = saved + logits if cfg.num_microbatches == 1 else max(saved, logits)
    # Gradients take the place of what is saved: never less than the larger of the two.
    least = state.parameters + state.optimizer + state.batch + max(live, device_bytes(moving))
    sent = _collectives(cfg, mesh, params, moving)
    return dataclasses.replace(state, collectives=sent), least


def whole_logits(cfg: Config, mesh: dict[str, int]) -> float:
    """Bytes of a device for one block of logits; 0 for losses that hold slices, and own ones."""
    if cfg.loss.kind.endswith(("_ring", "_chunked")) or ":" in cfg.loss.kind:
        return 0.0
    where: Any = _abstract(mesh)
    return float(losses.block_bytes(where, cfg.batch_size, len(cfg.data.negatives)))


def _abstract(mesh: dict[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(mesh.values()), tuple(mesh))


def _spread(tree: Any, mesh: Any) -> Any:
    return jax.tree.map(_with, tree, shardings(tree, mesh))


def _with(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What traffic depends on; sizes of axes inside a slice.

    Attributes:
        size: bytes of a number of the towers as it travels.
        passes: walks through all layers in a step: forward, backward, and with micro-batches also
            forward again, for each.
    """

    cfg: Config
    slices: int
    data: int
    fsdp: int
    tensor: int
    size: int
    passes: int

    @property
    def layers(self) -> int:
        """Of both towers."""
        return self.cfg.model.image.layers + self.cfg.model.text.layers

    @property
    def shards(self) -> int:
        """Devices of a slice that share the batch."""
        return self.data * self.fsdp


def _collectives(
    cfg: Config, mesh: dict[str, int], params: Any, moving: Any
) -> tuple[Collective, ...]:
    """What a device sends, as rings would; to other slices goes what each has shared or summed."""
    inside, parts = within(mesh, cfg.mesh.num_slices), cfg.num_microbatches
    s = _Setting(
        cfg,
        cfg.mesh.num_slices,
        inside["data"],
        inside["fsdp"],
        inside["tensor"],
        2 if cfg.model.dtype == "bfloat16" else 4,
        2 if parts == 1 else 3 * parts,
    )
    found = [*_weights(s, params, moving), *_gradients(s, moving), *_states_sent(s), *_texts(s)]
    return tuple(c for c in found if c.group > 1)


def _weights(s: _Setting, params: Any, moving: Any) -> list[Collective]:
    """Over fsdp: kernels gathered in every pass, gradients scattered in every micro-batch."""
    n, parts = s.fsdp, s.cfg.num_microbatches
    gathered = s.passes * _shared(params) * (n - 1.0) * s.size
    scattered = parts * _shared(moving) * (n - 1.0) * s.size
    return [
        Collective("all-gather", "fsdp", s.passes * s.layers, gathered, n),
        Collective("reduce-scatter", "fsdp", parts * s.layers, scattered, n),
    ]


def _gradients(s: _Setting, moving: Any) -> list[Collective]:
    """Over data once a step: scattered and gathered; with micro-batches as float32 sums."""
    size = s.size if s.cfg.num_microbatches == 1 else 4
    gradient = device_bytes(moving) / 4 * size  # moving is float32
    return [
        _all_reduce("data", s.layers, gradient, s.data),
        _all_reduce(SLICES_AXIS, s.layers, gradient / s.data, s.slices),
    ]


def _states_sent(s: _Setting) -> list[Collective]:
    """Over tensor: states after attention and after the MLP, and so their gradients."""
    pairs = s.cfg.batch_size // (s.shards * s.slices)
    passes = s.passes / s.cfg.num_microbatches  # of one pair
    states = pairs * _states(s.cfg) * passes * 2.0
    return [_all_reduce("tensor", 2 * s.passes * s.layers, states * s.size, s.tensor)]


def _texts(s: _Setting) -> list[Collective]:
    """Over data and fsdp: embedded texts to all images, and their gradients home."""
    cfg, n, slices = s.cfg, s.shards, s.slices
    axes = "+".join(a for a, size in (("data", s.data), ("fsdp", s.fsdp)) if size > 1)
    wire = 2 if cfg.loss.wire_dtype == "bfloat16" else 4
    texts = cfg.batch_size * (1 + len(cfg.data.negatives)) // (n * slices)
    block = float(texts * cfg.model.embed_dim)  # elements
    streamed = cfg.loss.kind.endswith(("_ring", "_chunked"))
    times = 2 if streamed else 1  # again in the backward pass
    there, back = times * wire * block, (4 if streamed else wire) * block  # sums are float32
    if cfg.loss.kind.endswith("_ring"):
        around = n * slices * (there + back) if n > 1 else 0.0
        across = (slices - 1) * there + slices * back  # texts are not sent home
        return [
            Collective("collective-permute", axes, 3 * n * slices, around, min(n, 2)),
            Collective("collective-permute", SLICES_AXIS, 3 * slices, across, min(slices, 2)),
        ]
    found = []
    for name, first, others in ((SLICES_AXIS, 1, slices), (axes, slices, n)):
        sent = first * (others - 1)
        found.append(Collective("all-gather", name, times, there * sent, others))
        found.append(Collective("reduce-scatter", name, 1, back * sent, others))
    return found


def _all_reduce(axes: str, count: float, size: float, n: int) -> Collective:
    """Of `size` bytes over n devices: each part goes round the ring twice."""
    return Collective("all-reduce", axes, count, 2.0 * size * (n - 1) / n, n)


def _shared(tree: Any) -> int:
    """Elements of a device, of those arrays that fsdp shares."""
    leaves = [x for x in jax.tree.leaves(tree) if any("fsdp" in _names(s) for s in _dims(x))]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def _states(cfg: Config) -> int:
    """Elements of one pair's token states, over all layers of both towers."""
    image, text = cfg.model.image, cfg.model.text
    found = text.layers * text.context * text.width
    if image.kind == "vit":
        tokens = math.prod(grid(image)) + image.class_token + image.registers
        found += image.layers * tokens * image.width
    return found


def _dims(x: Any) -> tuple[Any, ...]:
    return tuple(x.sharding.spec)


def _names(dim: Any) -> tuple[str, ...]:
    return dim if isinstance(dim, tuple) else (dim,) if dim else ()
