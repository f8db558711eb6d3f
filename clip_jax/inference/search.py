"""The nearest images of a folder of embeddings, and the page that shows them.

Letters: b rows, e embedding.
Costs: exact and without a separate index, so every part is read: about 4 e bytes a row from disk;
memory for one part and the best few.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from clip_jax import files
from clip_jax.data.record import BadRecord, decode_image
from clip_jax.data.sources.located import Gallery
from clip_jax.errors import UserError
from clip_jax.inference.api import Model
from clip_jax.inference.index import (
    META,
    Index,
    Rows,
    model_digest,
    part_name,
    read_images,
    read_index,
    require_pyarrow,
)
from clip_jax.report.sheet import Picture, Sheet, write_sheet

THUMBNAIL_PX = 256


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image that was found: its cosine similarity to what was asked for, and its row."""

    similarity: float
    key: str
    path: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The best hits, best first, among num_images; num_missing parts are not embedded yet."""

    hits: list[Hit]
    num_images: int
    num_missing: int


def open_index(folder: str) -> Index:
    """What embed.json says, if one can search there.

    Raises:
        UserError: no embeddings, or none of images; pyarrow is not installed.
    """
    require_pyarrow()
    index = read_index(folder)
    if index is None:
        what = f"no {META} in it" if files.exists(folder) else "no such folder"
        raise UserError(f"{folder}: {what}; make the embeddings with `clip_jax embed`")
    if index.what == "text":
        raise UserError(f"{folder}: holds embeddings of texts alone; embed with --what=both")
    return index


def check_model(folder: str, index: Index, model: Model, source: str) -> None:
    """Refuses any model but the one that embedded: angles between two models mean nothing.

    Args:
        folder: of the embeddings, for the message.
        index: of the embeddings.
        model: that will embed what is looked for.
        source: its name, for the message.

    Raises:
        UserError: the weights differ.
    """
    digest = model_digest(model)
    if digest != index.model:
        raise UserError(
            f"{folder}: embedded by another model (was {index.source}, weights {index.model[:8]}; "
            f"got {source}, weights {digest[:8]}); give that one, or embed once more"
        )


def search(folder: str, index: Index, query: np.ndarray, top: int) -> Found:
    """The `top` images with the highest cosine to `query` (e,), ties in the order of their keys.

    Raises:
        UserError: no part is there, no image is in it, or a part cannot be read.
    """
    names = set(files.names(folder))
    parts = [x for x in range(index.num_parts) if part_name(x) in names]
    best: list[Hit] = []
    num_images = 0
    for part in parts:
        for rows in read_images(files.join(folder, part_name(part)), index.embed_dim):
            best = _merge(best, rows, query, top)
            num_images += len(rows.z)
    if not num_images:
        what = "no image is embedded" if parts else "no part is written yet"
        raise UserError(f"{folder}: {what}; run the same `clip_jax embed` again")
    return Found(best, num_images, index.num_parts - len(parts))


def _merge(best: list[Hit], rows: Rows, query: np.ndarray, top: int) -> list[Hit]:
    # Row by row: a matrix product may round equal rows differently, and break their tie.
    similarity = (rows.z * query).sum(axis=1)  # (b,)
    good = np.isfinite(similarity)
    if len(best) == top:
        good &= similarity >= np.float32(best[-1].similarity)
    if good.sum() > top:
        good &= similarity >= np.partition(similarity[good], -top)[-top]
    chosen = np.flatnonzero(good).tolist()
    found = [
        Hit(float(similarity[i]), x["key"] or "", x["path"] or "", x["caption"] or "")
        for i, x in zip(chosen, rows.strings(chosen), strict=True)
    ]
    return sorted(best + found, key=lambda x: (-x.similarity, x.key, x.path))[:top]


# The page


def write_page(
    path: str, folder: str, index: Index, found: Found, *, text: str, image: str, index_dir: str
) -> None:
    """Writes the page that shows what was found; an image that is gone leaves a box.

    Args:
        path: of the page.
        folder: of the embeddings.
        index: of the embeddings.
        found: by `search`.
        text: that was looked for, or "".
        image: path of the picture that was looked for, or "".
        index_dir: folder for indexes of read-only tars; "" = none.

    Raises:
        UserError: it cannot be written.
    """
    gallery = Gallery(index.data, index_dir=index_dir)
    facts = [
        ("model", index.source),
        ("embeddings", folder),
        ("data", " ".join(index.data.paths)),
        ("software", ", ".join(index.software)),
    ]
    pictures = [
        Picture(*_shown(gallery.read, x.path), x.path or x.key, x.caption, x.similarity)
        for x in found.hits
    ]
    query = Picture(*_shown(files.read_bytes, image), image, "", 1.0)
    write_sheet(path, Sheet(text, query, pictures, found.num_images, facts))


def _shown(read: Callable[[str], bytes], path: str) -> tuple[bytes, int]:
    try:
        return thumbnail(read(path)) if path else (b"", 0)
    except (BadRecord, OSError):
        return b"", 0


def thumbnail(image: bytes) -> tuple[bytes, int]:
    """A JPEG of at most THUMBNAIL_PX pixels a side, and its longer side.

    Raises:
        BadRecord: the image cannot be decoded.
    """
    picture = Image.fromarray(decode_image(image, 3))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "jpeg", quality=85)
    return out.getvalue(), max(picture.size)
