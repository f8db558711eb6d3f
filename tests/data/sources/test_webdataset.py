"""Tars as a source: grouping, fields, paths, and how they are opened."""

import itertools
import json
import math
import os
import tarfile
import threading
import time

import pytest
from tiny_tars import open_tars, sample, write_shards, write_tar

from clip_jax.data.record import BadRecord
from clip_jax.data.sources import tar, webdataset
from clip_jax.data.sources.webdataset import expand
from clip_jax.errors import UserError


def test_every_sample_has_its_number(tmp_path):
    write_shards(tmp_path)
    source = open_tars(tmp_path / "s-{00000..00002}.tar")
    assert len(source) == 12
    for i in (11, *range(12)):
        example = source[i]
        assert (example.key, example.image) == (f"{i:04d}", f"jpeg {i}".encode())
        assert example.texts == source.texts(i) == (f"caption {i}",)
        assert example.fields == {"label": i}
    for i in (-1, 12):
        with pytest.raises(IndexError):
            source[i]


def test_order_of_members_does_not_matter(tmp_path):
    a, b = sample(1), sample(2)
    path = write_tar(tmp_path / "a.tar", [a[0], b[1], b[2], a[2], b[0], a[1]])
    source = open_tars(path)
    assert [source[i].key for i in range(2)] == ["0001", "0002"]
    assert [source[i].texts for i in range(2)] == [("caption 1",), ("caption 2",)]
    assert [source[i].image for i in range(2)] == [b"jpeg 1", b"jpeg 2"]


def test_unusable_samples_keep_their_number(tmp_path):
    link = tarfile.TarInfo("c.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = tmp_path / "a.tar"
    members = [("a.jpg", b"i"), ("b.txt", b"t"), ("c.txt", b"t"), ("d.jpg", b""), ("d.txt", b"t")]
    members += [("e.jpg", b"i"), ("e.txt", b" \n"), ("f.jpg", b"i"), ("f.txt", b"t")]
    members += [("f.json", b"{"), ("g.jpg", b"i"), ("g.txt", b"t"), ("g.json", b"[1]")]
    members += [("ok.jpg", b"i"), ("ok.txt", b"t")]
    write_tar(path, members)
    with tarfile.open(path, "a") as out:
        out.addfile(link)
    source, reasons = open_tars(path), []
    assert len(source) == 8
    for i in range(7):
        with pytest.raises(BadRecord) as e:
            source[i]
        reasons.append(str(e.value).split()[0])
    assert reasons == ["caption", "image", "image", "image", "caption", "json", "json"]
    assert source[7].key == "ok"
    assert [source.texts(i) for i in range(3)] == [(), ("t",), ("t",)]


def test_fields_and_captions_by_name(tmp_path):
    values = {
        "caption": ["one", " two ", ""],
        "alt": "alt",
        "w": 3,
        "ok": True,
        "f": 0.5,
        "n": None,
    }
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("a.left.PNG", b"left"),
            ("a.jpg", b"jpg"),
            ("a.webp", b"webp"),
            ("a.cap", b"\xef\xbb\xbfcap"),
            ("a.txt", b"txt"),
            ("a.json", json.dumps(values).encode()),
        ],
    )
    default = open_tars(path)[0]
    assert (default.image, default.texts) == (b"jpg", ("txt",))
    assert default.fields == {"alt": "alt", "w": 3, "ok": 1}
    assert open_tars(path, image_field="gif, left.png,jpg", caption_field="cap")[0].image == b"left"
    assert open_tars(path, caption_field=".CAP")[0].texts == ("cap",)
    both = open_tars(path, caption_field="json:caption")
    assert both[0].texts == both.texts(0) == ("one", "two")
    alt = open_tars(path, caption_field="json:alt")[0]
    assert (alt.texts, alt.fields) == (("alt",), {"w": 3, "ok": 1})
    assert open_tars(path, caption_field="json:none").texts(0) == ()


