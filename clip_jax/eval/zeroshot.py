"""Zero-shot classification: images against embedded prompts of class names.

Letters: b images, n classes, e embedding.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np

from clip_jax.config.schema import TaskConfig
from clip_jax.data.record import BadRecord, Example
from clip_jax.data.sources import Source
from clip_jax.errors import UserError
from clip_jax.inference.api import Model
from clip_jax.inference.prompts import class_embeddings
from clip_jax.sharding import processes


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The usable images of a split: embeddings (b, e), class of each (b,), record of each (b,)."""

    z: np.ndarray
    label: np.ndarray
    record: np.ndarray
    classes: tuple[str, ...]
    num_bad: int


@dataclasses.dataclass(frozen=True)
class Score:
    """Shares of images whose class is the best, or among the five best, of `num_classes`."""

    top1: float
    top5: float
    num_classes: int
    num_images: int


def _labels(source: Source, field: str) -> Iterator[tuple[int, Example | None, int | str | None]]:
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord:
            yield i, None, None
            continue
        yield i, example, example.fields.get(field)


def check_task(source: Source, task: TaskConfig) -> None:
    """Looks at the first usable record: a wrong task must not be found after the training.

    Raises:
        UserError: it lacks the label field, or its class is none of the task's.
    """
    where = f"config.eval.tasks[{task.name}]"
    for _, example, value in _labels(source, task.label_field):
        if example is None:
            continue
        if value is None:
            known = ", ".join(sorted(example.fields)) or "none"
            raise UserError(
                f"{where}.label_field: no such field (got '{task.label_field}'); here: {known}"
            )
        _classes([value], task, where)
        return


def embed_split(model: Model, source: Source, task: TaskConfig) -> Labelled:
    """Embeds every usable image of `source` and looks up its class.

    What one process cannot read is left out by all. It keeps its place until then: each embeds
    its own rows of a batch.

    Raises:
        UserError: the label field is missing, or names no class.
    """
    where = f"config.eval.tasks[{task.name}]"
    kept: list[np.ndarray] = []
    images: list[np.ndarray] = []
    values: list[int | str | None] = []
    bad: list[int] = []
    black = np.zeros(model.config.model.image.shape(), np.uint8)

    def flush() -> None:
        if images:
            kept.append(model.embed_images(images))
            images.clear()

    for i, example, value in _labels(source, task.label_field):
        try:
            if example is None or value is None:
                raise UserError("unusable")
            images.append(model.preprocess(example.image))
        except UserError:
            bad.append(i)
            images.append(black)
        values.append(value)
        if len(images) == model.batch_size:
            flush()
    flush()
    bad = json.loads(processes.agree(json.dumps(bad), _of_any))
    usable = np.setdiff1d(np.arange(len(values)), bad)
    if not usable.size:
        raise UserError("config.data.test: no usable image; check the paths")
    good = [v for i in usable if (v := values[i]) is not None]
    classes, label = _classes(good, task, where)
    return Labelled(np.concatenate(kept)[usable], label, usable, classes, len(bad))


def _of_any(each: list[str]) -> str:
    return json.dumps(sorted({i for text in each for i in json.loads(text)}))


def _classes(
    values: Sequence[int | str], task: TaskConfig, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and the number of each value's class."""
    if not task.classes:
        names = tuple(sorted({str(v) for v in values}))
        number = {n: i for i, n in enumerate(names)}
        return names, np.asarray([number[str(v)] for v in values])
    number: dict[int | str, int] = {n: i for i, n in enumerate(task.classes)}
    number |= {i: i for i in range(len(task.classes))}
    unknown = sorted({str(v) for v in values if v not in number})
    if unknown:
        raise UserError(
            f"{where}.classes: the data has other classes ({', '.join(unknown[:5])}); name them all"
        )
    return task.classes, np.asarray([number[v] for v in values])


def score(z: np.ndarray, label: np.ndarray, classes: np.ndarray) -> Score:
    """Top-1 and top-5 of embeddings (b, e) with classes `label` (b,) among `classes` (n, e)."""
    logits = z @ classes.T  # (b, n)
    own = np.take_along_axis(logits, label[:, None], axis=1)  # (b, 1)
    others = ~(logits < own)  # a tie with another class is wrong, and so is what is no number
    others[np.arange(len(label)), label] = False
    rank = others.sum(axis=1)
    return Score(float((rank < 1).mean()), float((rank < 5).mean()), len(classes), len(label))


def best(
    model: Model, z: np.ndarray, classes: np.ndarray, k: int = 5
) -> list[list[tuple[int, float]]]:
    """For each row of z (b, e) the k likeliest classes of (n, e) with their probabilities."""
    logits = model.logit_scale() * z @ classes.T  # (b, n)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    return [[(int(c), float(row[c])) for c in o] for row, o in zip(p, order, strict=True)]


def embed_classes(model: Model, names: Sequence[str], task: TaskConfig) -> np.ndarray:
    """float32 (n, e): the classes by the prompts of the task."""
    return class_embeddings(model.embed_texts, names, task.templates)
