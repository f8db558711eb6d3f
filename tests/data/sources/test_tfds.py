"""TFDS data sets built here in ArrayRecord, read by us and by TFDS's own feature layer."""

import io
import pickle
import shutil
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import BadRecord
from clip_jax.data.sources import tfds as module
from clip_jax.data.sources.tfds import open_tfds
from clip_jax.errors import UserError

F = tfds.features


def _rows(first, count):
    rng = np.random.default_rng(first)
    for i in range(first, first + count):
        yield (
            i,
            {
                "image": io.BytesIO(b"\xff\xd8\xff jpeg" + rng.bytes(20)),
                "caption": f"caption \u00e9 {i}",
                "texts": [f"{i}.{k}" for k in range(i % 3)],
                "label": i % 2 if i % 5 else -1,
                "count": 10 * i,
                "source": f"file {i}",
                "flag": i % 2 == 0,
                "score": i / 2,
                "boxes": [[i, i]] * (i % 4),
            },
        )


class Tiny(tfds.core.GeneratorBasedBuilder):
    """A bit of every kind of feature."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # TFDS's own needs another package, and there is nothing to download
    FEATURES = {
        "image": F.Image(encoding_format="jpeg"),
        "caption": F.Text(),
        "texts": F.Sequence(F.Text()),
        "label": F.ClassLabel(names=["cat", "dog"]),
        "count": F.Scalar(np.int64),
        "source": F.Text(),
        "flag": F.Scalar(np.bool_),
        "score": F.Scalar(np.float32),
        "boxes": F.Sequence(F.Tensor(shape=(2,), dtype=np.int64)),
    }

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {"train": _rows(0, 40), "validation": _rows(100, 10)}

    def _generate_examples(self):
        raise NotImplementedError


class Plain(Tiny):
    """No captions, and the image under another name."""

    FEATURES = {"picture": F.Image(encoding_format="jpeg"), "label": F.ClassLabel(num_classes=2)}

    def _split_generators(self, dl_manager):
        image = b"\xff\xd8\xff"
        return {"train": [(i, {"picture": io.BytesIO(image), "label": 0}) for i in range(3)]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for builder in (Tiny, Plain):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def _open(path, split="train", **options):
    return open_tfds(SplitConfig(paths=(str(path),), split=split, **options), "")


def _theirs(directory, split):
    builder: Any = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


@pytest.mark.parametrize("split", ["train", "validation", "train+validation", "train[:10%]"])
def test_reads_what_tfds_reads(built, split):
    directory = built / "tiny/1.0.0"
    source, theirs = _open(directory, split), _theirs(directory, split)
    sizes = {"train": 40, "validation": 10, "train+validation": 50, "train[:10%]": 4}
    assert len(source) == len(theirs) == sizes[split]
    seen = set()
    for i in range(len(source)):
        got, want = source[i], theirs[i]
        seen.add(want["count"])
        assert got.image == want["image"]
        assert got.texts == source.texts(i) == (want["caption"].decode(),)
        label = int(want["label"])
        fields = {"label": label, "count": want["count"], "source": want["source"].decode()}
        fields["flag"] = int(want["flag"])
        if label >= 0:
            fields["label_name"] = ["cat", "dog"][label]
        assert got.fields == fields
        assert all(type(x) in (int, str) for x in got.fields.values())
    assert len(seen) == sizes[split]
    for i in (-1, len(source)):
        with pytest.raises(IndexError):
            source[i]


def test_several_captions_and_none(built):
    source = _open(built / "tiny", caption_field="texts")
    for i in range(len(source)):
        n = _theirs(built / "tiny/1.0.0", "train")[i]["count"] // 10
        want = tuple(f"{n}.{k}" for k in range(n % 3))
        assert source.texts(i) == want
        if want:
            assert source[i].texts == want and source[i].fields["caption"] == f"caption \u00e9 {n}"
        else:
            with pytest.raises(BadRecord, match="caption"):
                source[i]


def test_other_names_of_features(built):
    with pytest.raises(UserError, match=r"no image feature 'image' .*image_field \(picture\)"):
        _open(built / "plain")
    with pytest.raises(UserError, match=r"no caption feature 'caption' \(has label, picture\)"):
        _open(built / "plain", image_field="picture")
    with pytest.raises(UserError, match=r"no image feature 'count'"):
        _open(built / "tiny", image_field="count")
    with pytest.raises(UserError, match=r"no caption feature 'score'.*\(caption, source, texts\)"):
        _open(built / "tiny", caption_field="score")


@pytest.mark.parametrize("split", ["trian", "train[", "train[:x%]", ""])
def test_unknown_splits_are_listed(built, split):
    with pytest.raises(UserError, match=r"no split .*\(has train, validation\)") as e:
        _open(built / "tiny", split)
    assert "\n" not in str(e.value)
    assert ("did you mean 'train'" in str(e.value)) == (split == "trian")


def test_empty_split(built):
    with pytest.raises(UserError, match="holds no examples"):
        _open(built / "tiny", "train[:0]")


def test_folders_that_are_refused(built, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EMBEDDED", {"glyphs": None})
    shutil.copytree(built / "tiny/1.0.0", tmp_path / "name/1.0.0")
    for path, message in [
        ("gliphs", "no such folder, and no embedded data set .*"),
        (tmp_path / "none", "no such folder"),
        (tmp_path, "no dataset_info.json"),
        ("gs://bucket/x", "only local"),
    ]:
        with pytest.raises(UserError, match=message):
            _open(path)
    assert len(_open(tmp_path / "name")) == 40
    shutil.copytree(built / "tiny/1.0.0", tmp_path / "name/2.0.0")
    with pytest.raises(UserError, match=r"several versions \(1.0.0, 2.0.0\)"):
        _open(tmp_path / "name")
    with pytest.raises(UserError, match="one TFDS data set at a time"):
        open_tfds(SplitConfig(paths=("a", "b")), "")


def _edited(built, tmp_path, name, change):
    copy = tmp_path / "1.0.0"
    shutil.copytree(built / "tiny/1.0.0", copy)
    (copy / name).write_text(change((copy / name).read_text()))
    return copy


def test_other_formats_say_how_to_rebuild(built, tmp_path):
    copy = _edited(
        built,
        tmp_path,
        "dataset_info.json",
        lambda text: text.replace('"array_record"', '"tfrecord"').replace(
            "{DATASET}-{SPLIT}.{FILEFORMAT}", "{DATASET}-{SPLIT}.tfrecord"
        ),
    )
    with pytest.raises(UserError, match=r"stored as tfrecord.*file_format='array_record'"):
        _open(copy)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_descriptions(built, tmp_path, name):
    copy = _edited(built, tmp_path, name, lambda text: text[: len(text) // 2])
    with pytest.raises(UserError, match="not a readable TFDS data set") as e:
        _open(copy)
    assert "\n" not in str(e.value)


def _data_file(copy):
    return next(x for x in copy.iterdir() if "train" in x.name)


def test_missing_files(built, tmp_path):
    copy = _edited(built, tmp_path, "features.json", str)
    _data_file(copy).unlink()
    with pytest.raises(UserError, match="train.*missing"):
        _open(copy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999])
def test_cut_files(built, tmp_path, share):
    copy = _edited(built, tmp_path, "features.json", str)
    data = _data_file(copy).read_bytes()
    _data_file(copy).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="train.*cut or damaged .0 readable records of 40"):
        _open(copy)


def test_damaged_records_are_bad_one_by_one(built, tmp_path):
    copy = _edited(built, tmp_path, "features.json", str)
    data = bytearray(_data_file(copy).read_bytes())
    used = np.flatnonzero(np.frombuffer(data, np.uint8))  # the rest is padding
    for at in used[len(used) // 2 :][:8]:
        data[at] ^= 0xFF
    _data_file(copy).write_bytes(data)
    source, want, bad = _open(copy), _open(built / "tiny"), 0
    for i in range(40):
        try:
            assert source[i] == want[i]
        except BadRecord:
            assert source.texts(i) == ()
            bad += 1
    assert 0 < bad < 40


def test_embedded_names(built, monkeypatch):
    monkeypatch.setattr(module, "EMBEDDED", {"glyphs": lambda: str(built / "tiny/1.0.0")})
    assert len(_open("glyphs", "validation")) == 10
    with pytest.raises(UserError, match="did you mean 'glyphs'"):
        _open("gliphs")


def test_fingerprint(built, tmp_path):
    shutil.copytree(built / "tiny", tmp_path / "copy")
    first = _open(built / "tiny").fingerprint
    assert first == _open(tmp_path / "copy/1.0.0").fingerprint
    others = [
        _open(built / "tiny", "validation"),
        _open(built / "tiny", "train[:10%]"),
        _open(built / "tiny", caption_field="texts"),
    ]
    assert len({first, *(x.fingerprint for x in others)}) == 4


def test_pickles_and_serves_many_threads(built):
    original = _open(built / "tiny", "train+validation")
    source, wrong = pickle.loads(pickle.dumps(original)), []
    want = [original[i] for i in range(50)]

    def read(seed):
        for k in range(100):
            i = (k * 7 + seed * 11) % 50
            if source[i] != want[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    assert not wrong


def test_neither_tensorflow_nor_jax_is_imported(built):
    code = f"""
import sys
from clip_jax.config.schema import SplitConfig
from clip_jax.data.sources import open_source
assert 'tensorflow_datasets' not in sys.modules
source = open_source(SplitConfig(paths=({str(built / "tiny")!r},)), index_dir='')
assert source[0].image and not {{'tensorflow', 'jax'}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
