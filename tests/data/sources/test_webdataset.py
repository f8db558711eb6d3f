"""Tars as a source: grouping, fields, the cached index, and messages."""

import functools
import io
import json
import os
import pickle
import tarfile
import threading
from pathlib import Path

import pytest

from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import BadRecord
from clip_jax.data.sources import tar, webdataset
from clip_jax.data.sources.webdataset import expand, open_webdataset, split_name
from clip_jax.errors import UserError


def _tar(path, members):
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return str(path)


def _sample(n, **fields):
    image, text = f"jpeg {n}".encode(), f"caption {n}\n".encode()
    json_text = json.dumps({"label": n, **fields}).encode()
    return [(f"{n:04d}.jpg", image), (f"{n:04d}.txt", text), (f"{n:04d}.json", json_text)]


def _shards(folder, count=3, each=4):
    return [
        _tar(folder / f"s-{k:05d}.tar", sum((_sample(k * each + i) for i in range(each)), []))
        for k in range(count)
    ]


def _open(*paths, index_dir="", **options):
    cfg = SplitConfig(kind="webdataset", paths=tuple(map(str, paths)), **options)
    return open_webdataset(cfg, index_dir)


def test_every_sample_has_its_number(tmp_path):
    _shards(tmp_path)
    source = _open(tmp_path / "s-{00000..00002}.tar")
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
    a, b = _sample(1), _sample(2)
    path = _tar(tmp_path / "a.tar", [a[0], b[1], b[2], a[2], b[0], a[1]])
    source = _open(path)
    assert [source[i].key for i in range(2)] == ["0001", "0002"]
    assert [source[i].texts for i in range(2)] == [("caption 1",), ("caption 2",)]
    assert [source[i].image for i in range(2)] == [b"jpeg 1", b"jpeg 2"]


def test_keys_of_odd_names():
    assert split_name("x.y/001.Left.JPG") == ("x.y/001", "left.jpg")
    assert split_name("./0.jpg") == ("./0", "jpg")
    assert split_name("../../etc/x.jpg") == ("../../etc/x", "jpg")
    for name in ("README", ".hidden.jpg", "a/.jpg", "__meta__.json", "folder.d/"):
        assert split_name(name)[1] == ""


def test_unusable_samples_keep_their_number(tmp_path):
    link = tarfile.TarInfo("c.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = tmp_path / "a.tar"
    members = [("a.jpg", b"i"), ("b.txt", b"t"), ("c.txt", b"t"), ("d.jpg", b""), ("d.txt", b"t")]
    members += [("e.jpg", b"i"), ("e.txt", b" \n"), ("f.jpg", b"i"), ("f.txt", b"t")]
    members += [("f.json", b"{"), ("g.jpg", b"i"), ("g.txt", b"t"), ("g.json", b"[1]")]
    members += [("ok.jpg", b"i"), ("ok.txt", b"t")]
    _tar(path, members)
    with tarfile.open(path, "a") as out:
        out.addfile(link)
    source, reasons = _open(path), []
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
    path = _tar(
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
    default = _open(path)[0]
    assert (default.image, default.texts) == (b"jpg", ("txt",))
    assert default.fields == {"alt": "alt", "w": 3, "ok": 1}
    assert _open(path, image_field="gif, left.png,jpg", caption_field="cap")[0].image == b"left"
    assert _open(path, caption_field=".CAP")[0].texts == ("cap",)
    both = _open(path, caption_field="json:caption")
    assert both[0].texts == both.texts(0) == ("one", "two")
    alt = _open(path, caption_field="json:alt")[0]
    assert (alt.texts, alt.fields) == (("alt",), {"w": 3, "ok": 1})
    assert _open(path, caption_field="json:none").texts(0) == ()


def test_duplicates_are_refused(tmp_path):
    path = _tar(tmp_path / "a.tar", _sample(1) + _sample(2) + [("0001.JPG", b"again")])
    with pytest.raises(UserError, match=r"a\.tar: '0001\.jpg' is there twice"):
        _open(path)


def test_index_is_written_once_and_renewed(tmp_path, monkeypatch):
    path = _shards(tmp_path, 1)[0]
    _open(path)
    assert sorted(os.listdir(tmp_path)) == ["s-00000.tar", "s-00000.tar.idx"]
    walk = tar.members
    monkeypatch.setattr(tar, "members", lambda _: pytest.fail("walked"))
    assert _open(path)[3].key == "0003"
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: _tar(path, _sample(7)),
        lambda: _damage(path + ".idx"),
        lambda: os.truncate(path + ".idx", 50),
    ):
        change()
        walked = []
        monkeypatch.setattr(tar, "members", lambda x, w=walked: w.append(x) or walk(x))
        first = [x.key for x in _open(path)]
        assert walked == [path]
        assert [x.key for x in _open(path)] == first
        assert walked == [path]
    assert first == ["0007"]
    _open(path, caption_field="cap")
    assert walked == [path, path]


def _damage(path):
    with open(path, "r+b") as f:
        f.seek(-3, os.SEEK_END)
        f.write(b"???")


def test_index_goes_elsewhere_where_it_cannot_lie_beside(tmp_path, monkeypatch):
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    path = _shards(data, 1)[0]
    os.mkdir(path + ".idx")  # in the way: the rename fails, as in a read-only folder
    want = [x.image for x in _open(path)]
    assert sorted(os.listdir(data)) == ["s-00000.tar", "s-00000.tar.idx"]
    _open(path, index_dir=str(work))
    assert len(os.listdir(work)) == 1
    monkeypatch.setattr(tar, "members", lambda _: pytest.fail("walked"))
    assert [x.image for x in _open(path, index_dir=str(work))] == want


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
    _shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as e:
        _open(pattern)
    assert "\n" not in str(e.value)


def test_a_shard_given_twice_is_refused(tmp_path):
    path = _shards(tmp_path, 1)[0]
    with pytest.raises(UserError, match="given 2 times"):
        _open(path, tmp_path / "*.tar")


def test_caption_key_must_be_named(tmp_path):
    with pytest.raises(UserError, match="caption_field: no key"):
        _open(_shards(tmp_path, 1)[0], caption_field="json:")


def test_cut_shards_never_lose_samples_silently(tmp_path):
    data = open(_shards(tmp_path, 1)[0], "rb").read()
    complete = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    path = tmp_path / "cut.tar"
    for size in range(0, complete, 100):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="cut.tar"):
            _open(path)
    assert not os.path.exists(str(path) + ".idx")


