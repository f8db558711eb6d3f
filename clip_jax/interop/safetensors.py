"""safetensors files: 8 bytes with the length of a JSON header, the header, the arrays.

The format: github.com/huggingface/safetensors. Read with `pread`, not mapped: pages of a mapped
file count as memory of the process. Costs: the header is in memory, and one array at a time.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import BinaryIO, TypeGuard

import ml_dtypes
import numpy as np

from clip_jax import files
from clip_jax.errors import UserError, near
from clip_jax.interop.tensors import (
    AGAIN,
    MAX_HEADER,
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
    reading,
    shown,
)

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_PIECE = 1 << 30  # bytes of one read; Linux gives at most 2 GiB


@dataclasses.dataclass
class _File:
    path: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    metadata: dict[str, str]
    _starts: dict[str, int]
    _file: BinaryIO

    def read(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise missing(self.path, name, self.shapes)
        where = f"{self.path}: tensor {shown(name)}"
        array = empty(where, self.shapes[name], self.dtypes[name])
        view, done = as_bytes(array), 0
        while done < len(view):
            with reading(self.path):
                place = self._starts[name] + done
                count = os.preadv(self._file.fileno(), [view[done : done + _PIECE]], place)
            if not count:
                raise UserError(f"{where}: its bytes end early; {AGAIN}")
            done += count
        return array

    def close(self) -> None:
        self._file.close()


@dataclasses.dataclass
class _Shards:
    path: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    metadata: dict[str, str]
    _shard_of: dict[str, Tensors]

    def read(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise missing(self.path, name, self.shapes)
        return self._shard_of[name].read(name)

    def close(self) -> None:
        for shard in self._shard_of.values():
            shard.close()


def open_safetensors(path: str) -> Tensors:
    """Opens a file and checks its header whole, so that only a failing disk can stop a read.

    Raises:
        UserError: not such a file, or damaged: one line with the path and the tensor.
    """
    check_file(path)
    with reading(path):
        f = open(path, "rb", buffering=0)  # lives as long as the result
    try:
        with reading(path):
            size = os.fstat(f.fileno()).st_size
            header, start = _read_header(f, path, size)
        metadata = header.pop(_METADATA, {})
        if not _is_text(metadata):
            raise UserError(f"{path}: {_METADATA} is not an object of texts; {AGAIN}")
        places = {name: _place(path, name, entry) for name, entry in header.items()}
        names = _in_order(path, places, size - start)
    except BaseException:
        f.close()
        raise
    return _File(
        path,
        shapes={name: places[name].shape for name in names},
        dtypes={name: places[name].dtype for name in names},
        metadata=metadata,
        _starts={name: start + places[name].begin for name in names},
        _file=f,
    )


def _read_header(f: BinaryIO, path: str, size: int) -> tuple[dict, int]:
    """The header and the offset of the byte after it."""
    length = int.from_bytes(os.pread(f.fileno(), 8, 0), "little")
    if size < 10 or os.pread(f.fileno(), 1, 8) != b"{":
        if kind(path) != "unknown":
            raise not_a(path, "safetensors")
        what = f"has {size} bytes, too few" if size < 10 else "no header that begins with {"
        raise UserError(f"{path}: is not a safetensors file ({what}); {AGAIN}")
    if length > MAX_HEADER:
        raise UserError(f"{path}: header of {length} bytes, at most {MAX_HEADER} allowed; {AGAIN}")
    if 8 + length > size:
        raise UserError(f"{path}: header of {length} bytes in a file of {size}; {AGAIN}")
    return _parse(path, os.pread(f.fileno(), length, 8), "header"), 8 + length


def _parse(path: str, raw: bytes, where: str) -> dict:
    """A JSON object, each key once, without NaN and half characters. Raises UserError."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{path}: {where}: key {shown(key)} is given twice; {AGAIN}")
            found[key] = value
        return found

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        text = raw.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: {where} is not JSON in UTF-8; {AGAIN}") from e
    if not isinstance(parsed, dict):
        raise UserError(f"{path}: {where} is not a JSON object; {AGAIN}")
    return parsed


def _is_text(values: object) -> TypeGuard[dict[str, str]]:
    return isinstance(values, dict) and all(isinstance(x, str) for x in values.values())


@dataclasses.dataclass(frozen=True)
class _Place:
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # offsets from the end of the header
    end: int


