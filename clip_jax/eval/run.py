"""All evaluation tasks of a config on a model: scores for the metrics, rows and samples to show."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clip_jax.config.schema import TaskConfig
from clip_jax.data.record import decode_image
from clip_jax.data.sources import Source
from clip_jax.errors import UserError, near
from clip_jax.eval import zeroshot
from clip_jax.inference.api import Model
from clip_jax.report.page import Guess, Sample, ScoreRow

NUM_SAMPLES = 24


@dataclasses.dataclass(frozen=True)
class Result:
    """metrics: eval/NAME/... -> value. rows and samples: for the table and the report."""

    metrics: dict[str, float]
    rows: list[ScoreRow]
    samples: list[Sample]


def choose(tasks: Sequence[TaskConfig], names: Sequence[str]) -> list[TaskConfig]:
    """The tasks with these names; all if none is given."""
    known = {t.name: t for t in tasks}
    for name in names:
        if name not in known:
            raise UserError(
                f"--tasks: no such task (got '{name}'); here: {', '.join(known)}{near(name, known)}"
            )
    return [known[n] for n in names] if names else list(tasks)


def score_names(tasks: Sequence[TaskConfig]) -> list[str]:
    """The metrics that run_tasks gives; those of distractors only where captions are new."""
    found = []
    for task in tasks:
        more = ("top1_all", "top5_all", "seen_classes") if task.distractors else ()
        found += [f"eval/{task.name}/{x}" for x in ("top1", "top5", "bad_images", *more)]
    return found


def run_tasks(
    model: Model,
    source: Source,
    tasks: Sequence[TaskConfig],
    *,
    captions: Sequence[str] = (),
    samples: bool = False,
) -> Result:
    """Runs the tasks.

    Args:
        model: to judge.
        source: the test split.
        tasks: what to do.
        captions: distinct training captions, for tasks with `distractors`; empty: leave that out.
        samples: also pick images with their five best names, for the report.
    """
    metrics: dict[str, float] = {}
    rows: list[ScoreRow] = []
    shown: list[Sample] = []
    for task in tasks:
        data = zeroshot.embed_split(model, source, task)
        classes = zeroshot.embed_classes(model, data.classes, task)
        prefix = f"eval/{task.name}"

        def add(kind: str, among: str, embedded: np.ndarray) -> None:
            s = zeroshot.score(data.z, data.label, embedded)  # noqa: B023 (called at once)
            metrics[f"{prefix}/top1{kind}"] = s.top1  # noqa: B023
            metrics[f"{prefix}/top5{kind}"] = s.top5  # noqa: B023
            chance = 1 / s.num_classes
            rows.append(
                ScoreRow(task.name, among, s.num_classes, s.num_images, s.top1, s.top5, chance)  # noqa: B023
            )

        add("", f"the {len(data.classes)} test classes", classes)
        metrics[f"{prefix}/bad_images"] = data.num_bad
        more = sorted(set(captions) - set(data.classes)) if task.distractors else []
        if more:
            metrics[f"{prefix}/seen_classes"] = len(set(captions) & set(data.classes))
            everything = np.concatenate([classes, zeroshot.embed_classes(model, more, task)])
            add("_all", "these and all training captions", everything)
        if samples:
            shown += _samples(model, source, data, classes)
    return Result(metrics, rows, shown)


def _samples(
    model: Model, source: Source, data: zeroshot.Labelled, classes: np.ndarray
) -> list[Sample]:
    """Images spread over the classes, the same ones at every call."""
    order = np.argsort(data.label, kind="stable")
    places = np.linspace(0, len(order) - 1, min(NUM_SAMPLES, len(order))).astype(int)
    chosen = order[places]
    found = []
    for i, guesses in zip(chosen, zeroshot.best(model, data.z[chosen], classes), strict=True):
        image = source[int(data.record[i])].image
        found.append(
            Sample(
                _png(decode_image(image, model.config.model.image.channels)),
                data.classes[data.label[i]],
                tuple(Guess(data.classes[c], p) for c, p in guesses),
            )
        )
    return found


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, "png")
    return out.getvalue()


def table(rows: Sequence[ScoreRow]) -> str:
    """The scores as aligned text."""
    head = ("task", "among", "classes", "images", "top-1", "top-5", "chance")
    lines = [head] + [
        (
            r.task,
            r.among,
            f"{r.classes:,}",
            f"{r.examples:,}",
            f"{100 * r.top1:.1f} %",
            f"{100 * r.top5:.1f} %",
            f"{100 * r.chance:.2f} %",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    pad = lambda i, x: x.ljust(widths[i]) if i < 2 else x.rjust(widths[i])  # noqa: E731
    return "\n".join("  ".join(pad(i, x) for i, x in enumerate(line)).rstrip() for line in lines)