def test_patterns(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "a-10.tar", "b-1.tar", "x[1].tar", "08.tar", "09.tar"):
        (tmp_path / name).touch()
    (tmp_path / "a-0.tar.idx").touch()
    (tmp_path / "a-0.tar.idx.tmp-0a1b").touch()

    def names(*patterns):
        return [os.path.basename(x) for x in expand(str(tmp_path / p) for p in patterns)]

    assert names("a-{0..1}.tar", "b-1.tar") == ["a-0.tar", "a-1.tar", "b-1.tar"]
    assert names("{b,a}-{1..1}.tar") == ["b-1.tar", "a-1.tar"]
    assert names("{08..09}.tar") == ["08.tar", "09.tar"]
    assert names("{9..8}.tar".replace("9..8", "09..08")) == ["09.tar", "08.tar"]
    assert names("a-*") == ["a-0.tar", "a-1.tar", "a-10.tar"]
    assert names("a-{0,?0}.tar") == ["a-0.tar", "a-10.tar"]
    assert names("x[1].tar") == ["x[1].tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.tar", "no such file"),
        ("no\0ne.tar", "no such file"),
        ("none-*.tar", "no file matches"),
        ("s-{00000..00009}.tar", "s-00003.tar: no such file"),
        ("{0..99999999}.tar", "100000000 shards"),
        (".", "is a folder"),
        ("gs://bucket/a.tar", "only local paths"),
        ("https://host/a-{0..9}.tar", "only local paths"),
        ("pipe:cat a.tar", "only local paths"),
    ],
)
def test_paths_that_are_refused(tmp_path, monkeypatch, pattern, message):
    write_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as e:
        open_tars(pattern)
    assert "\n" not in str(e.value)


def test_a_shard_given_twice_is_refused(tmp_path):
    path = write_shards(tmp_path, 1)[0]
    with pytest.raises(UserError, match="given 2 times"):
        open_tars(path, tmp_path / "*.tar")


def test_caption_key_must_be_named(tmp_path):
    with pytest.raises(UserError, match="caption_field: no key"):
        open_tars(write_shards(tmp_path, 1)[0], caption_field="json:")


def test_fingerprint_follows_the_data_not_the_place(tmp_path):
    copies = [tmp_path / "a", tmp_path / "b"]
    prints = []
    for folder in copies:
        folder.mkdir()
        write_shards(folder)
        os.utime(folder / "s-00000.tar", ns=(len(prints), 1))
        prints.append(open_tars(folder / "*.tar").fingerprint)
    assert prints[0] == prints[1] == open_tars(copies[0] / "*.tar").fingerprint
    others = [
        open_tars(copies[0] / "s-{00000,00002,00001}.tar"),
        open_tars(copies[0] / "s-0000[01].tar"),
        open_tars(copies[0] / "*.tar", image_field="png"),
        open_tars(copies[0] / "*.tar", caption_field="json:label"),
    ]
    write_tar(copies[1] / "s-00000.tar", [(n.replace("0001", "0009"), d) for n, d in sample(1)])
    others.append(open_tars(copies[1] / "*.tar"))
    assert len({prints[0], *(x.fingerprint for x in others)}) == 6


def test_many_shards_are_opened_at_once(tmp_path, monkeypatch):
    """On a mounted bucket each waits for round trips."""
    paths, opening = write_shards(tmp_path, 17, 2), webdataset.open_shard
    meet, opened, clocks = threading.Barrier(8, timeout=60), [], []

    def together(*args):
        opened.append(meet.wait() if opened else time.sleep(0.2))
        return opening(*args)

    monkeypatch.setattr(
        webdataset, "at_once", lambda wall_s, cpu_s: clocks.append(wall_s - cpu_s) or 8
    )

    monkeypatch.setattr(webdataset, "open_shard", together)
    source = open_tars(*paths)
    assert [x.key for x in source] == [f"{i:04d}" for i in range(34)]
    assert clocks[0] > 0.19  # that the first has waited


