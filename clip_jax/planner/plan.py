"""plan(cfg, topology): does the run fit, and what would it take; as JSON and as text."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from clip_jax.config.chips import GIB, Topology
from clip_jax.config.schema import Config
from clip_jax.planner import analytic, cache
from clip_jax.planner import compile as compiler
from clip_jax.planner.compile import Measure
from clip_jax.planner.estimate import Estimate, estimate, run_cost
from clip_jax.sharding.rules import copies_line
from clip_jax.train.program import check_batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a topology.

    Attributes:
        mesh: size of each axis.
        measure: compiled, or of shapes alone on a GPU.
        least: memory that the state, saved activations and logits need at least, bytes a device.
        model_flops: of a step without recomputation.
        estimate: seconds; None where the program does not fit.
        copies: large parameters that every device holds whole, though the mesh shares others.
    """

    cfg: Config
    topology: Topology
    mesh: dict[str, int]
    measure: Measure
    least: float
    model_flops: float
    estimate: Estimate | None
    copies: tuple[str, ...] = ()

    @property
    def usable(self) -> float:
        """Memory of a device, bytes."""
        return self.measure.capacity or self.topology.device_usable

    @property
    def needed(self) -> float:
        """Memory of the program, bytes a device; of shapes alone, the least.

        The compiler's peak: its temporaries are not all alive at a time, and their sum was seen
        above the memory of a program that it placed.
        """
        m = self.measure
        if m.compiled:
            return max(m.peak, m.arguments)
        return self.usable + m.over if m.over else self.least

    @property
    def fits(self) -> bool | None:
        """None = not known: nothing was compiled, and shapes alone do not rule it out."""
        if self.measure.compiled:
            return True
        if self.measure.seconds or self.least > self.usable:
            return False
        return None


def make(
    cfg: Config, topology: Topology, where: str, say: Callable[[str], None] = lambda _: None
) -> Plan:
    """The plan; compiles for a TPU unless the result is stored.

    Args:
        cfg: of the run.
        topology: what it would run on.
        where: folder of stored results.
        say: told before something that takes a minute.

    Raises:
        UserError: the config does not fit the mesh, there is no TPU compiler, or `where` may not
            be written.
    """
    mesh = analytic.sizes(cfg, topology.num_devices)
    check_batch(cfg.batch_size, cfg.num_microbatches, mesh["data"] * mesh["fsdp"])

    def by_shapes() -> tuple[Measure, float, float]:
        return *analytic.measure(cfg, mesh), analytic.model_flops(cfg)

    stored = None
    if not topology.is_gpu:
        name = cache.key(cfg, topology)
        stored = cache.read(where, name)
        if stored is None:
            cache.prepare(where)
            devices = compiler.topology_devices(topology)
            say(f"compiling for {topology.name}: some minutes for a large model")
            stored = compiler.measure(cfg, devices, by_shapes)  # its traces are kept
            cache.write(where, name, cfg, topology, stored)
    shapes, least, flops = by_shapes()
    measure = stored or shapes
    known = measure.compiled or (topology.is_gpu and least <= topology.device_usable)
    seconds = estimate(measure, topology, mesh, cfg.batch_size, flops) if known else None
    copies = tuple(analytic.whole(cfg, mesh))
    return Plan(cfg, topology, mesh, measure, least, flops, seconds, copies)


def advice(plan: Plan) -> str:
    """The options that save memory, those not yet used first."""
    cfg, m = plan.cfg, plan.measure
    fsdp, shards = plan.mesh["fsdp"], plan.mesh["data"] * plan.mesh["fsdp"]
    most = shards // cfg.mesh.num_slices  # fsdp stays inside a slice
    wider = next((n for n in range(fsdp + 1, most + 1) if most % n == 0), 0)
    share = [f"--config.mesh.data={shards // wider} --config.mesh.fsdp={wider}"] if wider else []
    options = share if m.parameters + m.optimizer > plan.usable / 4 else []
    settled = analytic.settled(cfg, plan.mesh)
    if analytic.whole_logits(settled, plan.mesh) > plan.usable / 4:
        options = [*options, f"--config.loss.kind={settled.loss.kind}_ring"]
    if cfg.model.dtype == "float32":
        options = [*options, "--config.model.dtype=bfloat16"]
    resnet = cfg.model.image.kind == "resnet"  # sees its whole batch at once
    if cfg.model.remat != "full":
        options = [*options, "--config.model.remat=full"]
    parts = 2 * cfg.num_microbatches
    if cfg.batch_size % (shards * parts) == 0 and not resnet:
        options = [*options, f"--config.num_microbatches={parts}"]
    options = options or share
    if resnet:
        options = [*options, "a lower --config.batch_size", "a larger topology"]
    elif options and not plan.topology.is_gpu:
        options = [*options, "--search"]
    options = options or ["a larger topology"]
    return f"try {' or '.join(options[:3])}"


