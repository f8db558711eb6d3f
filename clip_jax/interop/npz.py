"""npz files: a zip of .npy members, as numpy and big_vision write them. Nothing is unpickled.

numpy has no bfloat16 and stores it as two raw bytes (V2); that is what V2 means here.
Costs: one array in memory at a time. zipfile checks a CRC, at about 1 GB/s.
"""

import contextlib
import dataclasses
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from clip_jax import files
from clip_jax.errors import UserError
from clip_jax.interop.tensors import (
    AGAIN,
    Item,
    Tensors,
    as_bytes,
    check_file,
    check_names,
    count_bytes,
    empty,
    kind,
    make,
    missing,
    not_a,
    shown,
)

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NUMBERS = "biufc"  # kinds of dtype
_PIECE = 1 << 24  # bytes of one read, which is copied into its array


@dataclasses.dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    stored: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int  # of the array, in bytes from the start of the member


@dataclasses.dataclass
class _File:
    path: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    metadata: dict[str, str]
    _members: dict[str, _Member]
    _archive: zipfile.ZipFile

    def read(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise missing(self.path, name, self.shapes)
        member, where = self._members[name], f"{self.path}: array {shown(name)}"
        array = empty(where, member.shape[:: -1 if member.fortran else 1], member.stored)
        with _damage(where), self._archive.open(member.info) as f:
            f.read(member.start)
            _fill(array, f)
        if member.fortran:
            array = np.array(array.T, order="C")
        if member.stored.kind == "V":
            return array.view(_BFLOAT16)
        return array.astype(self.dtypes[name], copy=False)  # in the byte order of this machine

    def close(self) -> None:
        self._archive.close()


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what zipfile and numpy raise on damaged bytes into one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as e:  # BadZipFile, EOFError, zlib.error, ValueError, SyntaxError, ...
        why = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise UserError(f"{where}: cannot be read ({why}); {AGAIN}") from e


def open_npz(path: str) -> Tensors:
    """Opens a file and reads the headers of all its members.

    Raises:
        UserError: not such a file, damaged, or with other things than numbers in it.
    """
    check_file(path)
    if kind(path) not in ("npz", "zip"):
        raise not_a(path, "npz")
    with _damage(path):
        archive = zipfile.ZipFile(path)  # lives as long as the result
    try:
        members: dict[str, _Member] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}: array {shown(name)}"
            if name == info.filename:
                raise UserError(f"{path}: member {shown(name)} is not a .npy file; {AGAIN}")
            if name in members:
                raise UserError(f"{where}: is there twice; {AGAIN}")
            members[name] = _read_header(archive, info, where)
    except BaseException:
        archive.close()
        raise
    return _File(
        path,
        shapes={name: member.shape for name, member in members.items()},
        dtypes={name: _meaning(member.stored) for name, member in members.items()},
        metadata={},
        _members=members,
        _archive=archive,
    )


def _fill(array: np.ndarray, f: IO[bytes]) -> None:
    """Reads exactly the bytes of `array`. Raises EOFError if there are fewer."""
    view, done = as_bytes(array), 0
    while done < len(view):
        piece = f.read(min(_PIECE, len(view) - done))
        if not piece:
            raise EOFError(f"{done} of {len(view)} bytes")
        view[done : done + len(piece)] = piece
        done += len(piece)


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> _Member:
    with _damage(where), archive.open(info) as f:
        version = npy.read_magic(f)
        if version == (1, 0):
            shape, fortran, stored = npy.read_array_header_1_0(f)
        elif version == (2, 0):
            shape, fortran, stored = npy.read_array_header_2_0(f)
        else:  # 3.0 is for named fields
            raise ValueError(f"version {version} of the .npy format")
        start = f.tell()
    if stored.hasobject:
        raise UserError(
            f"{where}: holds Python objects, which are never unpickled; save it again as numbers"
        )
    if stored.kind not in _NUMBERS and stored != np.dtype("V2"):
        raise UserError(f"{where}: has dtype {shown(str(stored))}, not numbers; leave it out")
    size = count_bytes(where, shape, stored)
    if info.file_size - start != size:
        raise UserError(
            f"{where}: {info.file_size - start} bytes, but {stored} {shown(list(shape))} takes "
            f"{size}; {AGAIN}"
        )
    return _Member(info, stored, shape, fortran, start)


def _meaning(stored: np.dtype) -> np.dtype:
    return _BFLOAT16 if stored.kind == "V" else stored.newbyteorder("=")


def write_npz(path: str, items: Iterable[Item], metadata: dict[str, str]) -> None:
    """Writes a file array by array, uncompressed; it appears whole or not at all.

    Args:
        path: a local file; an old one is replaced.
        items: the arrays; each is made when its turn comes.
        metadata: left out, the format has no place for it; here so that all writers are alike.

    Raises:
        UserError: the file system refuses.
        ValueError: a name twice, a dtype that numpy cannot read back, or an array not as announced.
    """
    if files.is_remote(path):
        raise UserError(f"{path}: is written to a local disk only; copy it from there")
    items = list(items)
    check_names(items)
    for name, _, dtype, _ in items:
        plain = dtype.isbuiltin == 1 and dtype.kind in _NUMBERS
        if not plain and dtype != _BFLOAT16:  # numpy writes float8, but cannot read it
            raise ValueError(f"{name}: {dtype} has no place in npz")
    with files.replacing(path) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:
        for item in items:
            with archive.open(f"{item[0]}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, make(item), allow_pickle=False)
