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

Up to THREADS shards are opened at once, where that is mostly waiting, as on a mounted bucket.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import glob
import itertools
import json
import os
import random
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from clip_jax import files
from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import BadRecord, Example, Place, checked, clean_texts, digest, scalars
from clip_jax.data.sources.shard import VERSION, Shard, Suffixes, open_shard
from clip_jax.errors import UserError
from clip_jax.metrics.writers import LiveLine

T = TypeVar("T")
THREADS = 32  # that look for shards and open them
QUIET_S = 10  # how long that may take without a word
_MAX_SHARDS = 1_000_000


def open_webdataset(cfg: SplitConfig, index_dir: str) -> "WebDataset":
    """Opens the tars of `cfg.paths`, building the indexes that are missing."""
    suffixes = _suffixes(cfg)
    paths = expand(cfg.paths)
    ended = threading.Event()

    def opened(i: int) -> tuple[int, Shard]:
        return i, open_shard(paths[i], found[i], suffixes, index_dir, ended)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:  # a missing shard is told before any is indexed
            found = list(_told(pool.map(_stat, paths), len(paths), "looking for shard"))
            # In another order on each host: those that share a disk seldom index the same shard.
            order = random.Random(socket.gethostname()).sample(range(len(paths)), len(paths))
            shards = dict(_told(_in_turn(opened, order, pool), len(paths), "opening shard"))
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
    return WebDataset([shards[i] for i in range(len(paths))], suffixes)


def _in_turn(
    opened: Callable[[int], T], order: list[int], pool: concurrent.futures.Executor
) -> Iterator[T]:
    """The first alone, then as many at once as its waiting asks for; as they are done."""
    wall, cpu = time.monotonic(), time.thread_time()
    first = [opened(i) for i in order[:1]]
    turns = threading.Semaphore(at_once(time.monotonic() - wall, time.thread_time() - cpu))
    yield from first

    def turn(i: int) -> T:
        with turns:
            return opened(i)

    for shard in concurrent.futures.as_completed([pool.submit(turn, i) for i in order[1:]]):
        yield shard.result()


def at_once(wall_s: float, cpu_s: float) -> int:
    """How many shards to open at once when one takes this long.

    On a mounted bucket each waits for round trips. On a disk it hardly waits, and more threads
    only pass Python's lock on.
    """
    return max(1, min(THREADS, round(wall_s / max(cpu_s, 1e-6))))


def _told(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """The same items; process 0 tells how far it is if they take long."""
    began, live = time.monotonic(), None
    try:
        for done, item in enumerate(items, 1):
            if live is None and time.monotonic() - began > QUIET_S:
                from clip_jax.sharding.processes import lead  # jax is slow to come

                live = LiveLine(total, sys.stderr if lead() else None, unit=unit)
            if live is not None:
                live.update(done, {})
            yield item
    finally:
        if live is not None:
            live.close()


def expand(paths: Iterable[str]) -> list[str]:
    """Shards of paths with {00000..00009}, {a,b} and globs, in this order; a glob is sorted.

    Raises:
        UserError: a URL, a glob without a file, or a shard given twice.
    """
    found = [x for path in paths for pattern in _braces(path) for x in _glob(pattern)]
    for path, count in collections.Counter(found).items():
        if count > 1:
            raise UserError(f"{path}: given {count} times; name each shard once")
    return found


class WebDataset:
    """A Source over indexed tars."""

    def __init__(self, shards: list[Shard], suffixes: Suffixes):
        self._shards, self._suffixes = shards, suffixes
        self._ends = list(itertools.accumulate(len(s) for s in shards))
        names = [(os.path.basename(s.path), s.size, len(s), s.crc) for s in shards]
        self.fingerprint = digest("webdataset", VERSION, dataclasses.astuple(suffixes), names)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Example:
        shard, local = self._locate(i)
        image, text, data = shard.read(local, "image", "text", "json")
        values = _json(data)
        fields = scalars(values, without=self._suffixes.json_key)
        return checked(shard.key(local), image, self._captions(text, values), fields)

    def texts(self, i: int) -> tuple[str, ...]:
        """Only the captions; empty if there are none."""
        shard, local = self._locate(i)
        try:
            if self._suffixes.json_key:
                return self._captions(b"", _json(shard.read(local, "json")[0]))
            return self._captions(shard.read(local, "text")[0], {})
        except BadRecord:
            return ()

    def place(self, i: int) -> Place:
        """Key and TAR#KEY."""
        shard, local = self._locate(i)
        key = shard.key(local)
        return Place(key, f"{os.path.abspath(shard.path)}#{key}")

    def image(self, i: int) -> bytes:
        """Only the image file; empty if there is none. Raises BadRecord if it cannot be read."""
        shard, local = self._locate(i)
        return shard.read(local, "image")[0]

    def find(self, key: str) -> int | None:
        """The first record with this key, found by walking over all keys."""
        keys = (s.key(i) for s in self._shards for i in range(len(s)))
        return next((i for i, x in enumerate(keys) if x == key), None)

    def _captions(self, text: bytes, values: dict) -> tuple[str, ...]:
        if not self._suffixes.json_key:
            return clean_texts([text])
        found = values.get(self._suffixes.json_key, ())
        return clean_texts(found if isinstance(found, list) else [found])

    def _locate(self, i: int) -> tuple[Shard, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = bisect.bisect_right(self._ends, i)
        shard = self._shards[number]
        return shard, i - self._ends[number] + len(shard)


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
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    found = [x for x in sorted(glob.glob(pattern)) if not re.search(r"\.idx(\.tmp-\w+)?$", x)]
    if not found:
        raise UserError(f"{pattern}: no file matches; check the pattern")
    return found


def _stat(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: no such file; check the path") from e
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: is a folder; name the tars in it, e.g. {path}/*.tar")
    return found


def _suffixes(cfg: SplitConfig) -> Suffixes:
    image = tuple(x.strip(" .").lower() for x in cfg.image_field.split(",") if x.strip(" ."))
    field = cfg.caption_field or "txt"
    if not field.startswith("json:"):
        return Suffixes(image or ("jpg", "jpeg", "png", "webp"), field.strip(" .").lower(), "")
    key = field.removeprefix("json:")
    if not key:
        raise UserError("caption_field: no key (got 'json:'); use 'json:caption' or the like")
    return Suffixes(image or ("jpg", "jpeg", "png", "webp"), "", key)


def _json(data: bytes) -> dict:
    try:
        values = json.loads(data or b"{}")
    except (ValueError, RecursionError) as e:
        raise BadRecord("json damaged") from e
    if not isinstance(values, dict):
        raise BadRecord("json holds no object")
    return values
