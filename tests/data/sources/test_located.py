"""Records one by one, usable or not, and their images once more by place."""

import pytest
from tiny_tars import write_tar

import tiny
from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import BadRecord, Place
from clip_jax.data.sources.located import Gallery, guess_kind, open_located
from clip_jax.errors import UserError


def _reads_its_places(cfg, images):
    """Every image is found again by its place."""
    data, gallery = open_located(cfg, index_dir=""), Gallery(cfg, index_dir="")
    assert [data.image(i) for i in range(len(data))] == images
    assert [gallery.read(data.place(i).image) for i in range(len(data))] == images
    return data, gallery


def test_folder(tmp_path):
    tiny.write_folder(tmp_path, 3)
    cfg = SplitConfig(kind="folder", paths=(str(tmp_path),))
    images = [(tmp_path / f"{i:04d}.png").read_bytes() for i in range(3)]
    data, gallery = _reads_its_places(cfg, images)
    assert data.place(1) == Place("0001.png", str(tmp_path / "0001.png"))
    (tmp_path / "0001.png").unlink()
    for read in (lambda: data.image(1), lambda: gallery.read(data.place(1).image)):
        with pytest.raises(BadRecord):
            read()
    assert data.texts(1) == ("a green square",)


def test_tars(tmp_path):
    a = write_tar(tmp_path / "a.tar", [("x#1.jpg", b"X"), ("y.txt", b"t")])
    b = write_tar(tmp_path / "b#c.tar", [("x#1.jpg", b"Z"), ("x#1.txt", b"t")])
    cfg = SplitConfig(kind="webdataset", paths=(a, b))
    data, gallery = _reads_its_places(cfg, [b"X", b"", b"Z"])
    assert data.place(2) == Place("x#1", f"{b}#x#1")
    for place in (f"{a}#no", f"{tmp_path}/no.tar#y", "y", ""):
        with pytest.raises(BadRecord):
            gallery.read(place)


def test_tfds():
    cfg = SplitConfig(kind="tfds", paths=("digits",), split="test[:3]")
    data = open_located(cfg, index_dir="")
    gallery = Gallery(cfg, index_dir="")
    for i in range(3):
        assert data.place(i).key == str(i) and data.place(i).image.endswith(f"#{i}")
        assert gallery.read(data.place(i).image) == data.image(i) != b""
    for place in ("digits#3", "digits#x", "nowhere#1", "#1"):
        with pytest.raises(BadRecord):
            gallery.read(place)


def test_a_source_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_pairs.py").write_text(
        "from clip_jax.data.record import BadRecord, Example\n"
        "class Own(list):\n"
        "    fingerprint = 'f'\n"
        "    def __getitem__(self, i):\n"
        "        if i == 1: raise BadRecord('torn')\n"
        "        return Example('k', b'I', ('t',), {})\n"
        "    def texts(self, i): return ('t',)\n"
        "def build(cfg, index_dir): return Own([0, 0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = open_located(SplitConfig(kind="own_pairs:build"), index_dir="")
    assert (len(data), data.place(0), data.image(0)) == (2, Place("0", ""), b"I")
    assert data.texts(1) == ("t",) and data.fingerprint == "f"
    with pytest.raises(BadRecord, match="torn"):
        data.image(1)


def test_kinds_by_their_look(tmp_path):
    (tmp_path / "built/1.0.0").mkdir(parents=True)
    (tmp_path / "built/1.0.0/dataset_info.json").touch()
    (tmp_path / "table").mkdir()
    (tmp_path / "table/captions.csv").touch()
    (tmp_path / "bare/deep").mkdir(parents=True)
    (tmp_path / "bare/a.jpg").touch()
    (tmp_path / "classes/cat").mkdir(parents=True)
    (tmp_path / "classes/cat/a.jpg").touch()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a.tar").touch()
    for path, captions, kind in (
        ("digits", True, "tfds"),
        (str(tmp_path / "built"), True, "tfds"),
        (str(tmp_path / "built/1.0.0"), False, "tfds"),
        ("x/{00..09}.tar", True, "webdataset"),
        ("x/*.tar", False, "webdataset"),
        (str(tmp_path / "tars"), True, "webdataset"),
        (str(tmp_path / "table"), False, "folder"),
        (str(tmp_path / "bare"), True, "images"),
        (str(tmp_path / "classes"), True, "folder"),
        (str(tmp_path / "classes"), False, "images"),
        (str(tmp_path / "bare"), False, "images"),
        ("photos/*.jpg", True, "images"),
        ("nowhere", True, "folder"),
        ("", True, "folder"),
    ):
        assert guess_kind([path], captions=captions) == kind, path
    with pytest.raises(UserError, match=r"name the tars in it, e\.g\."):
        open_located(SplitConfig(kind="webdataset", paths=(str(tmp_path / "tars"),)), index_dir="")
