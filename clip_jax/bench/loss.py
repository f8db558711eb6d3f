"""Losses: peak memory in compiled TPU programs, and time on the devices at hand.

    clip_jax bench loss                          time: 8 devices (CPU: made virtual), by turns
    clip_jax bench loss --topology=v5e:16x16     memory of loss + gradient a device; needs libtpu

Letters: b global batch, e embedding. Embeddings enter in bfloat16 for memory (as towers make them)
and in float32 for time. `two blocks` is what OpenCLIP's local loss computes: both sides gathered,
one block of logits for each direction.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import losses
from clip_jax.config.chips import GIB, parse_topology
from clip_jax.config.options import Options, at_least_one
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.errors import DONE, UserError
from clip_jax.planner import ENVIRONMENT
from clip_jax.planner import compile as compiler
from clip_jax.sharding.mesh import BATCH_AXES, batch_sharding, make_mesh

KINDS = tuple(losses.LOSSES)
BATCHES = (32_768, 131_072, 1_048_576, 4_194_304)
NUM_DEVICES = 8


def two_blocks(mesh: Mesh) -> Callable[..., Any]:
    """The symmetric softmax loss as OpenCLIP's `local_loss=True, gather_with_grad=True`."""

    def local(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
        all_x, all_y = (lax.all_gather(z, BATCH_AXES, tiled=True) for z in (x, y))
        at = lax.axis_index(BATCH_AXES) * x.shape[0] + jnp.arange(x.shape[0])

        def one(mine: jax.Array, others: jax.Array) -> jax.Array:
            s = scale * jnp.einsum("be,je->bj", mine, others, precision="highest")
            s = s.astype(jnp.float32)
            right = jnp.take_along_axis(s, at[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(s, axis=1) - right)

        return lax.pmean((one(x, all_y) + one(y, all_x)) / 2, BATCH_AXES)

    spread = P(BATCH_AXES)
    spmd = jax.shard_map(local, mesh=mesh, in_specs=(spread, spread, P()), out_specs=P())
    return lambda z, logit, group: (spmd(z["image"], z["text"], jnp.exp(logit["scale"])), {})


def gradient(kind: str, mesh: Mesh, b: int, cfg: LossConfig) -> Any:
    """Jitted (z, logit, group) -> ((value, metrics), gradients), all where they belong."""
    if kind == "two blocks":
        loss = two_blocks(mesh)
    else:
        loss = losses.build(cfg, mesh, b)
    f = jax.value_and_grad(lambda z, logit, group: loss(z, logit, group), (0, 1), has_aux=True)
    spread, whole = batch_sharding(mesh), jax.NamedSharding(mesh, P())
    return jax.jit(f, out_shardings=(whole, (spread, whole)))


def shapes(mesh: Mesh, b: int, e: int, dtype: Any) -> tuple[Any, ...]:
    """Abstract arguments of `gradient`."""
    spread, whole = batch_sharding(mesh), jax.NamedSharding(mesh, P())
    z = jax.ShapeDtypeStruct((b, e), dtype, sharding=spread)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    group = jax.ShapeDtypeStruct((b,), jnp.int32, sharding=spread)
    return {"image": z, "text": z}, {"scale": number, "bias": number}, group


def weighed(kind: str, chunk: int, mesh: Mesh, b: int) -> LossConfig:
    """The loss whose memory is shown."""
    return losses.chosen(LossConfig(kind, chunk, wire_dtype="bfloat16"), mesh, b)


def peak(kind: str, mesh: Mesh, b: int, e: int, cfg: LossConfig) -> tuple[int, int]:
    """(peak, temporaries) of one device in the compiled program, bytes.

    Raises:
        JaxRuntimeError: RESOURCE_EXHAUSTED, the compiler finds no room.
    """
    with jax.set_mesh(mesh):
        lowered = gradient(kind, mesh, b, cfg).lower(*shapes(mesh, b, e, jnp.bfloat16))
        memory = lowered.compile().memory_analysis()
    return memory.peak_memory_in_bytes, memory.temp_size_in_bytes


def peak_text(kind: str, mesh: Mesh, b: int, e: int, cfg: LossConfig) -> str:
    """What `peak` gives, or by how much it does not fit."""
    try:
        most, temporaries = peak(kind, mesh, b, e, cfg)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        capacity, over = compiler.exhausted(str(error))
        needed = f": {(capacity + over) / GIB:,.2f} of {capacity / GIB:.2f} GiB" if over else ""
        return f"does not fit{needed}"
    return f"{most / 2**20:,.1f} MiB (temporaries {temporaries / 2**20:,.1f})"


def topology_mesh(name: str) -> Mesh:
    """All chips of a TPU topology on the axis data.

    Raises:
        UserError: no such topology, GPUs, or no compiler for TPUs.
    """
    topology = parse_topology(name)
    if topology.is_gpu:
        raise UserError(
            f"bench loss: --topology: only TPU programs can be compiled here (got "
            f"{topology.name}); name one like v5e:16x16"
        )
    return make_mesh(MeshConfig(), compiler.topology_devices(topology))


def check(batch_sizes: Sequence[int], mesh: Mesh) -> None:
    """Raises UserError unless every device gets an equal part of each batch."""
    if odd := [b for b in batch_sizes if b % mesh.size]:
        raise UserError(
            f"bench loss: --batch_sizes: must be multiples of {mesh.size}, the devices "
            f"(got {odd[0]}); the next is {odd[0] + -odd[0] % mesh.size}"
        )


def weigh(args: argparse.Namespace) -> None:
    """Prints the table of memory."""
    mesh = topology_mesh(args.topology)
    sizes = args.batch_sizes or BATCHES
    check(sizes, mesh)
    print(f"{args.topology}: {mesh.size} devices, e = {args.embed_dim}, bfloat16 embeddings")
    for b in sizes:
        for kind in args.kinds or KINDS:
            cfg = weighed(kind, args.chunk, mesh, b)
            start = time.perf_counter()
            text = peak_text(kind, mesh, b, args.embed_dim, cfg)
            seconds = time.perf_counter() - start
            chunk = f"chunk {cfg.chunk}" if "_" in kind else ""
            print(f"{b:>10,}  {kind:16} {chunk:11} {text}; compiled in {seconds:.0f} s", flush=True)


def clock(args: argparse.Namespace) -> None:
    """Prints the table of times; all kinds by turns in every round."""
    mesh = make_mesh(MeshConfig())
    b, e = (args.batch_sizes or (8_192,))[0], args.embed_dim
    check([b], mesh)
    rng = np.random.default_rng(0)
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    spread = batch_sharding(mesh)
    z = {k: jax.device_put(unit(rng.normal(size=(b, e))), spread) for k in ("image", "text")}
    logit = {"scale": jnp.float32(np.log(14.3)), "bias": jnp.float32(-10.0)}
    group = jax.device_put(np.arange(b, dtype=np.int32), spread)
    print(f"{mesh.size} devices ({jax.default_backend()}), b = {b:,}, e = {e}, float32")
    runs: dict[str, Callable[[], Any]] = {}
    with jax.set_mesh(mesh):
        for kind in (*(args.kinds or KINDS), "two blocks"):
            f = gradient(kind, mesh, b, LossConfig(kind, args.chunk))
            runs[kind] = functools.partial(f, z, logit, group)
            jax.block_until_ready(runs[kind]())
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(args.rounds):
            for kind, run in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                seconds[kind].append(time.perf_counter() - start)
    base = statistics.median(seconds[next(iter(seconds))])
    two = statistics.median(seconds["two blocks"])
    first = next(iter(runs))
    for kind, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{kind:16} {middle:7.3f} s ({min(values):.3f} to {max(values):.3f}); "
            f"{middle / base:.2f} of {first}, {middle / two:.2f} of two blocks"
        )


def main(argv: Sequence[str]) -> int:
    """Runs `clip_jax bench loss`. Returns the exit status."""
    parser = Options("bench loss", (__doc__ or "").split("\n")[0])
    numbers = lambda text: tuple(map(at_least_one, text.split(",")))  # noqa: E731
    parser.add_argument("--topology", default="", help="compile for these TPUs: v5e:16x16")
    parser.add_argument("--batch_sizes", type=numbers, default=(), help="global, with commas")
    parser.add_argument("--kinds", type=lambda t: tuple(t.split(",")), default=(), help="losses")
    parser.add_argument(
        "--embed_dim", type=at_least_one, default=0, help="e; 768 (memory), 512 (time)"
    )
    parser.add_argument("--chunk", type=int, default=0, help="images at a time; 0 = chosen")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="timed rounds")
    args = parser.parse_args(argv)
    args.embed_dim = args.embed_dim or (768 if args.topology else 512)
    if args.topology:  # read by the compiler where it is loaded; jax was imported before
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    if args.topology or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_platforms", "cpu")
        if not args.topology:
            jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    (weigh if args.topology else clock)(args)
    return DONE
