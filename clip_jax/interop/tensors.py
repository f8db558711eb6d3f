"""Named arrays in a weight file: what all formats have in common.

Costs: an open file holds names and shapes; `read` brings one array into memory at a time.
"""

import contextlib
import math
import os
import reprlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from clip_jax.errors import UserError, near
from clip_jax.files import is_remote

# What a writer takes for each array, in the order of the file: its name, shape and dtype (needed
# before the first byte), and a function that makes it when its turn has come.
Item = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]

MAX_HEADER = 100_000_000  # bytes, of the JSON at the start of a safetensors file; the format's own
AGAIN = "the file is damaged or was cut off, get it again"
_MAX_DIMS = 64  # numpy's limit

_KINDS = {
    "safetensors": ("a safetensors file", ".safetensors"),
    "npz": ("an npz file", ".npz"),
    "torch": ("a PyTorch file", ".pt"),
}

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


class Tensors(Protocol):
    """Named arrays in a file, read one at a time."""

    path: str  # for messages
    shapes: dict[str, tuple[int, ...]]  # all names, in the order of the file
    dtypes: dict[str, np.dtype]  # of ml_dtypes where numpy has none, as bfloat16
    metadata: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """A fresh array in C order. Raises UserError: no such name, or damaged bytes."""
        ...

    def close(self) -> None:
        """Ends the use of the file; arrays that were read stay."""
        ...


def shown(value: object) -> str:
    """`repr` for messages: on one line, and short whatever a damaged file holds."""
    return _REPR.repr(value)


def missing(path: str, name: str, names: Iterable[str]) -> UserError:
    """The error for a name that the file does not hold."""
    hint = near(name, names) or "; check that the file belongs to this model"
    return UserError(f"{path}: holds no tensor {shown(name)}{hint}")


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what the file system says into one line that names the path."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror or e}); check the path and its permissions"
        ) from e


def check_file(path: str) -> None:
    """Raises UserError unless `path` is a file on a local disk."""
    if is_remote(path):
        raise UserError(f"{path}: is read from a local disk only; copy it there first")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder, and a file is needed; name the file in it")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; check the path")
    if not os.path.isfile(path):
        raise UserError(f"{path}: is not a regular file; copy it to a local disk first")


def count_bytes(where: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Size of an array. Raises UserError, which starts with `where`, if there is no such shape."""
    listed = shown(list(shape))
    if any(type(x) is not int or x < 0 for x in shape):
        raise UserError(f"{where}: shape {listed} has other things than sizes; {AGAIN}")
    # numpy counts the bytes of an empty array without its zeros
    if len(shape) > _MAX_DIMS or math.prod(x for x in shape if x) * dtype.itemsize >= 2**63:
        raise UserError(f"{where}: shape {listed} is too large for an array; {AGAIN}")
    return math.prod(shape) * dtype.itemsize


def empty(where: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array to read into. Raises UserError if the memory does not suffice."""
    try:
        return np.empty(shape, dtype)
    except MemoryError as e:
        size = count_bytes(where, shape, dtype)
        raise UserError(f"{where}: takes {size} bytes of memory, more than there is") from e


def as_bytes(array: np.ndarray) -> memoryview:
    """The memory of an array in C order, byte by byte, to read into or to write from."""
    return array.reshape(-1).view(np.uint8).data


def make(item: Item) -> np.ndarray:
    """The array of an item, in C order. Raises ValueError if it is not what was announced."""
    name, shape, dtype, function = item
    array = np.asarray(function(), order="C")
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(
            f"{name}: announced as {dtype} {tuple(shape)}, made as {array.dtype} {array.shape}"
        )
    return array


def check_names(items: Iterable[Item]) -> None:
    """Raises ValueError if a name comes twice."""
    seen: set[str] = set()
    for name, *_ in items:
        if name in seen:
            raise ValueError(f"{name}: is given twice")
        seen.add(name)


def kind(path: str) -> str:
    """What the content is: safetensors, npz, torch, zip, lfs, html or unknown. Raises UserError."""
    with reading(path), open(path, "rb") as f:
        head = f.read(64)
    # Before the magic numbers: the length of a header may look like one.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if head.startswith(b"\x80"):  # a pickle, which is what PyTorch wrote before 1.6
        return "torch"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    return "html" if head.lstrip().lower().startswith((b"<!doctype", b"<html")) else "unknown"


def zip_names(path: str) -> list[str]:
    """The members of a zip file; empty if it cannot be read as one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # zipfile raises a dozen kinds on damaged files
        return []


def _zip_kind(path: str) -> str:
    names = zip_names(path)
    if any(x.endswith(("/data.pkl", "/constants.pkl")) for x in names):
        return "torch"
    return "npz" if names and all(x.endswith(".npy") for x in names) else "zip"


def not_a(path: str, wanted: str) -> UserError:
    """The error for a file that is not of the kind `wanted` (a key of _KINDS)."""
    found = kind(path)
    if found == "lfs":
        return UserError(f"{path}: is a pointer of Git LFS, not the file; run git lfs pull")
    if found == "html":
        return UserError(f"{path}: is a web page, not {_KINDS[wanted][0]}; download it again")
    if found == "zip":
        return UserError(
            f"{path}: is a PyTorch file or another zip archive, damaged or under the wrong name; "
            "get it again"
        )
    if found in _KINDS and found != wanted:
        name, suffix = _KINDS[found]
        return UserError(f"{path}: is {name} under the wrong name; rename it to end in {suffix}")
    return UserError(f"{path}: is not {_KINDS[wanted][0]}; {AGAIN}")
