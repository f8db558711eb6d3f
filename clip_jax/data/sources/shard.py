"""One WebDataset tar: the index of its samples, and their members by `os.pread`.

The index of `NAME.tar` is `NAME.tar.idx` beside it, or in the folder of the run where that is
read-only. Memory: 40 bytes and the key of each sample. One whose members lie together is one read:
on a mounted bucket each is a round trip.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import threading
import zlib

import numpy as np

from clip_jax import files
from clip_jax.data.record import BadRecord
from clip_jax.data.sources import tar
from clip_jax.errors import UserError

VERSION = 1
_PLACES = ("image", "text", "json")  # offset and number of bytes of each; 0 bytes = missing
_ROW = np.dtype(
    [(name + n, kind) for name in _PLACES for n, kind in (("", "<u8"), ("_n", "<u4"))]
    + [("key_end", "<u4")]
)
_MAX_OPEN = 256  # shards that stay open in a process
_GAP = 1 << 16  # bytes between members that are read too, rather than to read twice


@dataclasses.dataclass(frozen=True)
class Suffixes:
    """The members of a sample that we read, in order of preference."""

    image: tuple[str, ...]
    text: str  # "" when the caption is in the json
    json_key: str  # the caption's key there


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar as it was when it was opened; its samples have numbers."""

    path: str
    size: int
    mtime_ns: int
    rows: np.ndarray  # _ROW
    keys: bytes
    crc: int

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, i: int) -> str:
        """What the members of sample `i` share."""
        start = int(self.rows[i - 1]["key_end"]) if i else 0
        return self.keys[start : int(self.rows[i]["key_end"])].decode()

    def read(self, i: int, *parts: str) -> list[bytes]:
        """Members "image", "text" or "json" of sample `i`; those that are missing are empty.

        Raises:
            BadRecord: the tar cannot be read.
            UserError: it is another one now.
        """
        row = self.rows[i]
        places = [(int(row[x]), int(row[x + "_n"])) for x in parts]
        there = [x for x in places if x[1]]
        start, end = (
            min((x for x, _ in there), default=0),
            max((x + n for x, n in there), default=0),
        )
        if end - start > sum(n for _, n in there) + _GAP:
            return [self.read(i, x)[0] for x in parts]
        try:
            fd = _descriptor(self.path, self.size, self.mtime_ns)
            data = os.pread(fd.number, end - start, start)
        except OSError as e:
            raise BadRecord(f"{self.path}: {e.strerror}") from e
        if len(data) != end - start:
            raise BadRecord(f"{self.path}: cut while it was read")
        return [data[x - start : x - start + n] if n else b"" for x, n in places]


def open_shard(
    path: str, found: os.stat_result, suffixes: Suffixes, index_dir: str, ended: threading.Event
) -> Shard:
    """Opens a tar by its index, which is built if it is missing.

    Args:
        path: of the tar.
        found: what `os.stat` says of it.
        suffixes: of its members.
        index_dir: folder for an index that cannot lie beside the tar; "" = none.
        ended: set when nobody waits for the shard any more.

    Raises:
        UserError: the tar cannot be read, is damaged, or has a member twice.
        CancelledError: nobody waits.
    """
    settings = [VERSION, found.st_size, found.st_mtime_ns, *suffixes.image, suffixes.text]
    places = _index_paths(path, index_dir)
    for place in places:
        if (payload := _load_index(place, settings)) is not None:
            return _shard(path, found, payload)
    try:
        payload = _pack(*_build(path, suffixes, ended))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); mend the shard") from e
    for place in places:
        if _store_index(place, settings, payload):
            break
    return _shard(path, found, payload)


def _index_paths(path: str, index_dir: str) -> list[str]:
    if not index_dir:
        return [path + ".idx"]
    full = os.path.abspath(path)
    name = f"{os.path.basename(path)}-{hashlib.sha256(full.encode()).hexdigest()[:16]}.idx"
    return [path + ".idx", files.join(index_dir, name)]


def _build(path: str, suffixes: Suffixes, ended: threading.Event) -> tuple[np.ndarray, bytes]:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for member in tar.members(path):
        if ended.is_set():
            raise concurrent.futures.CancelledError
        key, suffix = split_name(member.name)
        if not suffix:
            continue
        parts = samples.setdefault(key, {})
        if suffix in parts:
            raise UserError(f"{path}: '{key}.{suffix}' is there twice; build this shard again")
        parts[suffix] = (member.offset, member.size)
    nothing = (0, 0)
    keys = [key.encode() for key in samples]
    rows = []
    for parts, end in zip(samples.values(), itertools.accumulate(map(len, keys)), strict=True):
        image = next((parts[x] for x in suffixes.image if x in parts), nothing)
        places = (*image, *parts.get(suffixes.text, nothing), *parts.get("json", nothing))
        if max(places[1::2]) >= 1 << 32:
            raise UserError(f"{path}: a member of more than 4 GiB; is this the right suffix?")
        rows.append((*places, end))
    return np.array(rows, _ROW), b"".join(keys)


def split_name(name: str) -> tuple[str, str]:
    """('x.y/001', 'left.jpg') of 'x.y/001.Left.JPG'; an empty suffix: no part of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return name, ""
    return folder + slash + stem, suffix.lower()


def _pack(rows: np.ndarray, keys: bytes) -> bytes:
    return len(rows).to_bytes(8, "little") + rows.tobytes() + keys


def _shard(path: str, found: os.stat_result, payload: bytes) -> Shard:
    count = int.from_bytes(payload[:8], "little")
    rows = np.frombuffer(payload, _ROW, count, offset=8).copy()  # else the keys are kept twice
    keys = payload[8 + rows.nbytes :]
    return Shard(path, found.st_size, found.st_mtime_ns, rows, keys, zlib.crc32(payload))


def _load_index(place: str, settings: list) -> bytes | None:
    """The payload; None if the index is missing, of another shard or setting, or damaged."""
    try:
        head, _, payload = files.read_bytes(place).partition(b"\n")
        known = json.loads(head)
    except Exception:  # each store has its own; the index is built again
        return None
    return payload if known == {"settings": settings, "crc": zlib.crc32(payload)} else None


def _store_index(place: str, settings: list, payload: bytes) -> bool:
    head = json.dumps({"settings": settings, "crc": zlib.crc32(payload)}).encode()
    try:
        files.write_bytes(place, head + b"\n" + payload)
    except Exception:  # read-only or full, as each store says it: the next place, or memory only
        return False
    return True


class _Fd:
    """A descriptor that closes with its last user, so that eviction never cuts off a reader."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=_MAX_OPEN)
def _descriptor(path: str, size: int, mtime_ns: int) -> _Fd:
    fd = _Fd(path)
    now = os.fstat(fd.number)
    if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
        raise UserError(f"{path}: has changed since it was opened; start the run again")
    return fd
