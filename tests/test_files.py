"""Our own files, on a local disk and on a store in memory."""

import os
import uuid

import pytest

from clip_jax import files
from clip_jax.errors import UserError

pytestmark = pytest.mark.core


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_write_read_replace(root):
    path = files.join(root, "a", "b.json")
    assert not files.exists(path)
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert files.read_bytes(path) == b"two" and files.exists(path)
    assert files.names(files.join(root, "a")) == ["b.json"]
    files.remove(path)
    files.remove(path)
    assert not files.exists(path)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(path)


def test_create_is_for_one(root):
    path = files.join(root, "lock.json")
    assert files.create(path, b"mine") and not files.create(path, b"theirs")
    assert files.read_bytes(path) == b"mine"
    assert files.names(root) == ["lock.json"]


def test_appending(root):
    path = files.join(root, "metrics.jsonl")
    assert files.read_appended(path) == b""
    for i in range(12):
        files.append(path, b"%d\n" % i)
    assert files.read_appended(path) == b"".join(b"%d\n" % i for i in range(12))
    files.replace_appended(path, b"0\n")
    files.append(path, b"x\n")
    assert files.read_appended(path) == b"0\nx\n"


def test_a_caller_that_counts_the_parts_need_not_list_them(root, monkeypatch):
    path = files.join(root, "metrics.jsonl")
    files.append(path, b"0\n")
    part = files.append(path, b"1\n")
    with monkeypatch.context() as patch:
        patch.setattr(files, "names", None)
        for i in range(2, 5):
            part = files.append(path, b"%d\n" % i, part)
    assert files.read_appended(path) == b"0\n1\n2\n3\n4\n"


def test_a_path_as_a_user_gives_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.resolved("~/a") == files.resolved(tmp_path / "a") == str(tmp_path / "a")
    assert files.resolved(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert files.resolved("gs://b/~a") == "gs://b/~a"


def test_names_of_nothing(root):
    assert files.names(files.join(root, "nowhere")) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / "config.json")
    files.write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="config.json: the disk is full"):
        files.write_bytes(path, b"new")
    assert (tmp_path / "config.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_file_in_pieces_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "weights"
    with files.replacing(str(path)) as f:
        f.write(b"one")
        assert not path.exists()
        f.write(b"two")
    assert path.read_bytes() == b"onetwo"
    with pytest.raises(KeyboardInterrupt), files.replacing(str(path)) as f:
        f.write(b"three")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"onetwo" and os.listdir(path.parent) == ["weights"]


def test_a_folder_that_a_library_wrote(root):
    path = files.join(root, "events")
    folder = files.local_folder(path)
    assert not files.is_remote(folder)
    for text in (b"one", b"three"):  # the second upload replaces and keeps
        files.write_bytes(files.join(folder, "deep", "a"), text)
        files.write_bytes(files.join(folder, text.decode()), text)
        files.upload(folder, path)
        assert files.read_bytes(files.join(path, "deep", "a")) == text
    assert files.names(path) == ["deep", "one", "three"]


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    path = str(tmp_path / "lock.json")
    assert files.create(path, b"mine") and not files.create(path, b"theirs")
    assert files.read_bytes(path) == b"mine" and os.listdir(tmp_path) == ["lock.json"]


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file, and a folder is needed"):
        files.write_bytes(str(tmp_path / "file" / "x"), b"y")


def test_an_unknown_store():
    with pytest.raises(UserError, match="nosuch://x: cannot be opened"):
        files.exists("nosuch://x")
