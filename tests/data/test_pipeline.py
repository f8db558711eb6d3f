"""Batches as a pure function of (seed, position): hosts, threads, resume, bad records."""

import collections
import os

import jax
import numpy as np
import pytest

import tiny
from clip_jax.config.schema import DataConfig, ImageConfig, SplitConfig
from clip_jax.data import order
from clip_jax.data.pipeline import Pipeline, num_threads
from clip_jax.data.record import decode_image
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError

pytestmark = pytest.mark.core
IMAGE = ImageConfig(size=16, patch=8)


class Letters:
    """A tokenizer that tells captions apart."""

    vocab_size, eos_id, pad_id = 256, 1, 0

    def __call__(self, texts, context):
        rows = [list(t.encode())[:context] for t in texts]
        return np.array([r + [0] * (context - len(r)) for r in rows], np.int32)

    def to_bytes(self):
        return b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"), count=50)


def pipeline(folder, seed=3, **changes):
    data = DataConfig(train=SplitConfig(kind="folder", paths=(str(folder),)), **changes)
    source = open_source(data.train, index_dir="", limit=data.limit)
    return Pipeline(source, Letters(), data, IMAGE, 24, seed)


def batches(p, start=0, rows=range(12), num_steps=6):
    return list(p.batches(start=start, batch_size=12, num_steps=num_steps, rows=rows))


def same(a, b):
    return all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


def test_examples_are_the_pairs_of_the_order(folder):
    p = pipeline(folder)
    record, _ = order.locate(np.arange(72), 50, 3)
    for step, batch in enumerate(batches(p)):
        assert {k: (v.dtype.name, v.shape) for k, v in batch.arrays.items()} == {
            "image": ("uint8", (12, 16, 16, 3)),
            "text": ("int32", (12, 24)),
            "index": ("uint32", (12, 2)),
            "group": ("int32", (12,)),
        }
        for row in range(12):
            example = p.source[int(record[step * 12 + row])]
            assert np.array_equal(batch.arrays["image"][row], decode_image(example.image, 3))

            text = "".join(map(chr, batch.arrays["text"][row])).rstrip("\0")
            assert text == example.texts[0]
        position = step * 12 + np.arange(12)
        assert np.array_equal(batch.arrays["index"][:, 1], position)
        assert not batch.arrays["index"][:, 0].any()


def test_threads_are_as_many_as_cores_but_beside_steps_on_cpus(monkeypatch):
    assert num_threads(-1) == 1 and num_threads(0) == 0 and num_threads(64) == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for cores, want in ((12, 12), (208, 32)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert num_threads(-1) == want
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert num_threads(-1) == 4


@pytest.mark.parametrize("changes", [{}, {"crop_scale": (0.3, 1.0), "flip": True}])
def test_threads_hosts_and_cache_change_nothing(folder, changes):
    want = batches(pipeline(folder, threads=0, **changes))
    for other in ({"threads": 1}, {"threads": 3, "prefetch": 4}, {"cache": True}):
        for a, b in zip(want, batches(pipeline(folder, **other, **changes)), strict=True):
            assert same(a, b)
    p = pipeline(folder, **changes)
    left, right = batches(p, rows=range(0, 4)), batches(p, rows=range(4, 12))
    for a, b, c in zip(want, left, right, strict=True):
        joined = {k: np.concatenate([b.arrays[k], c.arrays[k]]) for k in b.arrays}
        assert all(np.array_equal(a.arrays[k], joined[k]) for k in joined)


def test_a_resume_goes_on_where_it_stopped(folder):
    p = pipeline(folder, crop_scale=(0.3, 1.0), flip=True)
    for a, b in zip(batches(p)[2:], batches(p, start=24, num_steps=4), strict=True):
        assert same(a, b)


def test_another_batch_size_sees_the_same_sequence(folder):
    p = pipeline(folder)
    small = list(p.batches(start=0, batch_size=4, num_steps=18, rows=range(4)))
    joined = np.concatenate([b.arrays["text"] for b in small])
    assert np.array_equal(joined, np.concatenate([b.arrays["text"] for b in batches(p)]))


def test_augmentation_differs_by_seed_and_position(folder):
    changes = {"crop_scale": (0.3, 0.6), "limit": 1}
    images = [b.arrays["image"] for b in batches(pipeline(folder, **changes))]
    flat = {i.tobytes() for i in np.concatenate(images)}
    assert len(flat) > 60  # one record, cut out in another way each time
    other = [b.arrays["image"] for b in batches(pipeline(folder, seed=4, **changes))]
    assert not np.array_equal(images[0], other[0])


def test_groups(folder):
    none = batches(pipeline(folder))[0].arrays["group"]
    assert len(set(none)) == 12
    for group_by in ("caption", "name"):
        batch = batches(pipeline(folder, group_by=group_by))[0].arrays
        for i in range(12):
            for j in range(12):
                equal = np.array_equal(batch["text"][i], batch["text"][j])
                assert (batch["group"][i] == batch["group"][j]) == equal


def test_an_unknown_group_field_is_named(folder):
    with pytest.raises(UserError, match="group_by: no such field .*'label'.*none, caption, name"):
        batches(pipeline(folder, group_by="label", threads=0))


def test_hard_negatives_come_from_fields(folder):
    """Here the colour's name stands in for a wrong caption: the last word but one of the right."""
    for batch in batches(pipeline(folder, negatives=("name", "name")), num_steps=2):
        wrong, text = batch.arrays["negative"], batch.arrays["text"]
        assert wrong.shape == (12, 2, 24) and wrong.dtype == np.int32
        for ids, caption in zip(wrong, text, strict=True):
            names = [bytes(row[row > 0].tolist()).decode() for row in ids]
            assert [f"a {name} square" for name in names] == [
                bytes(caption[caption > 0].tolist()).decode()
            ] * 2


def test_a_missing_hard_negative_is_a_bad_record(folder):
    with pytest.raises(UserError, match="100 unusable|unusable pairs.*'nmae' missing or empty"):
        batches(pipeline(folder, negatives=("nmae",)), num_steps=1)


def test_a_broken_image_gives_way_to_its_neighbour(tmp_path):
    folder = tiny.write_folder(tmp_path / "pairs", count=50)
    whole = batches(pipeline(folder))
    (folder / "0007.png").write_bytes(b"not a picture")
    (folder / "0008.png").unlink()
    p = pipeline(folder)
    hurt = batches(p)
    record, _ = order.locate(np.arange(72), 50, 3)
    bad = sum((b.bad for b in hurt), collections.Counter())
    broken = np.isin(record, [7, 8])
    assert bad.total() == (record == 7).sum() * 2 + (record == 8).sum()  # 7 also passes 8
    neighbour = decode_image(p.source[9].image, 3)
    for step in range(6):
        for row in range(12):
            got = hurt[step].arrays["image"][row]
            want = whole[step].arrays["image"][row]
            assert np.array_equal(got, neighbour if broken[step * 12 + row] else want)


def test_only_broken_images_end_the_run(tmp_path):
    folder = tiny.write_folder(tmp_path / "pairs", count=5)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"config.data.train: .*unusable pairs in a row"):
        batches(pipeline(folder, threads=0))


def test_limit_spreads_over_the_data(folder):
    whole, p = pipeline(folder), pipeline(folder, limit=5)
    texts = {t for i in (0, 10, 20, 30, 40) for t in whole.source.texts(i)}
    assert p.source.fingerprint != whole.source.fingerprint
    assert p.size == 5
    for batch in batches(p):
        for row in batch.arrays["text"]:
            assert "".join(map(chr, row)).rstrip("\0") in texts
