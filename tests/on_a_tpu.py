"""Compiles for TPUs that are not here and prints what came of it as JSON; needs libtpu.

    python tests/on_a_tpu.py [JOB ...]

A process of its own: libtpu reads the environment where it is loaded, and stays. Two jobs at a
time, since much of a compilation is done by one thread.
"""

import dataclasses
import json
import os
import re
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_jax.planner import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import gathered  # noqa: E402  (the first that imports jax)
import jax  # noqa: E402

import tiny  # noqa: E402
from clip_jax.bench import loss as bench  # noqa: E402
from clip_jax.config.chips import joined, parse_topology  # noqa: E402
from clip_jax.config.load import load  # noqa: E402
from clip_jax.config.schema import CompileConfig, MeshConfig  # noqa: E402
from clip_jax.errors import UserError  # noqa: E402
from clip_jax.planner import compile as compiler  # noqa: E402
from clip_jax.planner.estimate import _place  # noqa: E402
from clip_jax.sharding.mesh import make_mesh  # noqa: E402
from clip_jax.train import program  # noqa: E402
from clip_jax.train.compiler import compiled  # noqa: E402

TINY = tiny.config("nowhere", batch_size=64, mesh=MeshConfig(data=2, fsdp=2, tensor=1))


def devices(name: str) -> list[Any]:
    return compiler.topology_devices(parse_topology(name))


def ring(name: str, pairs: int) -> int:
    """Peak of the loss that `bench loss` weighs, e = 768, bytes."""
    mesh = bench.topology_mesh(name)
    cfg = bench.weighed("softmax_ring", 0, mesh, pairs)
    return bench.peak("softmax_ring", mesh, pairs, 768, cfg)[0]


def sharded() -> dict[str, Any]:
    """The step of tests/gathered.py: what travels, and the arguments of a device, bytes."""
    cfg = gathered.config()
    prog = program.build(cfg, make_mesh(cfg.mesh, devices("v5e:2x4")))
    executable = prog.compile()
    text = executable.as_text()
    inside, outside = gathered.travelling(text)
    arrays = jax.tree.leaves((prog.abstract.params, prog.abstract.opt_state, prog.batch))
    return {
        "inside": sorted(inside),
        "outside": sorted(outside),
        "types": sorted(gathered.types_of_kernels(text)),
        "arguments": executable.memory_analysis().argument_size_in_bytes,
        "all": sum(x.size * x.dtype.itemsize for x in arrays),
    }


def largest() -> dict[str, float]:
    """Arguments of a device for ViT-bigG-14 on a pod, and an even share of them, bytes.

    A program that hands them back is compiled in place of the step, which takes minutes: arguments
    take the room that their shapes, shardings and tiles ask for, whatever is done with them.
    """
    given = ("batch_size=32768", "model.dtype=bfloat16", "mesh.data=2", "mesh.fsdp=128")
    cfg = load("clip:ViT-bigG-14", [f"--config.{x}" for x in given], needs_data=False)
    prog = program.build(cfg, make_mesh(cfg.mesh, devices("v5e:16x16")))
    arguments = prog.abstract, prog.batch
    places = jax.tree.map(lambda x: x.sharding, arguments)
    same = jax.jit(lambda *x: x, out_shardings=places, donate_argnums=(0, 1), keep_unused=True)
    with jax.set_mesh(prog.mesh):
        memory = same.lower(*arguments).compile().memory_analysis()
    state, batch = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a)) for a in arguments)
    return {"arguments": memory.argument_size_in_bytes, "share": state / 128 + batch / 256}


def presets() -> dict[str, str]:
    """What the compiler says to options: '' if it takes them."""
    mesh = make_mesh(MeshConfig(data=1), devices("v5e:2x2")[:1])
    x = jax.ShapeDtypeStruct(
        (256, 256), "float32", sharding=jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    said = {}
    for cfg in (CompileConfig("tpu_overlap"), CompileConfig(options=("xla_tpu_enable_luck=1",))):
        try:
            compiled(jax.jit(lambda x: x @ x).lower(x), cfg)
            said[cfg.preset] = ""
        except UserError as e:
            said[cfg.preset] = str(e)
    return said


def offload() -> dict[str, Any]:
    """The measure of a step whose activations wait in the host's memory."""
    cfg = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, remat="offload"))
    return dataclasses.asdict(compiler.measure(cfg, devices("v5e:2x2")))


def places() -> dict[str, bool]:
    """Whether the devices stand where the estimates believe."""
    found = {}
    for name in ("v5e:1x1", "v5e:2x4", "v5p:2x2x2", "v4:2x2x2"):
        topology = parse_topology(name)
        ours = [_place(topology, i) for i in range(topology.num_devices)]
        theirs = [tuple(d.coords)[: len(topology.shape)] for d in devices(name)]
        found[name] = theirs == ours
    return found


def same() -> bool:
    """Whether the step is traced as for CPUs; random numbers are lowered otherwise for a TPU."""
    traced = (
        str(program.build(TINY, make_mesh(TINY.mesh, d)).trace().jaxpr)
        for d in (devices("v5e:2x2"), jax.devices())
    )
    tpu, cpu = (re.sub(r"device_kind=.*?platform=\w+", "", t) for t in traced)
    return tpu == cpu and len(tpu) > 10_000


def measure() -> dict[str, Any]:
    return dataclasses.asdict(compiler.measure(TINY, devices("v5e:2x2")))


def several() -> dict[str, Any]:
    """Two slices: where the devices stand in the mesh, the measure, and the number of leaves."""
    mesh = MeshConfig(data=-1, fsdp=2, num_slices=2)
    loss = dataclasses.replace(TINY.loss, kind="softmax_ring")
    cfg = dataclasses.replace(TINY, mesh=mesh, loss=loss, num_microbatches=2)
    two = compiler.topology_devices(joined(parse_topology("v5e:2x2"), 2))
    place = make_mesh(mesh, two)
    return {
        "slices": [[d.slice_index for d in row] for row in place.devices[:, :, 0]],
        "measure": dataclasses.asdict(compiler.measure(cfg, two)),
        "leaves": len(jax.tree.leaves(program.build(cfg, place).abstract.params)),
    }


JOBS = {
    "ring of 4,194,304": lambda: ring("v5e:16x16", 4_194_304),  # the longest first
    "sharded": sharded,
    "ring of 1,048,576": lambda: ring("v5e:16x16", 1_048_576),
    "ring of 65,536": lambda: ring("v5e:4x4", 65_536),
    "several": several,
    "offload": offload,
    "measure": measure,
    "largest": largest,
    "presets": presets,
    "places": places,
    "same": same,
}


def attempt(name: str) -> Any:
    try:
        return JOBS[name]()
    except Exception:
        return {"failed": traceback.format_exc()}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    names = sys.argv[1:] or list(JOBS)
    devices("v5e:1x1")  # two threads at once cannot load libtpu
    with ThreadPoolExecutor(2) as pool:
        print(json.dumps(dict(zip(names, pool.map(attempt, names), strict=True))))
