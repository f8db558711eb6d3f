"""Scores against counting by hand; classes and labels; tasks and the table."""

import numpy as np
import pytest

from clip_jax.config.schema import TaskConfig
from clip_jax.errors import UserError
from clip_jax.eval.run import choose, table
from clip_jax.eval.zeroshot import _classes, score
from clip_jax.report.page import ScoreRow

pytestmark = pytest.mark.core


def test_top_1_and_top_5_are_counted():
    rng = np.random.default_rng(0)
    z, classes = rng.normal(size=(200, 8)), rng.normal(size=(30, 8))
    label = rng.integers(0, 30, 200)
    s = score(z, label, classes)
    hits1 = hits5 = 0
    for row, own in zip(z @ classes.T, label, strict=True):
        order = list(np.argsort(-row))
        hits1 += order[0] == own
        hits5 += own in order[:5]
    assert (s.top1, s.top5) == (hits1 / 200, hits5 / 200)
    assert (s.num_classes, s.num_images) == (30, 200)


def test_a_tie_is_wrong():
    z, classes = np.ones((1, 2)), np.ones((3, 2))
    assert score(z, np.array([0]), classes).top1 == 0.0


def test_what_is_no_number_is_wrong():
    z = np.array([[np.nan, 1.0], [1.0, 0.0]])
    assert score(z, np.array([0, 0]), np.eye(2)).top1 == 0.5
    assert score(z[1:], np.array([0]), np.full((2, 2), np.nan)).top1 == 0.0


def test_classes_from_values_or_by_number_or_name():
    names, label = _classes(["b", "a", "b"], TaskConfig(), "x")
    assert names == ("a", "b") and label.tolist() == [1, 0, 1]
    task = TaskConfig(classes=("cat", "dog"))
    assert _classes([1, 0], task, "x")[1].tolist() == [1, 0]
    assert _classes(["dog", "cat"], task, "x")[1].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"x.classes: the data has other classes \(2\)"):
        _classes([0, 2], task, "x")


def test_tasks_by_name():
    tasks = (TaskConfig(name="one"), TaskConfig(name="two"))
    assert choose(tasks, []) == list(tasks)
    assert choose(tasks, ["two"]) == [tasks[1]]
    with pytest.raises(UserError, match="no such task .*'tow'.*did you mean 'two'"):
        choose(tasks, ["tow"])


def test_the_table_is_aligned():
    rows = [ScoreRow("a", "the 10 test classes", 10, 1000, 0.5, 0.75, 0.1)]
    head, line = table(rows).splitlines()
    assert head.split() == ["task", "among", "classes", "images", "top-1", "top-5", "chance"]
    assert line.endswith("10   1,000  50.0 %  75.0 %  10.00 %")
