"""Every parameter of a run in one text: workdir/parameters.txt."""

from typing import Any

from clip_jax.config.schema import OptimConfig
from clip_jax.interop.table import leaves
from clip_jax.train.groups import decay_mask, rates

HEAD = ("parameter", "shape", "number", "spread over", "decays", "rate")


def text(params: Any, cfg: OptimConfig) -> str:
    """A line for each array: path, shape, size, sharding, weight decay, factor of its rate.

    Args:
        params: of Program.abstract: shapes with shardings.
        cfg: names what decays and what moves at another rate; "0" stands still.
    """
    decays, factors = leaves(decay_mask(cfg.decay, params)), leaves(rates(cfg, params))
    rows: list[tuple[str, ...]] = [HEAD]
    for path, x in leaves(params).items():
        shape = " x ".join(map(str, x.shape)) or "()"
        decayed = "yes" if decays[path] else "no"
        rows.append((path, shape, f"{x.size:,}", _axes(x), decayed, _rate(factors[path])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    total = sum(x.size for x in leaves(params).values())
    end = f"{total:,} in {len(rows) - 1} arrays"
    return "\n".join([*(line.rstrip() for line in lines), "", end]) + "\n"


def _axes(x: Any) -> str:
    """The mesh axes that split it."""
    parts = [(p,) if isinstance(p, str) else p for p in x.sharding.spec if p]
    return ", ".join(axis for part in parts for axis in part) or "-"


def _rate(factor: Any) -> str:
    if isinstance(factor, float):
        return f"{factor:g}"
    return f"{factor.min():.3g} to {factor.max():.3g}"  # layer by layer
