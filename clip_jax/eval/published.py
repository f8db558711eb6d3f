"""How a published run scored along its way, beside a run of one's own.

`config.eval.reference` holds points of its curve, 'PAIRS=TOP1' of the first task; between them the
curve is taken to be straight in the log of pairs. Evaluations of real runs dip now and then, so a
run that is behind is told of it and goes on.
"""

import bisect
import math

from clip_jax.config.schema import Config
from clip_jax.config.stages import expand
from clip_jax.config.units import parse

BEHIND = 0.8  # of the published score

Curve = list[tuple[float, float]]  # (pairs, top-1 as a share), in order


def curve(reference: tuple[str, ...]) -> Curve:
    """The points of config.eval.reference, checked.

    Raises:
        UserError: a point that is none.
    """
    found = []
    for item in reference:
        pairs, _, share = item.partition("=")
        found.append((parse(pairs, "config.eval.reference")[0], float(share)))
    return sorted(found)


def expected(points: Curve, pairs: float) -> float | None:
    """Top-1 of the published run after so many pairs; None outside of what is known."""
    if not points or not points[0][0] <= pairs <= points[-1][0]:
        return None
    if len(points) == 1:
        return points[0][1]
    i = min(bisect.bisect_right([x for x, _ in points], pairs), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * math.log(pairs / x0) / math.log(x1 / x0)


def pairs_at(cfg: Config, step: int) -> int:
    """Pairs that a run has seen after a step."""
    return sum(max(0, min(step, s.last) - s.first) * s.cfg.batch_size for s in expand(cfg))


def by_step(cfg: Config) -> list[tuple[float, float]]:
    """The published curve over the steps of this run, as far as both go."""
    points, found = curve(cfg.eval.reference), []
    for stage in expand(cfg):
        before, batch = pairs_at(cfg, stage.first), stage.cfg.batch_size
        found += [
            (stage.first + (pairs - before) / batch, share)
            for pairs, share in points
            if before < pairs <= before + stage.examples
        ]
    return found


def behind(cfg: Config, step: int, top1: float) -> str:
    """What to say of a score that is far below the published one; '' if it is not."""
    pairs = pairs_at(cfg, step)
    wanted = expected(curve(cfg.eval.reference), pairs)
    if wanted is None or top1 >= BEHIND * wanted:
        return ""
    return (
        f"step {step}: {100 * top1:.1f} % after {pairs:,} pairs; the published run had "
        f"about {100 * wanted:.1f} %. One low score may be a dip; if the next is low too, look "
        "at learning rate, captions and data order"
    )
