"""Parquet parts: what is in them, and that neither batches, parts nor kills change it."""

import dataclasses
import io
import json
import tarfile

import embedding
import jax
import numpy as np
import pytest

import tiny
from clip_jax import files
from clip_jax.errors import UserError
from clip_jax.inference.index import Index, model_digest, read_index

COLUMNS = [
    "key",
    "path",
    "caption",
    "image_embedding",
    "text_embedding",
    "similarity",
    "error",
]


@pytest.fixture
def flawed(tmp_path):
    """21 pairs; of number 3 the image is damaged, of 4 it is missing, of 5 the caption."""
    folder = tiny.write_folder(tmp_path / "flawed", 21)
    (folder / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (folder / "0004.png").unlink()
    text = (folder / "captions.csv").read_text()
    (folder / "captions.csv").write_text(text.replace("0005.png,a black square", "0005.png,"))
    return folder


def test_rows_are_what_the_model_says(model, flawed, tmp_path):
    done = embedding.write(model, flawed, tmp_path / "out", part_size=8)
    assert (done.num_rows, done.num_parts, done.stood) == (21, 3, 0)
    assert done.errors == {
        "image damaged or cut": 1,
        "image file: No such file or directory": 1,
        "caption missing or empty": 1,
    }
    table = embedding.table(tmp_path / "out")
    assert table.column_names == COLUMNS
    names = [f"{i:04d}.png" for i in range(21)]
    assert table.column("key").to_pylist() == names
    assert table.column("path").to_pylist() == [str(flawed / n) for n in names]
    colours = [list(tiny.COLOURS)[i % 8] for i in range(21)]
    captions = [None if i == 5 else f"a {n} square" for i, n in enumerate(colours)]
    assert table.column("caption").to_pylist() == captions
    good = [i for i in range(21) if i not in (3, 4)]
    image, text = (embedding.column(table, f"{x}_embedding") for x in ("image", "text"))
    assert image.shape == (21, 16)
    want = model.embed_images([tiny.png(i, tiny.COLOURS[colours[i]]) for i in good])
    np.testing.assert_allclose(image[good], want, atol=1e-6)
    told = [x for x in captions if x]
    np.testing.assert_allclose(np.delete(text, 5, 0), model.embed_texts(told), atol=1e-6)
    assert np.isnan(image[[3, 4]]).all() and np.isnan(text[5]).all()

    a, b = image.astype(np.float64), text.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    similarity = table.column("similarity").to_pylist()
    assert [i for i, x in enumerate(similarity) if x is None] == [3, 4, 5]
    np.testing.assert_allclose(np.array(similarity, float), cosine, atol=1e-6)
    assert [i for i, x in enumerate(table.column("error").to_pylist()) if x] == [3, 4, 5]


@pytest.mark.parametrize(("batch_size", "part_size"), [(1, 100), (3, 100), (64, 100), (3, 4)])
def test_sizes_change_nothing(model, flawed, tmp_path, batch_size, part_size):
    embedding.write(model, flawed, tmp_path / "a", part_size=8)
    other = dataclasses.replace(model, batch_size=batch_size)
    embedding.write(other, flawed, tmp_path / "b", part_size=part_size)
    a, b = embedding.table(tmp_path / "a"), embedding.table(tmp_path / "b")
    for name in ("key", "path", "caption", "error"):
        assert a.column(name).to_pylist() == b.column(name).to_pylist()
    for name in ("image_embedding", "text_embedding"):
        np.testing.assert_allclose(embedding.column(a, name), embedding.column(b, name), atol=2e-6)


def test_a_restart_makes_the_missing_parts_alone(model, flawed, tmp_path, monkeypatch):
    embedding.write(model, flawed, tmp_path / "whole", part_size=4)
    out, write = tmp_path / "out", files.write_bytes

    def killed(path, data):
        if path.endswith("part-00003.parquet"):
            (out / "part-00003.parquet.tmp-0a1b2c3d").write_bytes(data[:100])
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        embedding.write(model, flawed, out, part_size=4)
    monkeypatch.undo()
    assert len(embedding.parts(out)) == 4  # the torn one too

    read, preprocess = [], type(model).preprocess

    def counted(self, image):
        read.extend([image] if isinstance(image, bytes) else [])
        return preprocess(self, image)

    monkeypatch.setattr(type(model), "preprocess", counted)
    said = io.StringIO()
    done = embedding.write(model, flawed, out, part_size=4, stream=said)
    assert done.stood == 3 and "3 of 6 parts stand already" in said.getvalue()
    assert len(read) == 9  # records 12 to 20
    assert sum(done.errors.values()) == 3
    assert embedding.parts(out) == embedding.parts(tmp_path / "whole")
    assert sorted(p.name for p in out.iterdir() if "part" not in p.name) == ["embed.json"]


def test_a_damaged_part_is_made_once_more(model, flawed, tmp_path):
    embedding.write(model, flawed, tmp_path, part_size=8)
    want = embedding.parts(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1 no more")
    said = io.StringIO()
    assert embedding.write(model, flawed, tmp_path, part_size=8, stream=said).stood == 2
    assert "part-00001.parquet: damaged, made once more" in said.getvalue()
    assert embedding.parts(tmp_path) == want


def test_other_embeddings_are_never_mixed_in(model, flawed, tmp_path):
    out = tmp_path / "out"
    embedding.write(model, flawed, out, part_size=8)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    params = model.params | {"logit": jax.tree.map(lambda x: x + 1, model.params["logit"])}
    (tmp_path / "more").mkdir()
    more = tiny.write_folder(tmp_path / "more", 22)
    for args, changed in (
        ((dataclasses.replace(model, params=params), flawed, {"part_size": 8}), "model: was the"),
        ((model, more, {"part_size": 8}), "data: was"),
        ((model, flawed, {"part_size": 9}), "part_size: was 8, now 9"),
        ((model, flawed, {"part_size": 8, "what": "text"}), "what: was both, now text"),
    ):
        with pytest.raises(UserError, match=changed) as e:
            embedding.write(args[0], args[1], out, **args[2])
        assert "\n" not in str(e.value) and str(e.value).count("was ") == 1
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / "embed.json").unlink()
    with pytest.raises(UserError, match=r"holds parts but no embed\.json"):
        embedding.write(model, flawed, out, part_size=8)


def test_bare_images(model, tmp_path):
    for i, name in enumerate(["b.png", "a/1.png", "a/deep/2.PNG"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny.png(i, (9, 9, 9)))
    assert not embedding.write(model, tmp_path / "in", tmp_path / "out", what="image").errors
    table = embedding.table(tmp_path / "out")
    assert table.column("key").to_pylist() == ["b.png", "a/1.png", "a/deep/2.PNG"]
    for name in ("caption", "text_embedding", "similarity", "error"):
        assert table.column(name).null_count == 3
    assert table.column("image_embedding").null_count == 0


def test_texts_alone_read_no_image(model, flawed, tmp_path):
    for picture in flawed.glob("*.png"):
        picture.write_bytes(b"")
    done = embedding.write(model, flawed, tmp_path / "out", what="text")
    assert done.errors == {"caption missing or empty": 1}
    table = embedding.table(tmp_path / "out")
    assert table.column("image_embedding").null_count == 21
    assert table.column("text_embedding").null_count == 1


def test_tars_and_odd_text(model, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for name, data in (
            ("x#1.png", tiny.png(1, (9, 9, 9))),
            ("x#1.json", b'{"caption": "half \\ud800 pair"}'),
            ("y.json", b'{"caption": "alone"}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    done = embedding.write(
        model, tmp_path / "a.tar", tmp_path / "out", caption_field="json:caption"
    )
    assert done.errors == {"image missing or empty": 1}
    rows = embedding.table(tmp_path / "out").select(["key", "path", "caption", "error"])
    assert rows.to_pylist() == [
        {
            "key": "x#1",
            "path": f"{tmp_path}/a.tar#x#1",
            "caption": "half ? pair",
            "error": None,
        },
        {
            "key": "y",
            "path": f"{tmp_path}/a.tar#y",
            "caption": "alone",
            "error": "image missing or empty",
        },
    ]


def test_embed_json_says_what_it_is(model, flawed, tmp_path):
    embedding.write(model, flawed, tmp_path, part_size=8)
    known = json.loads((tmp_path / "embed.json").read_text())
    assert list(known) == [f.name for f in dataclasses.fields(Index)]
    assert known["embed_dim"] == 16 and known["data"]["paths"] == [str(flawed)]
    index = read_index(str(tmp_path))
    assert index is not None and index.num_parts == 3 and index.records(2) == range(16, 21)
    for change, message in (
        ({"version": 2}, "layout version 2"),
        ({"part_sise": 3}, "part_sise: no such field; did you mean 'part_size'"),
    ):
        (tmp_path / "embed.json").write_text(json.dumps(known | change))
        with pytest.raises(UserError, match=message):
            read_index(str(tmp_path))
    del known["model"]
    for text in (json.dumps(known), "{", "[]"):
        (tmp_path / "embed.json").write_text(text)
        with pytest.raises(UserError, match="embed.json"):
            read_index(str(tmp_path))


def test_the_digest_is_of_the_weights(model):
    whole = model_digest(model)
    alone = jax.device_put(jax.device_get(model.params), jax.devices()[0])
    assert model_digest(dataclasses.replace(model, params=alone, batch_size=7)) == whole
    for path in ("image", "text"):
        changed = jax.tree.map(lambda x: x + 0, model.params)
        leaves, tree = jax.tree.flatten(changed[path])
        leaves[-1] = leaves[-1] * 1.0001
        changed[path] = jax.tree.unflatten(tree, leaves)
        assert model_digest(dataclasses.replace(model, params=changed)) != whole
