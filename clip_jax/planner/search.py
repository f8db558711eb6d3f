"""Which mesh, remat and micro-batches fit and run fastest: shapes first, then the compiler.

Candidates are tried in the order of their estimate from shapes. A candidate falls without being
compiled when shapes alone need more memory than there is, when one that needs less did not fit, or
when what compiling its like has shown says that it is too large, or behind the best so far. At most
COMPILES new programs are compiled a call; stored results cost nothing, so a second call goes on.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.config.chips import GIB, Topology
from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.planner import analytic, cache, plan
from clip_jax.planner.estimate import Estimate, estimate
from clip_jax.train.program import check_batch

SEARCHED_REMAT = ("none", "dots", "full")  # not offload: estimates leave its transfers out
COMPILES = 5  # a quarter of an hour for a large model on two cores
TOO_LARGE = 1.05  # of the memory, for a need that is guessed from another candidate's
SMALLEST = 8  # pairs of a device in a micro-batch; below, the matrix units wait
MOST_PARTS = 32


@dataclasses.dataclass(frozen=True)
class Guess:
    """A candidate, seen through shapes alone."""

    cfg: Config
    mesh: dict[str, int]
    least: float
    estimate: Estimate

    @property
    def name(self) -> str:
        """Its options."""
        c = self.cfg
        return (
            f"mesh {self.mesh['data']} x {self.mesh['fsdp']} x {self.mesh['tensor']}, "
            f"remat {c.model.remat}, {c.num_microbatches} micro-batch"
            f"{'es' if c.num_microbatches > 1 else ''}"
        )

    @property
    def rows(self) -> float:
        """Pairs of a device in a micro-batch."""
        shards = self.mesh["data"] * self.mesh["fsdp"]
        return self.cfg.batch_size / (shards * self.cfg.num_microbatches)

    @property
    def kind(self) -> tuple[str, bool]:
        """Those that compile alike."""
        return self.cfg.model.remat, self.cfg.num_microbatches > 1


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ends with: the compiled plans that fit, fastest first; why the others fell."""

    cfg: Config
    topology: Topology
    plans: list[plan.Plan]
    fallen: list[tuple[str, str]]
    untried: list[str]

    @property
    def best(self) -> plan.Plan | None:
        """The fastest of those that were compiled and fit."""
        return self.plans[0] if self.plans else None


