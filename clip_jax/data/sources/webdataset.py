"""WebDataset tars (img2dataset's too) by our own index and `os.pread`: random access.

A sample is the members of one shard that share a key: the path up to the first dot of the base
name; the rest is the suffix, in lower case. What happens to the odd ones:

| in the tar | here |
|---|---|
| members of two samples interleaved | both are whole; a sample has the place of its first member |
| the same key and suffix twice in a shard | UserError |
| a sample without image or caption, or an empty one | keeps its number; BadRecord when it is read |
| links, devices, folders | ignored, so a sample whose image is a link has no image |
| `README`, `.hidden.jpg`, `__meta__.json` | ignored |
| `./000.jpg`, `/abs/2.jpg`, `../3.jpg` | names only: the keys are './000', '/abs/2', '../3' |

The index of `NAME.tar` is `NAME.tar.idx` beside it, or in the folder of the run where that is
read-only. Costs, measured on two busy cores with 1 KB images and a json: 20,000 samples a second to
index once, 52 bytes of memory a sample, 40,000 random samples a second to read from page cache.
"""

import bisect
import collections
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable

import numpy as np

from clip_jax import files
from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import (
    BadRecord,
    Example,
    Place,
    checked,
    clean_texts,
    digest,
    scalars,
)
from clip_jax.data.sources import tar
from clip_jax.errors import UserError

_VERSION = 1
_PLACES = ("image", "text", "json")  # offset and number of bytes of each; 0 bytes = missing
_ROW = np.dtype(
    [(name + n, kind) for name in _PLACES for n, kind in (("", "<u8"), ("_n", "<u4"))]
    + [("key_end", "<u4")]
)
_MAX_OPEN = 256  # shards that stay open in a process
_MAX_SHARDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class _Suffixes:
    """The members of a sample that we read, in order of preference."""

    image: tuple[str, ...]
    text: str  # "" when the caption is in the json
    json_key: str  # the caption's key there


@dataclasses.dataclass(frozen=True)
class _Shard:
    path: str
    size: int
    mtime_ns: int
    rows: np.ndarray  # _ROW
    keys: bytes
    crc: int


def open_webdataset(cfg: SplitConfig, index_dir: str) -> "WebDataset":
    """Opens the tars of `cfg.paths`, building the indexes that are missing."""
    suffixes = _suffixes(cfg)
    shards = [_open_shard(path, suffixes, index_dir) for path in expand(cfg.paths)]
    return WebDataset(shards, suffixes)


def expand(paths: Iterable[str]) -> list[str]:
    """Shards of paths with {00000..00009}, {a,b} and globs, in this order; a glob is sorted.

    Raises:
        UserError: a URL, a path or a glob without a file, a folder, or a shard given twice.
    """
    found = [x for path in paths for pattern in _braces(path) for x in _glob(pattern)]
    for path, count in collections.Counter(found).items():
        if count > 1:
            raise UserError(f"{path}: given {count} times; name each shard once")
    return found


