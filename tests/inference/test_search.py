"""Search over parts against brute force, its refusals, and its page."""

import base64
import dataclasses
import io
import re
import shutil
import tarfile

import embedding
import jax
import numpy as np
import pytest
from inert import Page, assert_inert
from PIL import Image

import tiny
from clip_jax.errors import UserError
from clip_jax.inference.search import check_model, open_index, search, thumbnail, write_page

CONTROL = "\x1b[31m"


@pytest.fixture(scope="module")
def folder(model, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    embedding.write(model, pairs, out, part_size=10)
    return str(out)


def test_equals_brute_force(model, folder):
    table = embedding.table(folder)
    z = embedding.column(table, "image_embedding").astype(np.float64)
    index = open_index(folder)
    for text, top in (("a red square", 5), ("blue", 64), ("a green square", 100), ("x", 1)):
        query = model.embed_texts([text])[0]
        found = search(folder, index, query, top)
        cosine = z @ query.astype(np.float64)
        want = np.argsort(-cosine, kind="stable")[:top]
        assert found.num_images == 64 and found.num_missing == 0
        assert len(found.hits) == len(want)
        got = [x.similarity for x in found.hits]
        np.testing.assert_allclose(got, cosine[want], atol=1e-6)
        assert got == sorted(got, reverse=True)
        row = {x["key"]: x for x in table.to_pylist()}
        for hit in found.hits:
            assert hit.caption == row[hit.key]["caption"] and hit.path == row[hit.key]["path"]
            np.testing.assert_allclose(hit.similarity, cosine[int(hit.key[:4])], atol=1e-6)


def test_finds_the_colour_by_text_and_by_picture(model, folder):
    index = open_index(folder)
    for query in (
        model.embed_texts(["a red square"]),
        model.embed_images([tiny.png(999, tiny.COLOURS["red"])]),
    ):
        captions = [x.caption for x in search(folder, index, query[0], 6).hits]
        assert captions.count("a red square") >= 5


def test_ties_go_by_key_over_all_parts(model, tmp_path):
    keys = [f"{(7 * i) % 23:02d}.png" for i in range(23)]
    lines = ["image,caption"]
    (tmp_path / "in").mkdir()
    for key in keys:  # all the same picture
        (tmp_path / "in" / key).write_bytes(tiny.png(0, (200, 10, 10)))
        lines.append(f"{key},same")
    (tmp_path / "in" / "captions.csv").write_text("\n".join(lines))
    # One row a device: equal pictures in unlike rows of a matrix product may differ in a last bit.
    model = dataclasses.replace(model, batch_size=8)
    for part_size in (4, 100):
        out = str(tmp_path / f"out{part_size}")
        embedding.write(model, tmp_path / "in", out, part_size=part_size)
        found = search(out, open_index(out), model.embed_texts(["red"])[0], 9)
        assert len({x.similarity for x in found.hits}) == 1
        assert [x.key for x in found.hits] == sorted(keys)[:9]


def test_rows_without_an_image_are_passed_over(model, tmp_path):
    pairs = tiny.write_folder(tmp_path / "in", 8)
    (pairs / "0000.png").write_bytes(b"no picture")
    embedding.write(model, pairs, tmp_path / "out", part_size=3)
    out = str(tmp_path / "out")
    found = search(out, open_index(out), model.embed_texts(["a red square"])[0], 20)
    assert sorted(x.key for x in found.hits) == [f"{i:04d}.png" for i in range(1, 8)]
    for i in range(1, 8):
        (pairs / f"{i:04d}.png").write_bytes(b"no picture")
    out = str(tmp_path / "none")
    embedding.write(model, pairs, out)
    with pytest.raises(UserError, match="no image is embedded"):
        search(out, open_index(out), np.zeros(16, np.float32), 3)


def test_parts_that_are_missing_are_counted(model, folder, tmp_path):
    out = str(tmp_path / "out")
    shutil.copytree(folder, out)
    (tmp_path / "out/part-00002.parquet").unlink()
    found = search(out, open_index(out), model.embed_texts(["red"])[0], 64)
    assert (found.num_images, found.num_missing) == (54, 1)
    (tmp_path / "out/part-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00003\.parquet: cannot be read") as e:
        search(out, open_index(out), model.embed_texts(["red"])[0], 64)
    assert "\n" not in str(e.value)
    for part in (tmp_path / "out").glob("part-*"):
        part.unlink()
    with pytest.raises(UserError, match="no part is written yet"):
        search(out, open_index(out), model.embed_texts(["red"])[0], 64)


def test_what_cannot_be_searched(model, pairs, folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_index(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no embed\.json in it"):
        open_index(str(tmp_path))
    embedding.write(model, pairs, tmp_path / "texts", what="text")
    with pytest.raises(UserError, match="texts alone"):
        open_index(str(tmp_path / "texts"))
    other = jax.tree.map(lambda x: x * 1.01, model.params)
    index = open_index(folder)
    check_model(folder, index, model, "same")
    with pytest.raises(UserError, match="embedded by another model .*got other, weights"):
        check_model(folder, index, dataclasses.replace(model, params=other), "other")


# The page


def page(model, out, tmp_path, query, **asked):
    index = open_index(str(out))
    found = search(str(out), index, query, 12)
    path = tmp_path / "page.html"
    write_page(
        str(path), str(out), index, found, **({"text": "", "image": ""} | asked), index_dir=""
    )
    text = path.read_text()
    parsed = Page(text)
    assert_inert(text, parsed)
    return text, parsed


def jpegs(parsed):
    data = [base64.b64decode(x["src"].partition(",")[2]) for x in parsed.all("img")]
    return [Image.open(io.BytesIO(x)) for x in data]


def test_page_of_a_folder(model, tmp_path):
    bad = '<script>alert(1)</script> & "co" ' + CONTROL
    pairs = tiny.write_folder(tmp_path / "in", 4)
    table = (pairs / "captions.csv").read_text()
    quoted = '"' + bad.replace('"', '""') + '"'
    (pairs / "captions.csv").write_text(table.replace("a red square", quoted))
    (pairs / "0001.png").write_bytes(tiny.png(1, (30, 200, 30), size=700))
    embedding.write(model, pairs, tmp_path / "out")
    (pairs / "0002.png").unlink()
    query = model.embed_texts([bad])[0]
    text, parsed = page(model, tmp_path / "out", tmp_path, query, text=bad)
    shown = bad.replace("\x1b", "").strip()
    assert parsed.all("h1")[0]["text"].strip() == shown
    assert "<script" not in text
    assert "http:" not in text and "https:" not in text
    assert "//" not in re.sub('base64,[^"]*', "", text)
    assert shown in [x["text"].strip() for x in parsed.all("p", "caption")]
    (gone,) = parsed.all("div", "gone")
    assert str(pairs / "0002.png") in gone["text"]
    assert sorted(x.size for x in jpegs(parsed)) == [(16, 16), (16, 16), (256, 256)]
    assert [x["class"] for x in parsed.all("img")].count("small") == 2
    ranks = [float(x["value"]) for x in parsed.all("data")]
    assert len(ranks) == 4 and ranks == sorted(ranks, reverse=True)


def test_page_of_tars_for_a_picture(model, tmp_path):
    tar = tmp_path / "a#b.tar"
    with tarfile.open(tar, "w") as out:
        for i, key in enumerate(["x", "y#z"]):
            data = tiny.png(i, list(tiny.COLOURS.values())[i])
            for name, member in ((f"{key}.png", data), (f"{key}.txt", b"a square")):
                info = tarfile.TarInfo(name)
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    embedding.write(model, tar, tmp_path / "out")
    picture = tmp_path / "red.png"
    picture.write_bytes(tiny.png(0, tiny.COLOURS["red"]))
    query = model.embed_images([str(picture)])[0]
    _, parsed = page(model, tmp_path / "out", tmp_path, query, image=str(picture))
    assert len(parsed.all("img")) == 3 and not parsed.all("div", "gone")
    asked, first, second = (np.asarray(x).mean((0, 1)) for x in jpegs(parsed))
    np.testing.assert_allclose(asked, tiny.COLOURS["red"], atol=8)
    np.testing.assert_allclose(first, tiny.COLOURS["red"], atol=8)
    np.testing.assert_allclose(second, tiny.COLOURS["green"], atol=8)
    tar.unlink()
    _, parsed = page(model, tmp_path / "out", tmp_path, query, image=str(picture))
    assert len(parsed.all("div", "gone")) == 2


def test_thumbnails_of_odd_shapes():
    out = io.BytesIO()
    Image.new("RGBA", (2000, 10), (1, 2, 3, 4)).save(out, "png")
    jpeg, side = thumbnail(out.getvalue())
    assert side == 256 and Image.open(io.BytesIO(jpeg)).size == (256, 1)