def candidates(cfg: Config, num_devices: int) -> Iterator[Config]:
    """Every mesh (data x fsdp, tensor as it is), remat and number of micro-batches."""
    tensor = max(1, cfg.mesh.tensor)
    if num_devices % tensor:
        raise UserError(f"config.mesh.tensor: must divide the {num_devices} devices (got {tensor})")
    shards = num_devices // tensor
    one = cfg.model.image.kind == "resnet"  # batch norm sees the whole batch
    parts = [1] if one else [2**k for k in range(MOST_PARTS.bit_length())]
    whole = [n for n in range(1, shards + 1) if shards % n == 0]
    for fsdp in (n for n in whole if shards // n % cfg.mesh.num_slices == 0):
        mesh = dataclasses.replace(cfg.mesh, data=shards // fsdp, fsdp=fsdp, tensor=tensor)
        for remat in SEARCHED_REMAT:
            for a in parts:
                small = cfg.batch_size < shards * a * SMALLEST and a > 1
                if small or cfg.batch_size % (shards * a):
                    continue
                yield dataclasses.replace(
                    cfg,
                    mesh=mesh,
                    num_microbatches=a,
                    model=dataclasses.replace(cfg.model, remat=remat),
                )


def guess(cfg: Config, topology: Topology, model_flops: float) -> Guess:
    """What shapes tell of a candidate."""
    mesh = analytic.sizes(cfg, topology.num_devices)
    measure, least = analytic.measure(cfg, mesh)
    return Guess(cfg, mesh, least, estimate(measure, topology, mesh, cfg.batch_size, model_flops))


def run(
    cfg: Config, topology: Topology, where: str, say: Callable[[str], None], *, first: bool = False
) -> Found:
    """Searches; the arguments are those of plan.make and choose.

    Raises:
        UserError: the batch does not divide over the devices, or nothing can be compiled for them.
    """
    if topology.is_gpu:
        raise UserError(
            f"--search: needs a TPU topology, whose programs can be compiled here "
            f"(got {topology.name}); plan single configs for GPUs"
        )
    every = list(candidates(cfg, topology.num_devices))
    if not every:
        shards = topology.num_devices // max(1, cfg.mesh.tensor)
        check_batch(cfg.batch_size, 1, shards)
        raise UserError(
            f"config.mesh.num_slices: must divide the {shards} devices that config.mesh.tensor="
            f"{cfg.mesh.tensor} leaves (got {cfg.mesh.num_slices}); lower config.mesh.tensor"
        )
    flops = analytic.model_flops(cfg)
    guesses = [guess(c, topology, flops) for c in every]

    def make(g: Guess) -> tuple[plan.Plan, bool]:
        stored = cache.read(where, cache.key(g.cfg, topology)) is not None
        return plan.make(g.cfg, topology, where), not stored

    return choose(cfg, topology, guesses, make, say, first=first)


def choose(
    cfg: Config,
    topology: Topology,
    guesses: list[Guess],
    make: Callable[[Guess], tuple[plan.Plan, bool]],
    say: Callable[[str], None] = lambda _: None,
    *,
    first: bool = False,
) -> Found:
    """The search itself.

    Args:
        cfg: what was asked for.
        topology: what it would run on.
        guesses: all candidates.
        make: gives the plan, and whether it had to be compiled for that.
        say: told what is tried.
        first: end with the first that fits, instead of the fastest.
    """
    plans: list[tuple[plan.Plan, Guess]] = []
    failed: list[Guess] = []
    fallen: list[tuple[str, str]] = []
    untried: list[str] = []
    compiled = 0
    ratios: dict[tuple[str, bool], float] = {}
    excess: dict[str, float] = {}  # by remat: bytes beyond the least, per pair
    for g in sorted(guesses, key=lambda g: (g.estimate.seconds, g.least)):
        best = min((p.estimate.seconds for p, _ in plans if p.estimate), default=0.0)
        if why := _falls(g, topology.device_usable, failed, best, ratios, excess):
            fallen.append((g.name, why))
            continue
        if compiled >= COMPILES or (first and plans):
            untried.append(g.name)
            continue
        say(f"{g.name}: at least {g.least / GIB:.1f} GiB, {g.estimate.seconds:.3g} s")
        found, new = make(g)
        compiled += new
        if found.fits or found.measure.over:
            per_pair = max(0.0, found.needed - g.least) / g.rows
            excess[g.cfg.model.remat] = min(per_pair, excess.get(g.cfg.model.remat, per_pair))
        if not found.fits or not found.estimate:
            failed.append(g)
            over = found.needed - found.usable
            by = f", by {over / GIB:.2f} GiB a device" if over > 0 else ""
            fallen.append((g.name, f"does not fit{by} (compiled)"))
            continue
        plans.append((found, g))
        work = found.estimate.seconds - found.estimate.sent
        ratio = work / (g.estimate.seconds - g.estimate.sent)
        ratios[g.kind] = min(ratio, ratios.get(g.kind, ratio))
    ranked = sorted((p for p, _ in plans), key=lambda p: p.estimate.seconds if p.estimate else 0)
    return Found(cfg, topology, ranked, fallen, untried)


def _falls(
    g: Guess,
    usable: float,
    failed: list[Guess],
    best: float,
    ratios: dict[tuple[str, bool], float],
    excess: dict[str, float],
) -> str:
    """Why a candidate need not be compiled; empty if it must be."""
    if g.least > usable:
        return f"needs at least {g.least / GIB:.1f} GiB a device (from shapes)"
    for f in failed:
        same = f.cfg.model.remat == g.cfg.model.remat
        if same and f.least <= g.least and f.cfg.num_microbatches >= g.cfg.num_microbatches:
            return f"needs more than {f.name}, which does not fit"
    needed = g.least + g.rows * excess.get(g.cfg.model.remat, 0.0)
    if needed > TOO_LARGE * usable:
        return f"needs about {needed / GIB:.1f} GiB a device (from shapes and its like, compiled)"
    e = g.estimate
    likely = (e.seconds - e.sent) * ratios.get(g.kind, 1.0) + e.sent
    if best and likely >= best:
        measured = "its like, compiled" if g.kind in ratios else "the bfloat16 peak"
        return f"slower: {likely:.3g} s (from shapes and {measured}) against {best:.3g} s"
    return ""


def refusal(found: Found) -> str:
    """The line for the case that nothing fits."""
    if found.untried:
        return (
            f"plan: nothing fits {found.topology.name} among the {COMPILES} compiled; "
            f"{len(found.untried)} candidates are left, the same command goes on"
        )
    return (
        f"plan: nothing fits {found.topology.name}: {len(found.fallen)} combinations of mesh, "
        "remat and micro-batches fell; lower --config.batch_size or choose a larger topology"
    )


def text(found: Found, samples: float, price: float | None) -> str:
    """The winner in full, the runners-up as a table, the others with the reason."""
    lines = []
    if found.best:
        lines += [plan.text(found.best, samples, price), "", f"options: {options(found.best)}", ""]
        lines.append(
            f"fitting, of the at most {COMPILES} compiled a call, fastest first "
            "(s a step, estimated; GiB a device)"
        )
        lines += [f"  {_row(p)}" for p in found.plans]
    lines += ["", f"fell ({len(found.fallen)}):", *(f"  {n}: {why}" for n, why in found.fallen)]
    if found.untried:
        lines.append(f"not tried ({len(found.untried)}), the same command goes on with them:")
        lines += [f"  {name}" for name in found.untried]
    return "\n".join(lines)


def options(p: plan.Plan) -> str:
    """The command-line options of a plan."""
    c = p.cfg
    several = f"--config.mesh.num_slices={p.topology.slices} " if p.topology.slices > 1 else ""
    return (
        f"{several}--config.mesh.data={p.mesh['data']} --config.mesh.fsdp={p.mesh['fsdp']} "
        f"--config.model.remat={c.model.remat} --config.num_microbatches={c.num_microbatches}"
    )


def _row(p: plan.Plan) -> str:
    seconds = p.estimate.seconds if p.estimate else 0.0
    return f"{seconds:8.4f} s  {p.needed / GIB:6.2f} GiB  {options(p)}"


def to_json(found: Found, samples: float, price: float | None) -> dict[str, Any]:
    """The winner in full, the others in short."""
    return {
        "best": plan.to_json(found.best, samples, price) if found.best else None,
        "options": options(found.best) if found.best else None,
        "fitting": [
            {
                "options": options(p),
                "estimated_seconds": p.estimate.seconds if p.estimate else None,
                "needed_bytes_per_device": p.needed,
            }
            for p in found.plans
        ],
        "fell": [{"candidate": n, "why": w} for n, w in found.fallen],
        "untried": found.untried,
    }