def refusal(plan: Plan) -> str:
    """The line that says why a plan does not fit."""
    if plan.measure.over or plan.needed > plan.usable:
        over = (plan.measure.over or plan.needed - plan.usable) / GIB
        text = f"{over:.2f} GiB a device more than the {plan.usable / GIB:.2f} GiB that are usable"
    else:
        text = f"more than the {plan.usable / GIB:.2f} GiB a device that are usable"
    return f"plan: {plan.cfg.name} does not fit on {plan.topology.name}: {text}; {advice(plan)}"


def to_json(plan: Plan, samples: float, price: float | None) -> dict[str, Any]:
    """Everything that the text tells, in bytes, FLOPs, seconds; null = not known."""
    m, cfg, e = plan.measure, plan.cfg, plan.estimate
    chip = plan.topology.chip
    memory = {
        "parameters": m.parameters,
        "optimizer": m.optimizer,
        "batch": m.batch,
        "temporaries": m.temporaries if m.compiled else None,
        "peak": m.peak if m.compiled else None,
        "needed": plan.needed if m.compiled or m.over else None,
        "at_least": plan.least,
        "usable": plan.usable,
    }
    sent = [
        {**dataclasses.asdict(c), "estimated_seconds": e.by_collective[i] if e else None}
        for i, c in enumerate(m.collectives)
    ]
    estimated = dataclasses.asdict(e) if e else None
    if estimated:
        estimated.pop("by_collective")
        estimated["run"] = run_cost(e, plan.topology, samples, price) if e else None
    return {
        "name": cfg.name,
        "topology": plan.topology.slice_name,
        "slices": plan.topology.slices,
        "chips": plan.topology.num_chips,
        "mesh": plan.mesh,
        "settings": settings(plan),
        "how": how(plan),
        "fits": plan.fits,
        "bytes_per_device": memory,
        "whole_on_every_device": list(plan.copies),
        "flops_per_step": {"model": plan.model_flops, "with_recomputation": m.flops},
        "collectives_per_step": sent,
        "host_transfers_per_step": {"count": m.host_transfers, "bytes": m.host_bytes}
        if m.compiled
        else None,
        "estimate": estimated,
        "compile_seconds": m.seconds or None,
        "constants": dataclasses.asdict(chip),
        "versions": cache.versions(),
    }


def settings(plan: Plan) -> dict[str, Any]:
    """The fields that decide memory and speed."""
    cfg = analytic.settled(plan.cfg, plan.mesh)
    return {
        "batch_size": cfg.batch_size,
        "num_microbatches": cfg.num_microbatches,
        "remat": cfg.model.remat,
        "dtype": cfg.model.dtype,
        "loss": cfg.loss.kind,
    }


def how(plan: Plan) -> str:
    """Where the numbers are from."""
    if plan.topology.is_gpu:
        return "from shapes alone: nothing was compiled, so temporaries are not known"
    return "from the program that training runs, compiled for this topology"


