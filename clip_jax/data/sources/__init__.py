"""Where pairs come from: any record by its number, in any order, from any thread or process.

Costs: opening reads indexes, never images; see each kind for its memory and its rates.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Protocol

from clip_jax import files
from clip_jax.config.extend import resolve
from clip_jax.config.schema import Config, SplitConfig
from clip_jax.data.record import Example
from clip_jax.data.sources import folder, tfds, webdataset
from clip_jax.errors import UserError


class Source(Protocol):
    """A numbered list of pairs. Can be pickled, and used by several threads at once."""

    @property
    def fingerprint(self) -> str:
        """Hex hash of what decides which record has which number, and of its rough content.

        Equal for copies of the data on other hosts, different for other data or other fields.
        """
        ...

    def __len__(self) -> int:
        """The number of records, unusable ones included."""
        ...

    def __getitem__(self, i: int) -> Example:
        """Record `i` in 0..len-1. Raises BadRecord if it is unusable; it keeps its number."""
        ...

    def texts(self, i: int) -> tuple[str, ...]:
        """Only the captions of record `i`, without reading its image; empty if it has none."""
        ...


SOURCES: dict[str, Callable[[SplitConfig, str], Source]] = {
    "tfds": tfds.open_tfds,
    "webdataset": webdataset.open_webdataset,
    "folder": folder.open_folder,
}


class Limited:
    """`size` records of a source, spread evenly over it: sorted data keeps its variety."""

    def __init__(self, source: Source, size: int):
        self._source, self._size = source, min(size, len(source))
        self.fingerprint = f"{source.fingerprint}, {self._size} of {len(source)}"

    def _number(self, i: int) -> int:
        return i * len(self._source) // self._size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> Example:
        return self._source[self._number(i)]

    def texts(self, i: int) -> tuple[str, ...]:
        """Captions only."""
        return self._source.texts(self._number(i))


def open_source(cfg: SplitConfig, *, index_dir: str, limit: int = 0) -> Source:
    """Opens the pairs of a split.

    Args:
        cfg: kind, paths and fields.
        index_dir: folder of the run for indexes that cannot lie beside the data; "" = none.
        limit: use only so many records, spread over the data; 0 = all.

    Raises:
        UserError: an unknown kind, no paths, data that cannot be read, or no examples.
    """
    opener = resolve(cfg.kind, SOURCES, "config.data kind")
    if not cfg.paths and cfg.kind in SOURCES:
        raise UserError(f"config.data paths: none given for kind '{cfg.kind}'; name the data")
    source = opener(cfg, index_dir)
    if len(source) == 0:
        where = ", ".join(cfg.paths) or cfg.kind
        raise UserError(f"{where}: holds no examples; name data with at least one pair")
    return Limited(source, limit) if limit else source


def counter(workdir: str) -> Callable[[Config], int]:
    """Counts the training pairs of a config, once for all that share them, as a run finds them."""
    where = index_dir(workdir) if workdir else ""

    @functools.cache
    def size(train: SplitConfig, limit: int) -> int:
        return len(open_source(train, index_dir=where, limit=limit))

    return lambda cfg: size(cfg.data.train, cfg.data.limit)


def all_captions(source: Source) -> Iterator[str]:
    """Every caption, in the order of the records."""
    for i in range(len(source)):
        yield from source.texts(i)


def index_dir(workdir: str) -> str:
    """Folder of a run for indexes of read-only shards."""
    return files.join(workdir, "index")
