"""Our own files, local or remote (`gs://`, `s3://`, `memory://`) through fsspec.

Whole files appear at once (temporary name, then rename; object stores do so by themselves).
Costs: one request a call on a remote store. No retries here: fsspec's back ends have theirs.
"""

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from clip_jax.errors import UserError


def is_remote(path: str) -> bool:
    """True for a URL such as gs://bucket/run."""
    return "://" in path and not path.startswith("file://")


def resolved(path: str | os.PathLike[str]) -> str:
    """A path as a user gives it, without `file://`, and with `~` for the home folder."""
    path = os.fspath(path)
    return path if is_remote(path) else os.path.expanduser(path.removeprefix("file://"))


def join(path: str, *names: str) -> str:
    """Joins with '/', which every store understands."""
    return "/".join([path.rstrip("/"), *names])


def _fs(path: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as e:
        raise UserError(f"{path}: cannot be opened ({e}); install the package of that store") from e


@contextlib.contextmanager
def user_errors(path: str) -> Iterator[None]:
    """Turns what the file system says into one line that names the path and the way out."""
    advice = {
        errno.ENOSPC: "the disk is full; free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and start again",
        errno.EFBIG: "the file would be larger than the limit of this process (ulimit -f)",
        errno.EACCES: "it may not be written; choose another folder or mend its permissions",
        errno.EPERM: "it may not be written; choose another folder or mend its permissions",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOTDIR: "a part of the path is a file; choose another folder",
        errno.EEXIST: "is a file, and a folder is needed; choose another folder",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    try:
        yield
    except OSError as e:
        why = advice.get(e.errno or 0, f"{e.strerror or e}; check the path and its disk")
        raise UserError(f"{path}: {why}") from e


def exists(path: str) -> bool:
    """True if the file or folder exists."""
    fs, p = _fs(path)
    return bool(fs.exists(p))


def read_bytes(path: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    fs, p = _fs(path)
    return fs.cat_file(p)


def write_bytes(path: str, data: bytes) -> None:
    """Replaces the file whole: a reader sees the old one or the new one, never a part."""
    if not is_remote(path):
        with replacing(path) as f:
            f.write(data)
        return
    fs, p = _fs(path)
    with user_errors(path):
        fs.pipe_file(p, data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A local file to write piece by piece: it takes the name `path` at the end, or never.

    Raises:
        UserError: the file system refuses.
    """
    _, p = _fs(path)
    temporary = f"{p}.tmp-{uuid.uuid4().hex[:8]}"
    with user_errors(path):
        os.makedirs(os.path.dirname(p) or ".", exist_ok=True)
        try:
            with open(temporary, "wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, p)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def local_folder(path: str) -> str:
    """Where libraries that know no stores write: `path`, or for a remote one a new folder here."""
    return tempfile.mkdtemp(prefix="clip_jax-") if is_remote(path) else path


def upload(folder: str, path: str) -> None:
    """Copies all files below `folder`, that of `local_folder(path)`, to where they belong."""
    if folder != path:
        fs, p = _fs(path)
        with user_errors(path):
            fs.put(folder.rstrip("/") + "/", p.rstrip("/") + "/", recursive=True)


def create(path: str, data: bytes) -> bool:
    """Writes the file unless it exists. Returns whether it was written; atomic on local disks."""
    fs, p = _fs(path)
    with user_errors(path):
        if is_remote(path):
            try:
                fs.pipe_file(p, data, mode="create")  # a generation match on gs://
            except FileExistsError:
                return False
            return True
        os.makedirs(os.path.dirname(p) or ".", exist_ok=True)
        temporary = f"{p}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            with open(temporary, "wb") as f:
                f.write(data)
            _link(temporary, p, data)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return True


def _link(temporary: str, path: str, data: bytes) -> None:
    """Gives `path` the content of `temporary`. Raises FileExistsError if `path` is there."""
    try:
        os.link(temporary, path)  # never shows half a file
    except OSError as e:
        if isinstance(e, FileExistsError):
            raise
        with open(path, "xb") as f:  # disks without hard links: Drive in Colab, gcsfuse, exFAT
            f.write(data)


def remove(path: str) -> None:
    """Deletes a file; no error if it is gone."""
    fs, p = _fs(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(p)


def names(path: str) -> list[str]:
    """Sorted names in a folder; empty if there is none."""
    fs, p = _fs(path)
    fs.invalidate_cache()
    try:
        return sorted(os.path.basename(x.rstrip("/")) for x in fs.ls(p, detail=False))
    except FileNotFoundError:
        return []


# Lines that grow. Object stores cannot append, so a remote file is a folder of parts there.


def append(path: str, data: bytes, part: int | None = None) -> int:
    """Adds to the end: a local file grows, a remote one gets the next part `path.parts/NNNNNN`.

    Args:
        path: of the file.
        data: to add.
        part: what the call before returned; without it the parts are listed, which takes a request
            for each thousand of them.
    """
    if is_remote(path):
        number = _next_part(path) if part is None else part
        write_bytes(f"{path}.parts/{number:06d}", data)
        return number + 1
    with user_errors(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "ab") as f:
            f.write(data)
    return 0


def _next_part(path: str) -> int:
    parts = names(path + ".parts")
    return int(parts[-1]) + 1 if parts else 0


def read_appended(path: str) -> bytes:
    """What was appended so far; empty if nothing was."""
    if is_remote(path):
        fs, p = _fs(path + ".parts")
        parts = [f"{p}/{n}" for n in names(path + ".parts")]
        found = fs.cat(parts) if parts else {}  # many at a time, where the store can
        return b"".join(found[x] for x in parts)
    return read_bytes(path) if exists(path) else b""


def replace_appended(path: str, data: bytes) -> None:
    """Puts `data` in place of all that was appended."""
    if not is_remote(path):
        write_bytes(path, data)
        return
    old = names(path + ".parts")
    write_bytes(f"{path}.parts/{_next_part(path):06d}", data)
    fs, p = _fs(path + ".parts")
    with contextlib.suppress(FileNotFoundError):
        fs.rm([f"{p}/{name}" for name in old])  # many at a time, where the store can
