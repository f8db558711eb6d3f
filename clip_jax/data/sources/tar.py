"""The members of a tar file (USTAR, GNU, pax) with the place of their bytes; nothing is extracted.

Python's tarfile takes a cut archive for a shorter one; here any damage that could hide members
is a UserError. Cost: small members are read whole, AHEAD bytes at once; of one larger than AHEAD
that much at most.
"""

import dataclasses
import os
from collections.abc import Iterator

from clip_jax.errors import UserError

AHEAD = 1 << 15  # large enough for many captions, small beside a large image
_BLOCK = 512
_ZERO = bytes(_BLOCK)
_MAX_EXTENSION = 1 << 24  # bytes of a long name or a pax header; more is damage
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: size means nothing
_EXTENSIONS = (b"L", b"K", b"x", b"X", b"g")  # they describe the next member, or all of them
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file: its name (undecodable bytes as \\xNN), and where its bytes lie."""

    name: str
    offset: int
    size: int


def members(path: str) -> Iterator[Member]:
    """Walks the headers of a tar file, each with its checksum verified.

    Raises:
        UserError: not a tar, compressed, cut anywhere, damaged, or followed by other data.
        OSError: the file cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _walk(_Ahead(fd), path, os.fstat(fd).st_size)
    finally:
        os.close(fd)


class _Ahead:
    """Reads a file upwards, at least AHEAD bytes at once."""

    def __init__(self, fd: int):
        self._fd, self._start, self._data = fd, 0, b""

    def read(self, size: int, pos: int) -> bytes:
        """As os.pread."""
        if pos < self._start or pos + size > self._start + len(self._data):
            self._start, self._data = pos, os.pread(self._fd, max(size, AHEAD), pos)
        at = pos - self._start
        return self._data[at : at + size]


def _walk(file: _Ahead, path: str, file_size: int) -> Iterator[Member]:
    pos, shared, extra = 0, {}, {}  # pax values of all members; of the next member
    while True:
        header = file.read(_BLOCK, pos)
        if header == _ZERO:
            return _check_end(file, path, pos, file_size)
        _check_header(header, path, pos)
        kind, start, values = header[156:157], pos + _BLOCK, {**shared, **extra}
        size = 0 if kind in _WITHOUT_DATA else _size(header, path, pos)
        if kind in _REGULAR:
            size = values.get("size", size)
        pos = start + -(-size // _BLOCK) * _BLOCK
        if pos > file_size:
            raise _cut(path, start, f"a member of {size} bytes at byte {start} is cut off")
        if kind in _EXTENSIONS:
            extension = _extension(file, path, start, size, kind)
            (shared if kind == b"g" else extra).update(extension)
            continue
        if kind == b"S" or values.get("sparse"):
            raise UserError(f"{path}: a sparse member at byte {start}; rebuild without --sparse")
        if kind in _REGULAR:
            yield Member(values.get("path") or _name(header), start, size)
        extra = {}


def _check_header(header: bytes, path: str, pos: int) -> None:
    if len(header) < _BLOCK:
        raise _cut(path, pos, f"ends without the two zero blocks of a complete tar at byte {pos}")
    counted = header[:148] + header[156:]
    total = sum(counted) + 8 * 0x20
    try:
        stored = _number(header[148:156])
    except ValueError:
        stored = -1
    signed = total - 256 * sum(x > 127 for x in counted) if stored != total else total  # old Suns
    if stored not in (total, signed):
        raise _damaged(path, pos, header)


def _check_end(file: _Ahead, path: str, pos: int, file_size: int) -> None:
    """A complete tar ends in two zero blocks, and in nothing but zeros after them."""
    if pos + 2 * _BLOCK > file_size:
        raise _cut(path, pos, f"ends after one zero block at byte {pos}")
    while chunk := file.read(1 << 20, pos):
        if chunk.count(0) != len(chunk):
            raise UserError(
                f"{path}: other data follows the end of the tar near byte {pos}; a tar joined by "
                "cat must be given as separate files"
            )
        pos += len(chunk)


def _cut(path: str, pos: int, what: str) -> UserError:
    return UserError(f"{path}: {what}; copy or build this shard again (it was truncated)")


def _damaged(path: str, pos: int, header: bytes = b"") -> UserError:
    for magic, name in _PACKED.items() if pos == 0 else ():
        if header.startswith(magic):
            return UserError(f"{path}: is compressed with {name}; unpack it to a plain .tar first")
    what = "is not a tar file" if pos == 0 else "is damaged"
    return UserError(f"{path}: {what} (no valid header at byte {pos}); replace this shard")


def _number(field: bytes) -> int:
    """Octal text, or base 256 if the top bit is set. Raises ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    value = int(field.split(b"\0")[0].strip() or b"0", 8)
    if value < 0:
        raise ValueError
    return value


def _size(header: bytes, path: str, pos: int) -> int:
    try:
        return _number(header[124:136])
    except ValueError as e:
        raise _damaged(path, pos) from e


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":  # GNU's magic 'ustar  ' has other things in this place
        prefix = header[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _decode(name)


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _extension(file: _Ahead, path: str, start: int, size: int, kind: bytes) -> dict:
    """Values for the next member from a GNU long name or a pax header."""
    if size > _MAX_EXTENSION:
        raise _damaged(path, start - _BLOCK)
    data = file.read(size, start)
    if kind == b"L":
        return {"path": _decode(data.split(b"\0")[0])}
    return {} if kind == b"K" else _pax(data, path, start)


def _pax(data: bytes, path: str, start: int) -> dict:
    """Records `LENGTH KEY=VALUE\\n`; the length counts itself."""
    values, pos = {}, 0
    try:
        while pos < len(data) and data[pos]:
            digits = data[pos : data.index(b" ", pos)]
            end = pos + int(digits)
            key, found, value = data[pos + len(digits) + 1 : end - 1].partition(b"=")
            if not found or data[end - 1 : end] != b"\n":
                raise ValueError
            if key == b"path":
                values["path"] = _decode(value)
            elif key == b"size":
                values["size"] = int(value)
                if values["size"] < 0:
                    raise ValueError
            elif key.startswith(b"GNU.sparse."):
                values["sparse"] = True
            pos = end
    except ValueError as e:
        raise _damaged(path, start) from e
    return values
