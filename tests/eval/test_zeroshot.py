"""Scores against counting by hand; classes and labels; tasks and the table."""

import numpy as np
import pytest

import tiny
from clip_jax.config.schema import TaskConfig
from clip_jax.data.record import BadRecord, Example
from clip_jax.errors import UserError
from clip_jax.eval.run import choose, table
from clip_jax.eval.zeroshot import _classes, embed_split, score
from clip_jax.report.page import ScoreRow
from clip_jax.sharding import processes

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


class Source:
    """Ten records; the pixel of each is its number, the class its parity; 3 cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if i == 3:
            raise BadRecord("broken")
        fields = {} if i == 6 else {"label": i % 2}
        return Example(str(i), b"x" if i == 5 else bytes([i]), ("",), fields)


class Broken(Source):
    def __getitem__(self, i):
        raise BadRecord("broken")


class Reader:
    """A model whose embedding is the pixel; it cannot read b"x"."""

    batch_size = 4
    config = tiny.config("unused")

    def __init__(self):
        self.batches = []

    def preprocess(self, image):
        if image == b"x":
            raise UserError("no image")
        return np.full((16, 16, 3), image[0], np.uint8)

    def embed_images(self, images):
        self.batches.append(len(images))
        return np.stack([x[0, 0] for x in images])


@pytest.mark.parametrize("others", [[], [3, 8]])
def test_what_one_process_cannot_read_is_left_out_by_all_and_keeps_its_place(monkeypatch, others):
    monkeypatch.setattr(processes, "agree", lambda mine, judge: judge([mine, str(others)]))
    model = Reader()
    found = embed_split(model, Source(), TaskConfig(classes=("even", "odd")))
    assert model.batches == [4, 4, 2]  # as on a process that reads all
    want = [i for i in range(10) if i not in {3, 5, 6, *others}]
    assert found.record.tolist() == found.z[:, 0].tolist() == want
    assert found.label.tolist() == [i % 2 for i in want]
    assert found.num_bad == 10 - len(want)


def test_no_image_at_all():
    with pytest.raises(UserError, match="no usable image"):
        embed_split(Reader(), Broken(), TaskConfig(classes=("even", "odd")))


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
