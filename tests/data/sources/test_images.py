"""Image files alone: folders, globs, names."""

import os

import pytest

from clip_jax.data.record import BadRecord
from clip_jax.data.sources.images import find_images, open_images
from clip_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/.hidden.jpg", "sub/note.txt", ".git/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_folders_at_any_depth(tree):
    images = open_images([str(tree)])
    assert [images.place(i).key for i in range(len(images))] == ["a.PNG", "b.jpg", "sub/c.webp"]
    assert images.place(2).image == str(tree / "sub/c.webp")
    assert images.image(2) == b"sub/c.webp" and images.texts(2) == ()
    (tree / "b.jpg").unlink()
    with pytest.raises(BadRecord, match="No such file"):
        images.image(1)


def test_globs_and_names(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "x[1].jpg").touch()
    assert find_images(["*.jpg"]) == [("b.jpg", "b.jpg"), ("x[1].jpg", "x[1].jpg")]
    assert find_images(["x[1].jpg", "b.jpg", "*.jpg"]) == [(x, x) for x in ("x[1].jpg", "b.jpg")]
    assert find_images(["**/*.webp"]) == [("sub/c.webp", "sub/c.webp")]
    assert find_images(["gone.jpg", "sub/note.txt"])[0] == ("gone.jpg", "gone.jpg")
    assert find_images(["gs://bucket/*.jpg"]) == [("gs://bucket/*.jpg", "gs://bucket/*.jpg")]


def test_what_is_refused(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    for paths, message in (
        (["empty"], "empty: no images in this folder"),
        (["*.gif"], "no file matches"),
        (["gone.jpg"], "gone.jpg: cannot be read"),
        (["gs://bucket/a.jpg"], "only local files"),
    ):
        with pytest.raises(UserError, match=message) as e:
            open_images(paths)
        assert "\n" not in str(e.value)


def test_fingerprint_follows_names_and_sizes(tree):
    first = open_images([str(tree)]).fingerprint
    os.utime(tree / "b.jpg", (1, 1))
    assert open_images([str(tree)]).fingerprint == first
    (tree / "b.jpg").write_bytes(b"longer")
    assert open_images([str(tree)]).fingerprint != first
