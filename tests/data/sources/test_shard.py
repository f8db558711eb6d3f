"""One tar: its index, kept and renewed, and how members are read."""

import functools
import os
import pickle
import threading
from pathlib import Path

import pytest
from tiny_tars import open_tars, sample, write_shards, write_tar

from clip_jax import files
from clip_jax.data.record import BadRecord
from clip_jax.data.sources import shard, tar
from clip_jax.errors import UserError


def test_keys_of_odd_names():
    assert shard.split_name("x.y/001.Left.JPG") == ("x.y/001", "left.jpg")
    assert shard.split_name("./0.jpg") == ("./0", "jpg")
    assert shard.split_name("../../etc/x.jpg") == ("../../etc/x", "jpg")
    for name in ("README", ".hidden.jpg", "a/.jpg", "__meta__.json", "folder.d/"):
        assert shard.split_name(name)[1] == ""


def test_duplicates_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample(1) + sample(2) + [("0001.JPG", b"again")])
    with pytest.raises(UserError, match=r"a\.tar: '0001\.jpg' is there twice"):
        open_tars(path)


def test_index_is_written_once_and_renewed(tmp_path, monkeypatch):
    path = write_shards(tmp_path, 1)[0]
    open_tars(path)
    assert sorted(os.listdir(tmp_path)) == ["s-00000.tar", "s-00000.tar.idx"]
    walk = tar.members
    monkeypatch.setattr(tar, "members", lambda _: pytest.fail("walked"))
    assert open_tars(path)[3].key == "0003"
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: write_tar(path, sample(7)),
        lambda: _damage(path + ".idx"),
        lambda: os.truncate(path + ".idx", 50),
    ):
        change()
        walked = []
        monkeypatch.setattr(tar, "members", lambda x, w=walked: w.append(x) or walk(x))
        first = [x.key for x in open_tars(path)]
        assert walked == [path]
        assert [x.key for x in open_tars(path)] == first
        assert walked == [path]
    assert first == ["0007"]
    open_tars(path, caption_field="cap")
    assert walked == [path, path]


def _damage(path):
    with open(path, "r+b") as f:
        f.seek(-3, os.SEEK_END)
        f.write(b"???")


@pytest.mark.parametrize("remote", [False, True])
def test_index_goes_elsewhere_where_it_cannot_lie_beside(tmp_path, monkeypatch, remote):
    data = tmp_path / "data"
    work = f"memory:/{tmp_path}/work" if remote else str(tmp_path / "work")
    data.mkdir()
    path = write_shards(data, 1)[0]
    os.mkdir(path + ".idx")  # in the way: the rename fails, as in a read-only folder
    want = [x.image for x in open_tars(path)]
    assert sorted(os.listdir(data)) == ["s-00000.tar", "s-00000.tar.idx"]
    open_tars(path, index_dir=work)
    assert len(files.names(work)) == 1
    monkeypatch.setattr(tar, "members", lambda _: pytest.fail("walked"))
    assert [x.image for x in open_tars(path, index_dir=work)] == want


def test_cut_shards_never_lose_samples_silently(tmp_path):
    data = open(write_shards(tmp_path, 1)[0], "rb").read()
    complete = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    path = tmp_path / "cut.tar"
    for size in range(0, complete, 100):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="cut.tar"):
            open_tars(path)
    assert not os.path.exists(str(path) + ".idx")


def test_pickles_and_serves_many_threads(tmp_path, monkeypatch):
    few = functools.lru_cache(maxsize=2)(shard._descriptor.__wrapped__)
    monkeypatch.setattr(shard, "_descriptor", few)  # evicts what others are reading
    paths, wrong = write_shards(tmp_path, 20, 3), []
    source = pickle.loads(pickle.dumps(open_tars(*paths)))

    def read(seed):
        for k in range(300):
            i = (k * 7 + seed * 13) % 60
            if source[i].image != f"jpeg {i}".encode():
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    assert not wrong


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_descriptors_are_bounded_and_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(shard.files, "write_bytes", _refuse)  # 300 fsyncs take seconds
    shard._descriptor.cache_clear()
    source = open_tars(*write_shards(tmp_path, 300, 1))
    assert [x.key for x in source] == [f"{i:04d}" for i in range(300)]
    assert 0 < _open_below(tmp_path) <= shard._MAX_OPEN
    shard._descriptor.cache_clear()
    assert _open_below(tmp_path) == 0


def _open_below(folder):
    """Descriptors of this process on files below `folder`: others come and go beside the test."""
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(x).startswith(f"{folder.resolve()}/") for x in links)


def _refuse(path, data):
    raise UserError(f"{path}: the disk is full")


def test_shards_that_vanish_or_change_during_the_run(tmp_path):
    paths = write_shards(tmp_path)
    source = open_tars(*paths)
    os.unlink(paths[0])
    with pytest.raises(BadRecord, match="s-00000.tar: No such file"):
        source[0]
    assert source.texts(0) == ()
    write_tar(paths[1], sample(9))
    with pytest.raises(UserError, match="has changed"):
        source[4]
    assert source[8].key == "0008"


@pytest.fixture
def reads(monkeypatch):
    """How many bytes each `os.pread` gave."""
    found, pread = [], os.pread

    def counted(*args):
        data = pread(*args)
        found.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    return found


def test_a_sample_is_one_read(tmp_path, reads):
    source = open_tars(*write_shards(tmp_path, 1, 20))
    reads.clear()
    for i in range(20):
        example = source[i]
        assert (example.image, example.texts) == (f"jpeg {i}".encode(), (f"caption {i}",))
        assert example.fields == {"label": i}
    assert len(reads) == 20
    assert max(reads) < 4096  # no neighbour is read with it


def test_members_far_apart_are_read_by_themselves(tmp_path, reads):
    first, far = sample(0), ("z.bin", bytes(1 << 20))
    source = open_tars(write_tar(tmp_path / "a.tar", [*first[:2], far, first[2]]))
    reads.clear()
    example = source[0]
    assert (example.image, example.texts) == (b"jpeg 0", ("caption 0",))
    assert example.fields == {"label": 0}
    assert sum(reads) < 1000


def test_small_members_are_indexed_by_few_reads(tmp_path, reads):
    path = write_shards(tmp_path, 1, 400)[0]  # 1,200 members
    assert len(open_tars(path)) == 400
    assert len(reads) <= os.path.getsize(path) / tar.AHEAD + 3


@pytest.mark.parametrize("size", [200_000, 1 << 20])
def test_large_members_are_not_read_to_be_indexed(tmp_path, reads, size):
    images = [[(f"{i:04d}.jpg", bytes(size)), *sample(i)[1:]] for i in range(8)]
    path = write_tar(tmp_path / "a.tar", sum(images, []))
    assert len(open_tars(path)) == 8
    assert len(reads) <= 12 and sum(reads) < os.path.getsize(path) / 5