def test_fingerprint_follows_the_data_not_the_place(tmp_path):
    copies = [tmp_path / "a", tmp_path / "b"]
    prints = []
    for folder in copies:
        folder.mkdir()
        _shards(folder)
        os.utime(folder / "s-00000.tar", ns=(len(prints), 1))
        prints.append(_open(folder / "*.tar").fingerprint)
    assert prints[0] == prints[1] == _open(copies[0] / "*.tar").fingerprint
    others = [
        _open(copies[0] / "s-{00000,00002,00001}.tar"),
        _open(copies[0] / "s-0000[01].tar"),
        _open(copies[0] / "*.tar", image_field="png"),
        _open(copies[0] / "*.tar", caption_field="json:label"),
    ]
    _tar(copies[1] / "s-00000.tar", [(n.replace("0001", "0009"), d) for n, d in _sample(1)])
    others.append(_open(copies[1] / "*.tar"))
    assert len({prints[0], *(x.fingerprint for x in others)}) == 6


def test_pickles_and_serves_many_threads(tmp_path, monkeypatch):
    few = functools.lru_cache(maxsize=2)(webdataset._descriptor.__wrapped__)
    monkeypatch.setattr(webdataset, "_descriptor", few)  # evicts what others are reading
    paths, wrong = _shards(tmp_path, 20, 3), []
    source = pickle.loads(pickle.dumps(_open(*paths)))

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
    monkeypatch.setattr(webdataset.files, "write_bytes", _refuse)  # 300 fsyncs take seconds
    webdataset._descriptor.cache_clear()
    source = _open(*_shards(tmp_path, 300, 1))
    assert [x.key for x in source] == [f"{i:04d}" for i in range(300)]
    assert 0 < _open_below(tmp_path) <= webdataset._MAX_OPEN
    webdataset._descriptor.cache_clear()
    assert _open_below(tmp_path) == 0


def _open_below(folder):
    """Descriptors of this process on files below `folder`: others come and go beside the test."""
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(x).startswith(f"{folder.resolve()}/") for x in links)


def _refuse(path, data):
    raise UserError(f"{path}: the disk is full")


def test_shards_that_vanish_or_change_during_the_run(tmp_path):
    paths = _shards(tmp_path)
    source = _open(*paths)
    os.unlink(paths[0])
    with pytest.raises(BadRecord, match="s-00000.tar: No such file"):
        source[0]
    assert source.texts(0) == ()
    _tar(paths[1], _sample(9))
    with pytest.raises(UserError, match="has changed"):
        source[4]
    assert source[8].key == "0008"
