"""All pairs of a data set as embeddings in a folder, restartable part by part.

Letters: b rows, e embedding.
Costs: threads decode while the devices work; memory for one part of embeddings and about two
batches of decoded images. A restart decodes and embeds only the parts that are missing.
"""

import collections
import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Iterable, Iterator

import numpy as np

from clip_jax import files
from clip_jax.checkpoint import lock
from clip_jax.data.record import BadRecord
from clip_jax.data.sources.located import Located
from clip_jax.errors import UserError
from clip_jax.inference.ahead import ahead
from clip_jax.inference.api import Model
from clip_jax.inference.index import (
    META,
    Index,
    Part,
    encode,
    part_name,
    read_errors,
    read_index,
    write_index,
)
from clip_jax.metrics.writers import LiveLine

_PART = re.compile(r"part-\d+\.parquet")
_LEFT_OVER = re.compile(r"(part-\d+\.parquet|embed\.json)\.tmp-\w+")


@dataclasses.dataclass(frozen=True)
class Summary:
    """num_rows in num_parts, of which `stood` were there before; reasons of missing embeddings."""

    num_rows: int
    num_parts: int
    stood: int
    errors: collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A record, decoded: pixels uint8 (y, x, c). None is what is missing or was not asked for."""

    key: str
    path: str
    caption: str | None
    pixels: np.ndarray | None
    error: str | None


def embed(model: Model, data: Located, index: Index, folder: str, live: LiveLine) -> Summary:
    """Writes the parts of `index` that are missing in `folder`.

    Args:
        model: makes the embeddings.
        data: what to embed.
        index: goes into embed.json.
        folder: local or remote; created.
        live: shows the progress.

    Raises:
        UserError: the folder holds embeddings of another model, data or part size, is in use by
            another process, or cannot be written.
    """
    with lock.hold(folder, live.say):
        _claim(folder, index)
        errors = _standing(folder, index, live)
        stood = len(errors)
        todo = [part for part in range(index.num_parts) if part not in errors]
        if stood:
            live.say(f"{folder}: {stood} of {index.num_parts} parts stand already")
        progress = _Progress(live, sum(len(index.records(x)) for x in errors))

        def read(record: int) -> _Row:
            return _read(model, data, index.what, record)

        records = (record for part in todo for record in index.records(part))
        with contextlib.closing(ahead(read, records, window=2 * model.batch_size)) as rows:
            for part in todo:
                # Batches end with their part, so that a part never depends on where a run began.
                of_part = itertools.islice(rows, len(index.records(part)))
                chunks = progress.count(_chunks(of_part, model.batch_size))
                done = _join([_embed(model, x, index.what) for x in chunks])
                files.write_bytes(files.join(folder, part_name(part)), encode(done))
                errors[part] = collections.Counter(x for x in done.error if x)
    total = sum(errors.values(), collections.Counter())
    return Summary(index.num_records, index.num_parts, stood, total)


# The folder


def _claim(folder: str, index: Index) -> None:
    """Makes the folder that of `index`, or refuses."""
    names, old = files.names(folder), read_index(folder)
    if old is None:
        if any(map(_PART.fullmatch, names)):
            raise UserError(f"{folder}: holds parts but no {META}; choose another --out")
        write_index(folder, index)
    elif changes := list(_changes(old, index)):
        raise UserError(
            f"{folder}: holds other embeddings ({', '.join(changes)}); choose another --out"
        )
    for name in filter(_LEFT_OVER.fullmatch, names):  # of a killed process
        files.remove(files.join(folder, name))


def _changes(old: Index, new: Index) -> Iterator[str]:
    if old.model != new.model:
        yield f"model: was {old.source} ({old.model[:8]}), now {new.source} ({new.model[:8]})"
    if old.fingerprint != new.fingerprint:
        was, now = " ".join(old.data.paths), " ".join(new.data.paths)
        yield f"data: was {was} ({old.fingerprint[:8]}), now {now} ({new.fingerprint[:8]})"
    for name in ("part_size", "what"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            yield f"{name}: was {was}, now {now}"


def _standing(folder: str, index: Index, live: LiveLine) -> dict[int, collections.Counter[str]]:
    """The errors in each part that is there; one that cannot be read is as good as missing."""
    names, found = set(files.names(folder)), {}
    for part in range(index.num_parts):
        if part_name(part) not in names:
            continue
        try:
            errors = read_errors(files.join(folder, part_name(part)))
        except UserError:
            errors = []
        if len(errors) == len(index.records(part)):
            found[part] = collections.Counter(x for x in errors if x)
        else:
            live.say(f"{part_name(part)}: damaged, made once more")
    return found


# The work


class _Progress:
    """Counts rows on the live line."""

    def __init__(self, live: LiveLine, done: int):
        self._live, self._done, self._new = live, done, 0
        self._start = time.monotonic()

    def count(self, chunks: Iterable[list[_Row]]) -> Iterator[list[_Row]]:
        for chunk in chunks:
            yield chunk
            self._new += len(chunk)
            rate = self._new / max(time.monotonic() - self._start, 1e-9)
            self._live.update(self._done + self._new, {"speed/examples_per_s": rate})


def _chunks(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _read(model: Model, data: Located, what: str, record: int) -> _Row:
    place, pixels, errors = data.place(record), None, []
    caption = next((_utf8(x) for x in data.texts(record)), None)
    if what != "text":
        try:
            pixels = _pixels(model, data.image(record))
        except BadRecord as e:
            errors.append(str(e))
    if what != "image" and caption is None:
        errors.append("caption missing or empty")
    return _Row(_utf8(place.key), _utf8(place.image), caption, pixels, "; ".join(errors) or None)


def _pixels(model: Model, image: bytes) -> np.ndarray:
    if not image:
        raise BadRecord("image missing or empty")
    try:
        return model.preprocess(image)
    except UserError as e:
        raise BadRecord(str(e.__cause__ or e)) from e  # without the advice


def _utf8(text: str) -> str:
    """Halves of surrogate pairs, which JSON may bring, have no place in Parquet."""
    return text.encode("utf-8", "replace").decode()


def _embed(model: Model, rows: list[_Row], what: str) -> Part:
    images = [x.pixels for x in rows if x.pixels is not None]
    texts = [x.caption for x in rows if x.caption is not None] if what != "image" else []
    has_image = np.array([x.pixels is not None for x in rows])
    has_text = np.array([x.caption is not None for x in rows]) & (what != "image")
    shape = (len(rows), model.config.model.embed_dim)
    image, text = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    image[has_image] = model.embed_images(images)
    text[has_text] = model.embed_texts(texts)
    return Part(
        key=[x.key for x in rows],
        path=[x.path for x in rows],
        caption=[x.caption for x in rows],
        error=[x.error for x in rows],
        image=image,
        has_image=has_image,
        text=text,
        has_text=has_text,
        similarity=(image * text).sum(axis=1),  # (b,)
    )


def _join(parts: list[Part]) -> Part:
    flat = itertools.chain.from_iterable
    return Part(
        key=list(flat(x.key for x in parts)),
        path=list(flat(x.path for x in parts)),
        caption=list(flat(x.caption for x in parts)),
        error=list(flat(x.error for x in parts)),
        image=np.concatenate([x.image for x in parts]),
        has_image=np.concatenate([x.has_image for x in parts]),
        text=np.concatenate([x.text for x in parts]),
        has_text=np.concatenate([x.has_text for x in parts]),
        similarity=np.concatenate([x.similarity for x in parts]),
    )
