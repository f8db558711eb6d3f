"""All records of a data set, usable or not, and its images once more by the place they lie at.

For tools that go over a whole data set and report on all of it, where training takes the next
usable pair instead. Costs: as the sources; a lookup by place opens each tar or data set once.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from clip_jax.config.schema import SplitConfig
from clip_jax.data.embedded import EMBEDDED
from clip_jax.data.record import BadRecord, Place
from clip_jax.data.sources import SOURCES, Source, images, open_source
from clip_jax.data.sources.webdataset import WebDataset
from clip_jax.errors import UserError

KINDS = (*SOURCES, "images")


@runtime_checkable
class Located(Protocol):
    """Records that give their parts one by one. Can be used by several threads at once."""

    @property
    def fingerprint(self) -> str:
        """As of a Source."""
        ...

    def __len__(self) -> int: ...

    def place(self, i: int) -> Place:
        """Which record this is, without reading it."""
        ...

    def image(self, i: int) -> bytes:
        """The image file, undecoded; may be empty. Raises BadRecord if it cannot be read."""
        ...

    def texts(self, i: int) -> tuple[str, ...]:
        """The captions; may be empty."""
        ...


class _Numbered:
    """A user's own Source, which gives whole records only: the key is the number."""

    def __init__(self, source: Source):
        self._source = source
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def place(self, i: int) -> Place:
        return Place(str(i), "")

    def image(self, i: int) -> bytes:
        return self._source[i].image

    def texts(self, i: int) -> tuple[str, ...]:
        return self._source.texts(i)


def open_located(cfg: SplitConfig, *, index_dir: str) -> Located:
    """Opens data of any kind, "images" (no captions) too.

    Args:
        cfg: kind, paths and fields.
        index_dir: folder for indexes that cannot lie beside the data; "" = none.

    Raises:
        UserError: as `open_source` does.
    """
    if cfg.kind == "images":
        return images.open_images(cfg.paths)
    source = open_source(cfg, index_dir=index_dir)
    return source if isinstance(source, Located) else _Numbered(source)


def guess_kind(paths: Sequence[str], *, captions: bool) -> str:
    """The kind of data by its look.

    Args:
        paths: as in SplitConfig.
        captions: whether captions are needed; if not, sub-folders are no classes but bare images.
    """
    path = paths[0] if paths else ""
    names = _names(path)
    if path in EMBEDDED or any(_is_built(os.path.join(path, x)) for x in (".", *names)):
        return "tfds"
    if re.search(r"\.tar[^/]*$", path) or any(x.endswith(".tar") for x in names):
        return "webdataset"
    if any(x.endswith((".csv", ".tsv", ".jsonl", ".txt")) for x in names):
        return "folder"
    bare = images.is_image(path) or any(map(images.is_image, names))
    return "images" if bare or (names and not captions) else "folder"


def _names(path: str) -> list[str]:
    try:
        return [x for x in os.listdir(path) if not x.startswith(".")] if path else []
    except OSError:  # no folder, or a closed one
        return []


def _is_built(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "dataset_info.json"))


class Gallery:
    """The images of a data set by Place.image.

    Args:
        cfg: the data as it was opened.
        index_dir: see open_located.
    """

    def __init__(self, cfg: SplitConfig, *, index_dir: str):
        self._cfg, self._index_dir = cfg, index_dir
        self._open: dict[str, Located] = {}

    def read(self, place: str) -> bytes:
        """The image file that lies there.

        Raises:
            BadRecord: there is none, or it cannot be read.
        """
        try:
            if self._cfg.kind == "webdataset":
                return self._member(place)
            if self._cfg.kind == "tfds":
                directory, _, number = place.rpartition("#")
                return self._source(directory).image(int(number))
            with open(place, "rb") as f:
                return f.read()
        except (UserError, OSError, ValueError, IndexError) as e:
            raise BadRecord(f"{place}: no image there any more") from e

    def _member(self, place: str) -> bytes:
        for mark in re.finditer("#", place):  # a path may hold the sign too
            tar, key = place[: mark.start()], place[mark.end() :]
            if os.path.isfile(tar):
                source = self._source(tar)
                assert isinstance(source, WebDataset), "of this kind"
                if (number := source.find(key)) is not None:
                    return source.image(number)
        raise BadRecord(f"{place}: no image there any more")

    def _source(self, path: str) -> Located:
        if path not in self._open:
            cfg = dataclasses.replace(self._cfg, paths=(path,))
            self._open[path] = open_located(cfg, index_dir=self._index_dir)
        return self._open[path]