class WebDataset:
    """A Source over indexed tars."""

    def __init__(self, shards: list[_Shard], suffixes: _Suffixes):
        self._shards, self._suffixes = shards, suffixes
        self._ends = list(itertools.accumulate(len(s.rows) for s in shards))
        names = [(os.path.basename(s.path), s.size, len(s.rows), s.crc) for s in shards]
        self.fingerprint = digest("webdataset", _VERSION, dataclasses.astuple(suffixes), names)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Example:
        shard, local = self._locate(i)
        row, fd = shard.rows[local], _open(shard.path, shard.size, shard.mtime_ns)
        values = _json(_read(fd, shard, row, "json"))
        fields = scalars(values, without=self._suffixes.json_key)
        image, texts = _read(fd, shard, row, "image"), self._captions(fd, shard, row, values)
        return checked(_key(shard, local), image, texts, fields)

    def texts(self, i: int) -> tuple[str, ...]:
        """Only the captions; empty if there are none."""
        shard, local = self._locate(i)
        row = shard.rows[local]
        try:
            fd = _open(shard.path, shard.size, shard.mtime_ns)
            values = _json(_read(fd, shard, row, "json")) if self._suffixes.json_key else {}
            return self._captions(fd, shard, row, values)
        except BadRecord:
            return ()

    def place(self, i: int) -> Place:
        """Key and TAR#KEY."""
        shard, local = self._locate(i)
        key = _key(shard, local)
        return Place(key, f"{os.path.abspath(shard.path)}#{key}")

    def image(self, i: int) -> bytes:
        """Only the image file; empty if there is none. Raises BadRecord if it cannot be read."""
        shard, local = self._locate(i)
        fd = _open(shard.path, shard.size, shard.mtime_ns)
        return _read(fd, shard, shard.rows[local], "image")

    def find(self, key: str) -> int | None:
        """The first record with this key, found by walking over all keys."""
        keys = (_key(s, i) for s in self._shards for i in range(len(s.rows)))
        return next((i for i, x in enumerate(keys) if x == key), None)

    def _captions(self, fd: "_Fd", shard: _Shard, row: np.void, values: dict) -> tuple[str, ...]:
        if not self._suffixes.json_key:
            return clean_texts([_read(fd, shard, row, "text")])
        found = values.get(self._suffixes.json_key, ())
        return clean_texts(found if isinstance(found, list) else [found])

    def _locate(self, i: int) -> tuple[_Shard, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = bisect.bisect_right(self._ends, i)
        shard = self._shards[number]
        return shard, i - self._ends[number] + len(shard.rows)


# Paths


def _braces(path: str) -> list[str]:
    """Replaces each {a,b} and {00..09}, the leftmost slowest, as a shell does."""
    group = re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", path)
    if not group:
        return [path]
    head, tail = path[: group.start()], path[group.end() :]
    options = group[1].split(",") if "," in group[1] else _range(path, *group[1].split(".."))
    tails = _braces(tail)
    return [head + option + rest for option in options for rest in tails]


def _range(path: str, first: str, last: str) -> list[str]:
    a, b, padded = int(first), int(last), first.startswith("0") or last.startswith("0")
    if abs(b - a) >= _MAX_SHARDS:
        raise UserError(f"{path}: {abs(b - a) + 1} shards in one pattern; mend the range")
    width = max(len(first), len(last)) if padded else 0
    numbers = range(a, b + 1) if a <= b else range(a, b - 1, -1)
    return [f"{n:0{width}d}" for n in numbers]


def _glob(pattern: str) -> list[str]:
    if files.is_remote(pattern) or pattern.startswith(("pipe:", "file:")):
        raise UserError(f"{pattern}: only local paths can be read for now; copy the shards here")
    found = [pattern]
    if not os.path.exists(pattern) and glob.has_magic(pattern):
        found = [x for x in sorted(glob.glob(pattern)) if not re.search(r"\.idx(\.tmp-\w+)?$", x)]
        if not found:
            raise UserError(f"{pattern}: no file matches; check the pattern")
    for path in found:
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; name the tars in it, e.g. {path}/*.tar")
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file; check the path")
    return found


def _suffixes(cfg: SplitConfig) -> _Suffixes:
    image = tuple(x.strip(" .").lower() for x in cfg.image_field.split(",") if x.strip(" ."))
    field = cfg.caption_field or "txt"
    if not field.startswith("json:"):
        return _Suffixes(image or ("jpg", "jpeg", "png", "webp"), field.strip(" .").lower(), "")
    key = field.removeprefix("json:")
    if not key:
        raise UserError("caption_field: no key (got 'json:'); use 'json:caption' or the like")
    return _Suffixes(image or ("jpg", "jpeg", "png", "webp"), "", key)


# Index


def _open_shard(path: str, suffixes: _Suffixes, index_dir: str) -> _Shard:
    try:
        stat = os.stat(path)
        settings = [_VERSION, stat.st_size, stat.st_mtime_ns, *suffixes.image, suffixes.text]
        places = _index_paths(path, index_dir)
        for place in places:
            payload = _load_index(place, settings)
            if payload is not None:
                return _shard(path, stat, payload)
        payload = _pack(*_build(path, suffixes))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); mend the shard") from e
    for place in places:
        if _store_index(place, settings, payload):
            break
    return _shard(path, stat, payload)


def _index_paths(path: str, index_dir: str) -> list[str]:
    if not index_dir:
        return [path + ".idx"]
    full = os.path.abspath(path)
    name = f"{os.path.basename(path)}-{hashlib.sha256(full.encode()).hexdigest()[:16]}.idx"
    return [path + ".idx", files.join(index_dir, name)]


def _build(path: str, suffixes: _Suffixes) -> tuple[np.ndarray, bytes]:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for member in tar.members(path):
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


def _shard(path: str, stat: os.stat_result, payload: bytes) -> _Shard:
    count = int.from_bytes(payload[:8], "little")
    rows = np.frombuffer(payload, _ROW, count, offset=8)
    keys = payload[8 + rows.nbytes :]
    return _Shard(path, stat.st_size, stat.st_mtime_ns, rows, keys, zlib.crc32(payload))


def _load_index(place: str, settings: list) -> bytes | None:
    """The payload; None if the index is missing, of another shard or setting, or damaged."""
    try:
        head, _, payload = files.read_bytes(place).partition(b"\n")
        known = json.loads(head)
    except (OSError, ValueError):
        return None
    return payload if known == {"settings": settings, "crc": zlib.crc32(payload)} else None


def _store_index(place: str, settings: list, payload: bytes) -> bool:
    head = json.dumps({"settings": settings, "crc": zlib.crc32(payload)}).encode()
    try:
        files.write_bytes(place, head + b"\n" + payload)
    except (UserError, OSError):  # read-only or full: the next place, or memory only
        return False
    return True


# Reading


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
    stat = os.fstat(fd.number)
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        raise UserError(f"{path}: has changed since it was opened; start the run again")
    return fd


def _open(path: str, size: int, mtime_ns: int) -> _Fd:
    try:
        return _descriptor(path, size, mtime_ns)
    except OSError as e:
        raise BadRecord(f"{path}: {e.strerror}") from e


def _read(fd: _Fd, shard: _Shard, row: np.void, part: str) -> bytes:
    size = int(row[part + "_n"])
    if not size:
        return b""
    try:
        data = os.pread(fd.number, size, int(row[part]))
    except OSError as e:
        raise BadRecord(f"{shard.path}: {e.strerror}") from e
    if len(data) != size:
        raise BadRecord(f"{shard.path}: cut while it was read")
    return data


def _json(data: bytes) -> dict:
    try:
        values = json.loads(data or b"{}")
    except (ValueError, RecursionError) as e:
        raise BadRecord("json damaged") from e
    if not isinstance(values, dict):
        raise BadRecord("json holds no object")
    return values


def _key(shard: _Shard, local: int) -> str:
    start = int(shard.rows[local - 1]["key_end"]) if local else 0
    return shard.keys[start : int(shard.rows[local]["key_end"])].decode()
