"""A folder of embeddings: what `clip_jax embed` writes and `clip_jax search` reads.

    DIR/embed.json            Index: model, data, sizes, software; written first
    DIR/part-00000.parquet    records 0 .. part_size-1, one row each, in the order of the data
    DIR/part-00001.parquet    the next part_size records, and so on

Columns: key, path (of the image: a file, TAR#KEY or DATA_SET#NUMBER), caption (the first), the
float32 unit vectors image_embedding and text_embedding, their cosine similarity, and error: why an
embedding is null. The only file that knows Parquet.

Letters: b rows, e embedding.
Costs: 8 e bytes a row with both embeddings; reading holds one part in memory.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax import files
from clip_jax.checkpoint.checksum import checksums, paths
from clip_jax.checkpoint.manifest import spec
from clip_jax.config.codec import from_dict, to_dict
from clip_jax.config.schema import SplitConfig
from clip_jax.errors import UserError
from clip_jax.inference.api import Model

META = "embed.json"
VERSION = 1
_BATCH_ROWS = 4096
_PACKAGES = ("clip-jax-pretrain", "jax", "numpy", "pillow", "pyarrow")


@dataclasses.dataclass(frozen=True)
class Index:
    """What lies in the folder.

    Attributes:
        source: the model, as it was given to `clip_jax.load`.
        model: its digest, see `model_digest`.
        embed_dim: e.
        what: "both", "image" or "text": the embeddings that were asked for.
        part_size: records a part.
        num_records: of the data.
        fingerprint: of the data.
        data: how the data was opened.
        software: "package version" of what wrote it.
        version: of this layout.
    """

    source: str
    model: str
    embed_dim: int
    what: str
    part_size: int
    num_records: int
    fingerprint: str
    data: SplitConfig
    software: tuple[str, ...]
    version: int = VERSION

    @property
    def num_parts(self) -> int:
        """How many parts the records fill."""
        return -(-self.num_records // self.part_size)

    def records(self, part: int) -> range:
        """The records of a part."""
        start = part * self.part_size
        return range(start, min(start + self.part_size, self.num_records))


def model_digest(model: Model) -> str:
    """Hex hash of the weights, equal on any mesh and from any file that they are loaded from.

    Costs: one pass over the parameters where they are, see checkpoint/checksum.py.
    """
    weights = {"params": model.params, "stats": model.stats}
    shapes = {path: spec(x) for path, x in paths(weights).items()}
    whole = json.dumps([shapes, checksums(weights)], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def software() -> tuple[str, ...]:
    """The versions of what makes an embedding."""
    found = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def part_name(part: int) -> str:
    """Its file name."""
    return f"part-{part:05d}.parquet"


def write_index(folder: str, index: Index) -> None:
    """Writes embed.json whole."""
    text = json.dumps(to_dict(index), indent=1)
    files.write_bytes(files.join(folder, META), text.encode() + b"\n")


def read_index(folder: str) -> Index | None:
    """What embed.json says; None if there is none.

    Raises:
        UserError: it is damaged, or of a layout that this version does not know.
    """
    path = files.join(folder, META)
    try:
        data = json.loads(files.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); check it") from e
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e}); embed into another folder") from e
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise UserError(f"{path}: layout version {version}, known is {VERSION}; embed once more")
    try:
        return from_dict(data, Index, path)
    except TypeError as e:  # a field is missing
        raise UserError(f"{path}: damaged ({e}); embed into another folder") from e


# Parquet


def require_pyarrow() -> Any:
    """The package, with pyarrow.parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(
            f"pyarrow: cannot be imported (got {e}); run pip install 'clip-jax-pretrain[embed]'"
        ) from e
    return pyarrow


@dataclasses.dataclass(frozen=True)
class Part:
    """The columns of a part. An embedding that is missing has a False in `has_...` (b,)."""

    key: Sequence[str]
    path: Sequence[str]
    caption: Sequence[str | None]
    error: Sequence[str | None]
    image: np.ndarray  # float32 (b, e)
    has_image: np.ndarray
    text: np.ndarray  # float32 (b, e)
    has_text: np.ndarray
    similarity: np.ndarray  # float32 (b,)


def encode(part: Part) -> bytes:
    """The part as a Parquet file; the same part gives the same bytes."""
    pa = require_pyarrow()
    string, both = pa.string(), part.has_image & part.has_text
    columns = {
        "key": pa.array(part.key, string),
        "path": pa.array([x or None for x in part.path], string),
        "caption": pa.array(part.caption, string),
        "image_embedding": _vectors(pa, part.image, part.has_image),
        "text_embedding": _vectors(pa, part.text, part.has_text),
        "similarity": pa.array(part.similarity, pa.float32(), mask=~both),
        "error": pa.array(part.error, string),
    }
    out = pa.BufferOutputStream()
    # Embeddings hardly repeat, so a dictionary of them costs time and room.
    pa.parquet.write_table(pa.table(columns), out, use_dictionary=["caption", "error"])
    return out.getvalue().to_pybytes()


def _vectors(pa: Any, z: np.ndarray, there: np.ndarray) -> Any:
    flat = pa.array(np.ascontiguousarray(z, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, z.shape[1], mask=pa.array(~there))


def read_errors(path: str) -> list[str | None]:
    """The column `error` of a part.

    Raises:
        UserError: the file cannot be read.
    """
    with _reading(path) as file:
        return file.read(columns=["error"]).column("error").to_pylist()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a part that have an image embedding: z float32 (b, e), and the rest of them."""

    z: np.ndarray
    records: Any

    def strings(self, rows: Sequence[int]) -> list[dict[str, str | None]]:
        """key, path and caption of these rows."""
        return self.records.take(require_pyarrow().array(rows, "int64")).to_pylist()


def read_images(path: str, embed_dim: int) -> Iterator[Rows]:
    """The image embeddings of a part, some thousand rows at a time.

    Raises:
        UserError: the file cannot be read, or holds no vectors of this size.
    """
    names = ["key", "path", "caption"]
    with _reading(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=[*names, "image_embedding"]):
            vectors = batch.column("image_embedding")
            size = getattr(vectors.type, "list_size", 0)
            if size != embed_dim:
                raise UserError(
                    f"{path}: embeddings of {size} numbers, and {META} says {embed_dim}; embed "
                    "into another folder"
                )
            z = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, embed_dim)
            yield Rows(z, batch.filter(vectors.is_valid()).select(names))


@contextlib.contextmanager
def _reading(path: str) -> Iterator[Any]:
    """A Parquet file to read; whatever is wrong with it becomes one line."""
    pa = require_pyarrow()
    try:
        yield pa.parquet.ParquetFile(pa.BufferReader(files.read_bytes(path)))
    except (pa.ArrowException, OSError, KeyError) as e:
        line = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{path}: cannot be read ({line}); delete it and run the same `clip_jax embed` again"
        ) from e
