"""The script as a command; its tars are read by Python's tarfile and by our own source."""

import json
import pathlib
import subprocess
import sys
import tarfile

import pytest

from clip_jax.config.schema import SplitConfig
from clip_jax.data.sources.webdataset import open_webdataset

SCRIPT = pathlib.Path(__file__).parents[2] / "examples/folders_to_tars.py"


def _run(*args):
    command = [sys.executable, "-I", str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def images(tmp_path):
    for name, count in (("polar_bear", 5), ("cat", 6)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            suffix = "PNG" if i == 3 else "jpeg" if i == 4 else "jpg"
            (tmp_path / f"train/{name}/{i}.{suffix}").write_bytes(f"{name} {i}".encode())
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    return tmp_path / "train"


def test_every_image_once_with_caption_and_label(images, tmp_path):
    out = tmp_path / "out"
    args = ("--images", images, "--out", out, "--samples_per_shard", 4, "--template", "see {}!")
    done = _run(*args)
    assert (done.returncode, done.stdout) == (0, f"11 samples in {out}\n"), done.stderr
    assert sorted(x.name for x in out.iterdir()) == [f"train-0000{i}.tar" for i in range(3)]
    source = open_webdataset(SplitConfig(paths=(f"{out}/train-{{00000..00002}}.tar",)), "")
    pairs = sorted((x.image.decode(), x.texts, x.fields["label"]) for x in source)
    assert pairs == [(f"cat {i}", ("see cat!",), 0) for i in range(6)] + [
        (f"polar_bear {i}", ("see polar bear!",), 1) for i in range(5)
    ]
    assert {x.fields["name"] for x in source} == {"cat", "polar bear"}
    assert [x.key for x in source] == [f"{i:09d}" for i in range(11)]
    labels = [x.fields["label"] for x in source]
    assert labels != sorted(labels)
    with tarfile.open(out / "train-00000.tar") as f:
        names = f.getnames()
        assert len(names) == 12
        fields = f.extractfile(names[2])
        assert fields and json.load(fields).keys() == {"label", "name"}


def test_two_runs_write_the_same_bytes(images, tmp_path):
    for out in ("a", "b"):
        assert _run("--images", images, "--out", tmp_path / out).returncode == 0
    a, b = ((tmp_path / x / "train-00000.tar").read_bytes() for x in "ab")
    assert a == b


def test_errors_are_one_line(images, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.tar").touch()
    for args, message in [
        (("--images", tmp_path / "none", "--out", tmp_path / "o"), "No such file"),
        (("--images", images / "cat", "--out", tmp_path / "o"), "give the folder above"),
        (("--images", images, "--out", tmp_path / "full"), "holds tars already"),
        (("--images", images, "--out", tmp_path / "o", "--template", "x"), "--template"),
        (("--images", images, "--out", tmp_path / "o", "--template", "{} {}"), "index"),
        (("--images", images, "--out", tmp_path / "o", "--samples_per_shard", 0), "above 0"),
    ]:
        done = _run(*args)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
