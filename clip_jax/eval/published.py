"""How a published run scored along its way, beside a run of one's own.

`config.eval.reference` holds points of its curve, 'PAIRS=TOP1' of the task that
`config.eval.reference_task` names, in capitals or not; no other task is compared. Between the
points the curve is taken to be straight in the log of pairs. Evaluations of real runs dip now and
then, so a run that is behind is told of it and goes on.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.config.schema import Config
from clip_jax.config.stages import expand
from clip_jax.config.units import parse

BEHIND = 0.8  # of the published score
SLACK = 1.02  # the last point holds so far beyond its pairs: they are rounded

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
    if not points or not points[0][0] <= pairs <= SLACK * points[-1][0]:
        return None
    pairs = min(pairs, points[-1][0])
    if len(points) == 1:
        return points[0][1]
    i = min(bisect.bisect_right([x for x, _ in points], pairs), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * math.log(pairs / x0) / math.log(x1 / x0)


def pairs_at(cfg: Config, step: int) -> int:
    """Pairs that a run has seen after a step."""
    return sum(max(0, min(step, s.last) - s.first) * s.cfg.batch_size for s in expand(cfg))


def task(cfg: Config) -> str:
    """Name of the task that the curve is about; '' if the run has none of that name."""
    wanted = cfg.eval.reference_task.lower()
    return next((t.name for t in cfg.eval.tasks if t.name.lower() == wanted), "")


def by_step(cfg: Config) -> list[tuple[float, float]]:
    """The published curve over the steps of this run, as far as both go."""
    if not task(cfg):
        return []
    points, found = curve(cfg.eval.reference), []
    for stage in expand(cfg):
        before, batch = pairs_at(cfg, stage.first), stage.cfg.batch_size
        found += [
            (stage.first + (pairs - before) / batch, share)
            for pairs, share in points
            if before < pairs <= before + stage.examples
        ]
    return found


def behind(cfg: Config, step: int, scores: Mapping[str, float]) -> str:
    """What to say of scores that are far below the published one; '' if they are not."""
    found = _beside(cfg, step, scores)
    if not found or found[0] >= BEHIND * found[1]:
        return ""
    return (
        f"step {step}: {100 * found[0]:.1f} % after {pairs_at(cfg, step):,} pairs; the published "
        f"run had about {100 * found[1]:.1f} %. One low score may be a dip; if the next is low "
        "too, look at learning rate, captions and data order"
    )


def sentence(cfg: Config, metrics: Sequence[Mapping[str, Any]]) -> str:
    """How the run stood at its last evaluation, for its report; '' without a curve or a score.

    Args:
        cfg: of the run.
        metrics: lines of metrics.jsonl.
    """
    if not cfg.eval.reference or not cfg.eval.tasks:
        return ""
    if not (name := task(cfg)):
        return (
            f"Not compared with the published run: its curve is of '{cfg.eval.reference_task}' "
            "(config.eval.reference_task), and no task is named so."
        )
    lines = [x for x in metrics if f"eval/{name}/top1" in x]
    if not lines or not (found := _beside(cfg, lines[-1]["step"], lines[-1])):
        return ""
    verdict = "behind it" if found[0] < BEHIND * found[1] else "not behind it"
    return (
        f"At the last evaluation (step {lines[-1]['step']:,}) {name} stood at "
        f"{100 * found[0]:.1f} %, the published run at about {100 * found[1]:.1f} % after as many "
        f"pairs: {verdict} (behind is below {100 * BEHIND:.0f} % of its score)."
    )


def _beside(cfg: Config, step: int, scores: Mapping[str, Any]) -> tuple[float, float] | None:
    """(top-1 of the run, of the published one); None where one of them is not known."""
    mine = scores.get(f"eval/{task(cfg)}/top1")
    wanted = expected(curve(cfg.eval.reference), pairs_at(cfg, step))
    return None if mine is None or wanted is None else (mine, wanted)
