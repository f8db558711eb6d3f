"""Folders of images in their three layouts."""

import json
import os
import pickle
import shutil

import pytest

from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import BadRecord
from clip_jax.data.sources.folder import open_folder
from clip_jax.errors import UserError


def _write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def _open(*paths, **options):
    return open_folder(SplitConfig(kind="folder", paths=tuple(map(str, paths)), **options), "")


def _all(source):
    return [(x.key, x.image, x.texts, x.fields) for x in (source[i] for i in range(len(source)))]


def test_csv(tmp_path):
    table = (
        '\ufefffile_name,caption,label\r\nimg/a.jpg,"A, ""cat""",3\r\n\r\nb.png, dog\u00e9 ,x\r\n'
    )
    _write(tmp_path, {"captions.csv": table, "img/a.jpg": "A", "b.png": "B"})
    source = _open(tmp_path)
    assert _all(source) == [
        ("img/a.jpg", b"A", ('A, "cat"',), {"label": "3"}),
        ("b.png", b"B", ("dog\u00e9",), {"label": "x"}),
    ]
    assert source.texts(1) == ("dog\u00e9",)


def test_tsv_with_named_columns(tmp_path):
    _write(tmp_path, {"x.tsv": "image\turl\tsentence\nu.jpg\ta.jpg\tone\n", "a.jpg": "A"})
    source = _open(tmp_path, image_field="url", caption_field="sentence")
    assert _all(source) == [("a.jpg", b"A", ("one",), {"image": "u.jpg"})]


def test_jsonl_with_several_captions(tmp_path):
    rows = [
        {"image": "a.jpg", "captions": ["one", " two", ""], "n": 1, "ok": True, "f": 1.5, "l": [1]},
        {"image": "a.jpg", "captions": "three"},
    ]
    lines = "".join(json.dumps(r) + "\n\n" for r in rows)
    _write(tmp_path, {"metadata.jsonl": lines, "a.jpg": "A"})
    assert _all(_open(tmp_path)) == [
        ("a.jpg", b"A", ("one", "two"), {"n": 1, "ok": 1}),
        ("a.jpg", b"A", ("three",), {}),
    ]


def test_rows_that_cannot_be_used_keep_their_number(tmp_path):
    rows = [{"image": "no.jpg", "text": "t"}, {"image": "a.jpg", "text": " "}, {"text": "t"}]
    rows += [{"image": "a.jpg"}, {"image": 5, "text": "t"}, {"image": "x\0y", "text": "t"}]
    rows += [{"image": "e.jpg", "text": "t"}, {"image": "a.jpg", "text": "t"}]
    lines = "\n".join(map(json.dumps, rows))
    _write(tmp_path, {"m.jsonl": lines, "a.jpg": "A", "e.jpg": ""})
    source = _open(tmp_path)
    assert len(source) == 8
    for i in range(7):
        with pytest.raises(BadRecord):
            source[i]
    assert source[7].image == b"A"
    assert [source.texts(i) for i in (0, 1)] == [("t",), ()]


@pytest.mark.parametrize(
    "path", ["../out.jpg", "/etc/passwd", "in/../../out.jpg", "link.jpg", "d/x"]
)
def test_paths_may_not_leave_the_folder(tmp_path, path):
    _write(tmp_path, {"out.jpg": "X", "data/in/a.jpg": "A", "far/x": "X"})
    _write(tmp_path, {"data/t.csv": f"image,text\nin/a.jpg,t\n{path},t\n"})
    os.symlink("../out.jpg", tmp_path / "data/link.jpg")
    os.symlink("../far", tmp_path / "data/d")
    with pytest.raises(UserError, match=r"t\.csv line 3: .*outside"):
        _open(tmp_path / "data")


def test_links_inside_the_folder_are_fine(tmp_path):
    _write(tmp_path, {"data/in/a.jpg": "A", "data/t.csv": "image,text\nl.jpg,t\nin/../m/a.jpg,t\n"})
    os.symlink("in/a.jpg", tmp_path / "data/l.jpg")
    os.symlink("in", tmp_path / "data/m")
    os.symlink("data", tmp_path / "other")
    assert [x[1] for x in _all(_open(tmp_path / "other"))] == [b"A", b"A"]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("t.csv", "pic,text\na,b\n", r"no column 'image' \(got pic, text\); name one with image_f"),
        ("t.csv", "image,txt\na,b\n", r"no column 'caption' \(got image, txt\)"),
        ("t.csv", "image,text\na,b,c\n", "line 2: 3 cells under 2 columns"),
        ("t.csv", 'image,text\na,"b\n', "line 2: .*quotes"),
        ("t.csv", "image,text,text\na,b,c\n", "two columns have one name"),
        ("t.jsonl", '{"image": "a", "text": "b"}\n{\n', "line 2: not JSON"),
        ("t.jsonl", "[1]\n", "line 1: not an object"),
    ],
)
def test_tables_that_are_refused(tmp_path, name, table, message):
    _write(tmp_path, {name: table})
    with pytest.raises(UserError, match=message) as e:
        _open(tmp_path)
    assert "\n" not in str(e.value)