def test_shards_that_wait_for_python_take_turns(tmp_path, monkeypatch):
    paths, opening = write_shards(tmp_path, 17, 2), webdataset.open_shard
    now, most = [], []

    def counted(*args):
        now.append(args)
        most.append(len(now))
        time.sleep(0.01)  # lets others begin, if they may
        now.pop()
        return opening(*args)

    monkeypatch.setattr(webdataset, "at_once", lambda wall_s, cpu_s: 2)
    monkeypatch.setattr(webdataset, "open_shard", counted)
    assert [x.key for x in open_tars(*paths)] == [f"{i:04d}" for i in range(34)]
    assert most[0] == 1 and max(most) == 2


def test_as_many_at_once_as_one_waits():
    assert webdataset.at_once(wall_s=3.0, cpu_s=3.0) == 1
    assert webdataset.at_once(wall_s=3.0, cpu_s=0.2) == 15
    assert webdataset.at_once(wall_s=3.0, cpu_s=0.0) == webdataset.THREADS
    assert webdataset.at_once(wall_s=0.0, cpu_s=0.0) == 1


def test_hosts_index_different_shards_first(tmp_path, monkeypatch):
    paths, orders = write_shards(tmp_path, 12, 1), []
    opening = webdataset.open_shard
    monkeypatch.setattr(webdataset, "THREADS", 1)
    monkeypatch.setattr(
        webdataset, "open_shard", lambda p, *rest: orders[-1].append(p) or opening(p, *rest)
    )
    for host in ("host-0", "host-1", "host-0"):
        monkeypatch.setattr(webdataset.socket, "gethostname", lambda host=host: host)
        orders.append([])
        assert [x.key for x in open_tars(*paths)] == [f"{i:04d}" for i in range(12)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == paths


def test_a_damaged_shard_ends_the_opening(tmp_path, monkeypatch):
    paths, opened, told = write_shards(tmp_path, 12, 1), [], threading.Event()
    pool = webdataset.concurrent.futures.ThreadPoolExecutor
    shutdown = pool.shutdown

    def first_fails(path, *_):
        opened.append(path)
        if len(opened) == 1:
            raise UserError(f"{path}: damaged")
        told.wait(60)

    def tell(self, **options):
        shutdown(self, **{**options, "wait": False})
        told.set()
        shutdown(self)

    monkeypatch.setattr(webdataset, "THREADS", 1)
    monkeypatch.setattr(webdataset, "open_shard", first_fails)
    monkeypatch.setattr(pool, "shutdown", tell)
    with pytest.raises(UserError, match="damaged"):
        open_tars(*paths)
    assert len(opened) <= 2


def test_ctrl_c_does_not_wait_for_whole_shards(tmp_path, monkeypatch):
    """Nor for those that no thread has begun."""
    paths, walked, ended, began = write_shards(tmp_path, 12, 4), [], [], threading.Event()

    def long(path):
        walked.append(path)
        if len(walked) == 1:  # alone
            return
        began.set()
        yield from itertools.repeat(tar.Member("README", 0, 1), 10_000_000)
        ended.append(path)

    def interrupted(_):
        began.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(webdataset, "THREADS", 2)
    monkeypatch.setattr(tar, "members", long)
    monkeypatch.setattr(webdataset.concurrent.futures, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_tars(*paths)
    assert began.is_set() and not ended and len(walked) <= 5


def test_what_takes_long_tells_how_far_it_is(tmp_path, monkeypatch, capsys):
    paths = write_shards(tmp_path)
    monkeypatch.setattr(webdataset, "QUIET_S", math.inf)
    open_tars(*paths)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(webdataset, "QUIET_S", -1)
    open_tars(*paths)
    lines = capsys.readouterr().err.splitlines()
    assert "looking for shard 3/3" in lines and lines[-1] == "opening shard 3/3"
    monkeypatch.setattr("clip_jax.sharding.processes.lead", lambda: False)
    open_tars(*paths)
    assert capsys.readouterr().err == ""