def text(plan: Plan, samples: float, price: float | None) -> str:
    """The plan for a reader."""
    m, e, s = plan.measure, plan.estimate, settings(plan)
    chips = plan.topology.num_chips
    mesh = " x ".join(f"{k} {v}" for k, v in plan.mesh.items())
    plural = "s" if s["num_microbatches"] > 1 else ""
    lines = [
        f"{plan.cfg.name}: {s['batch_size']:,} pairs a step on {plan.topology.name} "
        f"({chips:,} {'GPU' if plan.topology.is_gpu else 'chip'}{'s' if chips > 1 else ''})",
        f"  mesh {mesh}{_unused(plan)}; {s['dtype']}, remat {s['remat']}, {s['num_microbatches']} "
        f"micro-batch{'es' if plural else ''}, loss {s['loss']}",
        f"  {how(plan)}",
        "",
        f"fits: {_verdict(plan)}",
        "memory per device, GiB",
        *_table(
            [
                ("parameters", _gib(m.parameters)),
                ("optimizer", _gib(m.optimizer)),
                ("batch", _gib(m.batch)),
                *(
                    [
                        ("all three, with padding", _gib(m.arguments)),
                        ("temporaries, not all at a time", _gib(m.temporaries)),
                        ("peak", _gib(plan.needed)),
                    ]
                    if m.compiled
                    else [("at least, with gradients and saved activations", _gib(plan.least))]
                ),
                ("usable", _gib(plan.usable)),
            ]
        ),
        *([copies_line(plan.copies)] if plan.copies else []),
        "FLOPs per step, all devices",
        *_table(
            [
                ("model", f"{plan.model_flops:.4g}"),
                ("with recomputation", f"{m.flops:.4g} ({m.flops / plan.model_flops:.2f} x)"),
            ]
        ),
    ]
    if m.compiled or plan.topology.is_gpu:
        lines += _sent(plan)
    if m.compiled:
        moved = f"{m.host_transfers:,.0f}, {m.host_bytes / 2**20:,.1f} MiB"
        lines.append(f"host transfers per step: {moved if m.host_transfers else 'none'}")
    if e:
        lines += _estimates(plan, e, samples, price)
    return "\n".join(lines)


def _unused(plan: Plan) -> str:
    used, devices = math.prod(plan.mesh.values()), plan.topology.num_devices
    return f" = {used} of {devices} devices" if used < devices else ""


def _verdict(plan: Plan) -> str:
    if plan.fits is False and plan.needed <= plan.usable:  # the compiler gave up without a number
        return f"no, more than the {plan.usable / GIB:.2f} GiB a device"
    needed = f"{plan.needed / GIB:.2f} of {plan.usable / GIB:.2f} GiB a device"
    if plan.fits is None:
        return f"not known; at least {needed} are needed"
    return f"{'yes' if plan.fits else 'no'}, {needed}"


def _sent(plan: Plan) -> list[str]:
    m, e = plan.measure, plan.estimate
    if not m.collectives:
        return ["collectives per step: none"]
    rows = [("kind", "axes", "devices", "times", "MiB sent", "ms, estimated")]
    for i, c in enumerate(m.collectives):
        ms = f"{1e3 * e.by_collective[i]:,.2f}" if e else ""
        rows.append((c.kind, c.axes, f"{c.group}", f"{c.count:,.0f}", f"{c.sent / 2**20:,.1f}", ms))
    widths = [max(len(r[k]) for r in rows) for k in range(6)]
    lines = []
    for r in rows:
        left = [r[k].ljust(widths[k]) for k in (0, 1)]
        lines.append("  " + "  ".join(left + [r[k].rjust(widths[k]) for k in range(2, 6)]))
    return ["collectives per step, one device", *lines]


def _estimates(plan: Plan, e: Estimate, samples: float, price: float | None) -> list[str]:
    run = run_cost(e, plan.topology, samples, price)
    cycles = f"{e.cycles:.4f} s" if e.cycles else "not given"
    rows = [
        ("compute, at the bfloat16 peak", f"{e.compute:.4f} s"),
        ("memory traffic, at full bandwidth", f"{e.memory:.4f} s" if e.memory else "not known"),
        ("XLA's cycles, without collectives", cycles),
        ("interconnect", f"{e.interconnect:.4f} s"),
        *([("network between slices", f"{e.network:.4f} s")] if plan.topology.slices > 1 else []),
        ("step, nothing overlapping", f"{e.seconds:.4f} s"),
        ("step, all of it overlapping", f"{e.best:.4f} s"),
        ("pairs per second", f"{e.examples:,.0f}"),
        ("MFU", f"{100 * e.mfu:.1f} %"),
        (f"{samples:,.0f} pairs", f"{run['days']:,.2f} days, {run['chip_hours']:,.0f} chip-hours"),
    ]
    if price is not None:
        rows.append((f"at {price:g} per chip-hour", f"{run['cost']:,.0f}"))
    head = "estimates, not measurements (the last lines are from 'nothing overlapping')"
    if plan.topology.is_gpu:
        head = "estimates, and bounds: no kernel reaches the peak, memory traffic is not known"
    return [
        head,
        *_table(rows),
        f"constants of {plan.topology.chip.name}: {plan.topology.chip.source}",
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.3f}"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    wide = max(len(name) for name, _ in rows)
    return [f"  {name:{wide}}  {value}" for name, value in rows]