def test_a_wrong_column_name_gets_a_hint(tmp_path):
    _write(tmp_path, {"t.csv": "picture,text\na,b\n"})
    with pytest.raises(UserError, match="did you mean 'picture'"):
        _open(tmp_path, image_field="pictures")


def test_two_tables_are_refused(tmp_path):
    _write(tmp_path, {"a.csv": "image,text\n", "b.jsonl": ""})
    with pytest.raises(UserError, match=r"several tables \(a.csv, b.jsonl\)"):
        _open(tmp_path)


def test_class_folders(tmp_path):
    _write(tmp_path, {"polar_bear/2.JPG": "B2", "polar_bear/10.png": "B1", "cat/1.jpg": "C"})
    _write(tmp_path, {"cat/notes.txt": "x", ".cache/1.jpg": "x", "cat/.1.jpg": "x", "README": "x"})
    (tmp_path / "ant").mkdir()  # an empty class keeps its number
    bear = ("a drawing of a polar bear.",)
    assert _all(_open(tmp_path, caption_template="a drawing of a {}.")) == [
        ("cat/1.jpg", b"C", ("a drawing of a cat.",), {"label": 1, "name": "cat"}),
        ("polar_bear/10.png", b"B1", bear, {"label": 2, "name": "polar bear"}),
        ("polar_bear/2.JPG", b"B2", bear, {"label": 2, "name": "polar bear"}),
    ]


def test_classes_of_several_folders_share_their_numbers(tmp_path):
    _write(tmp_path, {"a/dog/1.jpg": "1", "b/dog/1.jpg": "2", "b/cat/1.jpg": "3"})
    rows = _all(_open(tmp_path / "a", tmp_path / "b"))
    assert [(image, f["label"]) for _, image, _, f in rows] == [(b"1", 1), (b"3", 0), (b"2", 1)]


@pytest.mark.parametrize("template", ["a {} and {}", "a {name}", "a {"])
def test_bad_templates(tmp_path, template):
    _write(tmp_path, {"cat/1.jpg": "C"})
    with pytest.raises(UserError, match="caption_template"):
        _open(tmp_path, caption_template=template)


@pytest.mark.parametrize("extra", [{}, {"train/9.jpg": "x"}])
def test_the_folder_above_is_named(tmp_path, extra):
    _write(tmp_path, {"train/cat/1.jpg": "C", "test/cat/1.jpg": "C", **extra})
    with pytest.raises(UserError, match=r"test: holds folders of images, no images; give it"):
        _open(tmp_path)


def test_captions_beside_images(tmp_path):
    _write(tmp_path, {"dog2.jpg": "D2", "dog2.txt": "second\n", "dog1.png": "D1", "x.txt": "?"})
    _write(tmp_path, {"dog1.txt": "\ufefffirst", "dog3.jpg": "D3"})
    source = _open(tmp_path)
    assert len(source) == 3
    assert _all([source[0], source[1]]) == [
        ("dog1.png", b"D1", ("first",), {}),
        ("dog2.jpg", b"D2", ("second",), {}),
    ]
    with pytest.raises(BadRecord, match="caption file"):
        source[2]
    assert source.texts(2) == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": "A"}, "images without captions"),
        ({"a.jpg": "A", "b.txt": "t"}, "images without captions"),
        ({"a.jpg": "A", "a.txt": "t", "cat/b.jpg": "B"}, "separate them"),
        ({"README": "x", "sub/y.txt": "z"}, "no table"),
    ],
)
def test_folders_that_are_refused(tmp_path, files, message):
    _write(tmp_path, files)
    with pytest.raises(UserError, match=message):
        _open(tmp_path)


def test_paths_that_are_refused(tmp_path):
    for path, message in [
        (tmp_path / "none", "No such file"),
        (__file__, "Not a directory"),
        ("gs://bucket/x", "only local folders"),
    ]:
        with pytest.raises(UserError, match=message):
            _open(path)


@pytest.mark.parametrize(
    "files",
    [
        {"t.csv": "image,text,n\na.jpg,one,1\n", "a.jpg": "A"},
        {"cat/1.jpg": "A", "dog/1.jpg": "B"},
        {"a.jpg": "A", "a.txt": "one"},
    ],
)
def test_fingerprint_and_pickle(tmp_path, files):
    _write(tmp_path / "a", files)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / next(iter(files)), ns=(1, 1))
    source = pickle.loads(pickle.dumps(_open(tmp_path / "a")))
    assert _all(source) == _all(_open(tmp_path / "a"))
    assert source.fingerprint == _open(tmp_path / "b").fingerprint
    name, data = next((n, d) for n, d in files.items() if not n.endswith(".jpg") or "/" in n)
    _write(tmp_path / "b", {name: data.replace("one", "other") if "one" in data else data + "!"})
    assert source.fingerprint != _open(tmp_path / "b").fingerprint
