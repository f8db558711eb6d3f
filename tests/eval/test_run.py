"""What a task adds to the metrics, with embeddings by hand."""

import dataclasses

import numpy as np
import pytest

from clip_jax.config.schema import TaskConfig
from clip_jax.eval import run, zeroshot

pytestmark = pytest.mark.core
TEXTS = {"ant": (1.0, 0.0, 0.0), "bee": (0.0, 1.0, 0.0), "cat": (0.0, 0.0, 1.0)}
IMAGES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.6, 0.8))  # the last one looks like a cat


@pytest.mark.parametrize("distractors", [False, True])
def test_test_classes_alone_and_among_the_training_captions(monkeypatch, distractors):
    data = zeroshot.Labelled(
        z=np.array(IMAGES, np.float32), label=np.array([0, 1, 1]), record=np.arange(3),
        classes=("ant", "bee"), num_bad=2,
    )  # fmt: skip
    embed = lambda model, names, task: np.array([TEXTS[x] for x in names], np.float32)  # noqa: E731
    monkeypatch.setattr(zeroshot, "embed_split", lambda *_: data)
    monkeypatch.setattr(zeroshot, "embed_classes", embed)
    task = dataclasses.replace(TaskConfig(name="animals"), distractors=distractors)
    result = run.run_tasks(None, None, (task,), captions=["ant", "cat"])  # type: ignore[arg-type]
    want = {"top1": 1.0, "top5": 1.0, "bad_images": 2}
    if distractors:
        want |= {"seen_classes": 1, "top1_all": 2 / 3, "top5_all": 1.0}
    got = {k.removeprefix("eval/animals/"): v for k, v in result.metrics.items()}
    assert got == {k: pytest.approx(v) for k, v in want.items()}
    assert set(run.score_names((task,))) == set(result.metrics)
    rows = [(r.classes, r.top1) for r in result.rows]
    assert rows == [(2, 1.0), (3, pytest.approx(2 / 3))][: 1 + distractors]
