"""Tables of plans: memory and estimated speed of presets on TPU topologies. Needs libtpu, no TPU.

    clip_jax bench plans --models=ViT-B-16,ViT-L-14 --topologies=v5e:16x16,v6e:16x16
    clip_jax bench plans --models=ViT-B-16 --topologies=v5e:2x2,v5e:4x4 --per_device=128
    clip_jax bench plans --recipes=openai:ViT-B-32,flip:l16 --topologies=v5e:16x16

With --num_slices, so many slices of each topology, joined by the data-centre network; else as
many as the recipe says.

With a global batch: of the meshes, remat and numbers of micro-batches, fastest by shapes first, the
first that the compiler finds room for. With --per_device: all devices on the axis data, remat full,
and what a device sends; reductions are those of the gradients and of the loss. With --recipes: as
the first, for the batch of each recipe and stage, and the chip-hours of its steps; one in epochs
needs the pairs of an epoch, --config.data.epoch_size=N. --config.KEY=VALUE holds for every row.
Compiled results are kept, as those of `clip_jax plan`.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.config.chips import GIB, Topology, joined, parse_topology
from clip_jax.config.load import load
from clip_jax.config.options import Options, at_least_one
from clip_jax.config.schema import Config, MeshConfig
from clip_jax.config.stages import Stage, expand
from clip_jax.errors import DONE, UserError
from clip_jax.planner import ENVIRONMENT

if TYPE_CHECKING:  # jax comes with it, and reads the environment that main sets
    from clip_jax.planner.plan import Plan
    from clip_jax.planner.search import Found

MODELS = ("ViT-B-16", "ViT-L-14", "ViT-bigG-14", "ViT-H-14", "ViT-SO400M-14-SigLIP")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:8x8x8", "v6e:16x16")
FOUND = ("mesh.", "model.remat", "num_microbatches")  # and not taken from a config
FITS = "| model | topology | data x fsdp | remat | micro-batches | GiB a device | s a step | MFU |"
GROWTH = (
    "| model | topology | chips | pairs | GiB a device | MiB sent in a slice, reductions "
    "| MiB sent in a slice | MiB to other slices |"
)
RUNS = "| recipe | stage | topology | batch | plan | s a step | steps | chip-hours |"


def main(argv: Sequence[str]) -> int:
    """Prints a row as soon as it is known."""
    names = lambda text: tuple(text.split(","))  # noqa: E731
    parser = Options("bench plans", __doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", type=names, default=MODELS)
    parser.add_argument("--recipes", type=names, default=(), help="as for train, instead of models")
    parser.add_argument("--topologies", type=names, default=TOPOLOGIES)
    parser.add_argument(
        "--batch_size", type=at_least_one, default=32_768, help="pairs of all devices"
    )
    parser.add_argument(
        "--per_device", type=at_least_one, default=0, help="pairs of a device instead"
    )
    parser.add_argument("--num_slices", type=at_least_one, default=0, help="of each topology")
    parser.add_argument("--cache", default="", help="folder of compiled results")
    args, overrides = parser.parse_with_fields(argv)
    topologies = [parse_topology(t) for t in args.topologies]
    for topology in topologies:
        if topology.is_gpu:
            raise UserError(
                f"bench plans: --topologies: only TPU programs can be compiled here (got "
                f"{topology.name}); clip_jax plan estimates for GPUs"
            )
    for flag in overrides:
        if flag.startswith(tuple(f"--config.{name}" for name in FOUND)):
            raise UserError(f"bench plans: {flag}: is looked for here; use clip_jax plan with it")
        if flag.startswith("--config.batch_size") and not args.recipes:
            raise UserError(f"bench plans: {flag}: give --batch_size, or --per_device, instead")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    from clip_jax.planner import cache, search

    where = args.cache or cache.folder()
    joint = (f"--config.mesh.num_slices={args.num_slices}",) if args.num_slices else ()
    overrides = (*joint, *overrides)
    head = RUNS if args.recipes else GROWTH if args.per_device else FITS
    print(head, "|---" * (head.count("|") - 1) + "|", sep="\n", flush=True)

    def first_that_fits(cfg: Config, topology: Topology, name: str) -> "Found":
        say = lambda text: print(f"{name} on {topology.name}: {text}", file=sys.stderr, flush=True)  # noqa: E731
        return search.run(cfg, topology, where, say, first=True)

    for recipe in args.recipes:
        for topology in topologies:
            for part in expand(load(recipe, overrides, needs_data=False)):
                slices = joined(topology, part.cfg.mesh.num_slices)
                found = first_that_fits(part.cfg, slices, f"{recipe} {part.name}")
                print(run_row(recipe, part, found), flush=True)
    for model in () if args.recipes else args.models:
        for topology in topologies:
            topology = joined(topology, args.num_slices or 1)
            batch = args.per_device * topology.num_devices or args.batch_size
            flags = (f"--config.batch_size={batch}", "--config.model.dtype=bfloat16", *overrides)
            cfg = load(f"clip:{model}", flags, needs_data=False)
            if args.per_device:
                print(growth_row(spread(cfg, topology, where)), flush=True)
                continue
            print(row(first_that_fits(cfg, topology, model)), flush=True)
    return DONE


def spread(cfg: Config, topology: Topology, where: str) -> "Plan":
    """The plan with every device on the axis data."""
    from clip_jax.planner import plan

    model = dataclasses.replace(cfg.model, remat="full")
    mesh = MeshConfig(num_slices=topology.slices)
    return plan.make(dataclasses.replace(cfg, model=model, mesh=mesh), topology, where)


def row(found: "Found") -> str:
    """A line under FITS."""
    start = f"| {found.cfg.name} | {found.topology.name} |"
    best = found.best
    if best is None or best.estimate is None:
        return f"{start} {'not found yet' if found.untried else 'nothing fits'} | | | | | |"
    mesh, c, e = best.mesh, best.cfg, best.estimate
    return (
        f"{start} {mesh['data']} x {mesh['fsdp']} | {c.model.remat} "
        f"| {c.num_microbatches} | {best.needed / GIB:.2f} of {best.usable / GIB:.2f} "
        f"| {e.seconds:.2f} | {100 * e.mfu:.0f} % |"
    )


def run_row(recipe: str, part: Stage, found: "Found") -> str:
    """A line under RUNS."""
    from clip_jax.planner.estimate import run_cost

    start = f"| `{recipe}` | {part.name} | {found.topology.name} | {part.cfg.batch_size:,} |"
    best, steps = found.best, part.last - part.first
    if best is None or best.estimate is None:
        return f"{start} {'not found yet' if found.untried else 'nothing fits'} | | {steps:,} | |"
    c, e, mesh = best.cfg, best.estimate, best.mesh
    hours = run_cost(e, found.topology, part.examples, None)["chip_hours"]
    parts = f", {c.num_microbatches} micro-batches" if c.num_microbatches > 1 else ""
    return (
        f"{start} {mesh['data']} x {mesh['fsdp']}, remat {c.model.remat}{parts} "
        f"| {e.seconds:.3f} | {steps:,} | {hours:,.0f} |"
    )


def growth_row(found: "Plan") -> str:
    """A line under GROWTH."""
    from clip_jax.planner.counts import SLICES_AXIS

    every = {c: c.sent / 2**20 for c in found.measure.collectives}
    sent = {c: size for c, size in every.items() if c.axes != SLICES_AXIS}
    reductions = sum(v for c, v in sent.items() if c.kind in ("all-reduce", "reduce-scatter"))
    return (
        f"| {found.cfg.name} | {found.topology.name} | {found.topology.num_chips:,} "
        f"| {found.cfg.batch_size:,} | {found.needed / GIB:.2f} | {reductions:,.0f} "
        f"| {sum(sent.values()):,.0f} | {sum(every.values()) - sum(sent.values()):,.0f} |"
    )