def _place(path: str, name: str, entry: object) -> _Place:
    """One entry of the header, checked by itself. Raises UserError."""
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: its entry is not an object (got {shown(entry)}); {AGAIN}")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            raise UserError(f"{where}: has no {key}; {AGAIN}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        hint = near(code, DTYPES) if isinstance(code, str) else ""
        raise UserError(
            f"{where}: unknown dtype {shown(code)}{hint}; convert it to one of {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list):
        raise UserError(f"{where}: shape {shown(shape)} is not a list; {AGAIN}")
    dtype = DTYPES[code]
    size = count_bytes(where, tuple(shape), dtype)
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(x) is int for x in offsets)
        and 0 <= offsets[0] <= offsets[1]
    ):
        raise UserError(
            f"{where}: data_offsets {shown(offsets)} are not a begin and an end; {AGAIN}"
        )
    begin, end = offsets
    if end - begin != size:
        raise UserError(
            f"{where}: data_offsets {shown(offsets)} span {shown(end - begin)} bytes, but "
            f"{code} {shown(shape)} takes {size}; {AGAIN}"
        )
    return _Place(dtype, tuple(shape), begin, end)


def _in_order(path: str, places: dict[str, _Place], size: int) -> list[str]:
    """Names in the order of their bytes, which must fill the `size` bytes of data exactly.

    Raises:
        UserError: out of the file, an overlap, a hole, or more bytes after the last array.
    """
    names = sorted(places, key=lambda name: (places[name].begin, places[name].end))
    done, before = 0, ""
    for name in names:
        where, place = f"{path}: tensor {shown(name)}", places[name]
        span = f"data_offsets [{place.begin}, {place.end}]"
        if place.end > size:
            raise UserError(f"{where}: {span} end after the {size} bytes of data; {AGAIN}")
        if place.begin < done:
            raise UserError(f"{where}: {span} overlap with those of {shown(before)}; {AGAIN}")
        if place.begin > done:
            raise UserError(f"{where}: {span} leave a hole after byte {done}; {AGAIN}")
        done, before = place.end, name
    if done < size:
        raise UserError(f"{path}: {size - done} bytes after the last tensor; {AGAIN}")
    return names


def open_sharded(path: str) -> Tensors:
    """Opens what `model.safetensors.index.json` lists; the shards lie in the same folder.

    Tensors of a shard that the list does not name are left out.

    Raises:
        UserError: no such list, a shard is missing or damaged, or a name is not in its shard.
    """
    check_file(path)
    with reading(path), open(path, "rb") as f:
        index = _parse(path, f.read(), "the list of shards")
    weight_map = index.get("weight_map")
    if not _is_text(weight_map):
        raise UserError(f"{path}: has no weight_map of names to file names; {AGAIN}")
    shards: dict[str, Tensors] = {}
    try:
        for name, shard in weight_map.items():
            if shard not in shards:
                shards[shard] = _open_shard(path, shard)
            if name not in shards[shard].shapes:
                raise UserError(
                    f"{path}: tensor {shown(name)} is not in {shown(shard)}, where weight_map "
                    "says it is; get both files again"
                )
    except BaseException:
        for opened in shards.values():
            opened.close()
        raise
    return _Shards(
        path,
        shapes={name: shards[shard].shapes[name] for name, shard in weight_map.items()},
        dtypes={name: shards[shard].dtypes[name] for name, shard in weight_map.items()},
        metadata={k: v for shard in shards.values() for k, v in shard.metadata.items()},
        _shard_of={name: shards[shard] for name, shard in weight_map.items()},
    )


def _open_shard(index: str, shard: str) -> Tensors:
    if os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
        raise UserError(
            f"{index}: shard {shown(shard)} is not the name of a .safetensors file in the same "
            "folder; convert the weights to safetensors"
        )
    path = os.path.join(os.path.dirname(index), shard)
    if not os.path.exists(path):
        raise UserError(f"{index}: shard {shown(shard)} is missing; get it into the same folder")
    return open_safetensors(path)


def write_safetensors(path: str, items: Iterable[Item], metadata: dict[str, str]) -> None:
    """Writes a file array by array, in the order of the items; it appears whole or not at all.

    Args:
        path: a local file; an old one is replaced.
        items: the arrays; each is made when its turn comes.
        metadata: texts for the header; PyTorch programs ask for {"format": "pt"}.

    Raises:
        UserError: the file system refuses.
        ValueError: a name twice, a dtype that the format lacks, or an array not as announced.
    """
    if files.is_remote(path):
        raise UserError(f"{path}: is written to a local disk only; copy it from there")
    items = list(items)
    check_names(items)
    header: dict[str, object] = {_METADATA: metadata} if metadata else {}
    if not _is_text(metadata):
        raise ValueError(f"metadata must be texts (got {metadata})")
    begin = 0
    for name, shape, dtype, _ in items:
        if dtype not in _NAMES or name == _METADATA:
            raise ValueError(f"{name}: {dtype} has no place in safetensors")
        end = begin + count_bytes(name, shape, dtype)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    with files.replacing(path) as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for item in items:
            f.write(as_bytes(make(item)))
