"""Folders of image files. Three layouts, told apart by what lies at the top of the folder:

1. one table (`captions.csv`, `*.tsv`, `metadata.jsonl`): a column of image paths relative to the
   folder, a column of captions; other columns become fields;
2. sub-folders named after classes: the caption is `caption_template` with the class name; fields
   `label` (its number in sorted order) and `name`;
3. images with captions beside them: `dog1.jpg` and `dog1.txt`.

Costs: everything but the pixels is held in memory (about 0.5 KB a row), and opening asks the file
system for the size of every image; for millions of pairs use tars.
"""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

from clip_jax import files
from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import (
    IMAGE_SUFFIXES,
    BadRecord,
    Example,
    Place,
    checked,
    clean_texts,
    digest,
    printable,
    scalars,
)
from clip_jax.errors import UserError, near

_IMAGE_COLUMNS = ("image", "file_name", "filepath", "filename", "path")
_CAPTION_COLUMNS = ("caption", "text", "title", "captions")
_TABLES = ("csv", "tsv", "jsonl")


@dataclasses.dataclass(frozen=True)
class _Row:
    key: str
    image: str  # path
    image_size: int  # -1 = missing
    texts: tuple[str, ...]
    fields: dict[str, int | str]
    text_file: str = ""  # the captions are in this file instead


class Folder:
    """A Source over image files."""

    def __init__(self, rows: list[_Row]):
        self._rows = rows
        parts = [
            (r.key, r.image_size, r.texts, sorted(r.fields.items()), _size(r.text_file))
            for r in rows
        ]
        self.fingerprint = digest("folder", 1, parts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        return checked(row.key, _read(row.image, "image"), _captions(row), dict(row.fields))

    def texts(self, i: int) -> tuple[str, ...]:
        """Only the captions; empty if there are none."""
        try:
            return _captions(self._rows[i])
        except BadRecord:
            return ()

    def place(self, i: int) -> Place:
        """Key and path."""
        row = self._rows[i]
        return Place(row.key, printable(os.path.abspath(row.image)) if row.image else "")

    def image(self, i: int) -> bytes:
        """Only the image file. Raises BadRecord if it cannot be read."""
        return _read(self._rows[i].image, "image")


def open_folder(cfg: SplitConfig, index_dir: str) -> Folder:
    """Opens the folders of `cfg.paths`, one after the other.

    Raises:
        UserError: no such folder, no layout or two at once, a table that cannot be read, an image
            path that leaves its folder.
    """
    del index_dir  # nothing to store
    classes: set[str] = set()  # of all folders, so that a class has one number
    for root in cfg.paths:
        classes.update(_sub_folders(root))
    numbers = {name: n for n, name in enumerate(sorted(classes))}
    return Folder([row for root in cfg.paths for row in _rows(root, cfg, numbers)])


def _rows(root: str, cfg: SplitConfig, numbers: dict[str, int]) -> Iterator[_Row]:
    names = _names(root)
    tables = [x for x in names if _suffix(x) in _TABLES]
    if len(tables) > 1:
        raise UserError(f"{root}: several tables ({', '.join(tables)}); keep one, move the others")
    if tables:
        return _table_rows(root, tables[0], cfg)
    images = [x for x in names if _suffix(x) in IMAGE_SUFFIXES]
    subs = _sub_folders(root)
    by_class = {sub: _images(root, sub) for sub in subs}
    if any(by_class.values()):
        if images:
            raise UserError(f"{root}: holds images and sub-folders of images; separate them")
        return _class_rows(root, by_class, cfg.caption_template, numbers)
    if not images:
        _refuse_nested(root, subs)
        raise UserError(
            f"{root}: no table (csv, tsv, jsonl), no images and no sub-folders of images in it; "
            "check the path"
        )
    return _flat_rows(root, images, {x for x in names if _suffix(x) == "txt"})


# Layout 1: a table


def _table_rows(root: str, name: str, cfg: SplitConfig) -> Iterator[_Row]:
    where, inside = os.path.join(root, name), _Inside(root)
    image_column = caption_column = ""
    for line, values in _jsonl(where) if _suffix(name) == "jsonl" else _csv(where):
        if not image_column:
            image_column = _column(where, "image_field", cfg.image_field, _IMAGE_COLUMNS, values)
            caption_column = _column(
                where, "caption_field", cfg.caption_field, _CAPTION_COLUMNS, values
            )
        image, texts = values.pop(image_column, None), values.pop(caption_column, None)
        key = image if isinstance(image, str) else ""
        path = inside.path(key, f"{where} line {line}")
        texts = clean_texts(texts if isinstance(texts, list) else [texts])
        yield _Row(printable(key), path, _size(path), texts, scalars(values))


def _column(where: str, option: str, wanted: str, usual: tuple[str, ...], values: dict) -> str:
    for name in (wanted,) if wanted else usual:
        if name in values:
            return name
    columns = ", ".join(map(str, values))
    hint = near(wanted, [str(x) for x in values]) if wanted else ""
    raise UserError(
        f"{where}: no column '{wanted or usual[0]}' (got {columns}); name one with {option}{hint}"
    )


def _csv(where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if _suffix(where) == "tsv" else ","
    with open(where, encoding="utf-8-sig", errors="replace", newline="") as f:
        lines = csv.reader(f, delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise UserError(f"{where}: two columns have one name (got {', '.join(header)})")
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"{where} line {lines.line_num}: {len(cells)} cells under "
                        f"{len(header)} columns; quote cells that hold the delimiter"
                    )
                yield lines.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as e:
            raise UserError(f"{where} line {lines.line_num}: {e}; mend the quotes there") from e


def _jsonl(where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(where, encoding="utf-8-sig", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise UserError(f"{where} line {number}: not JSON ({e}); mend that line") from e
            if not isinstance(values, dict):
                raise UserError(f"{where} line {number}: not an object; write one {{...}} a line")
            yield number, values


class _Inside:
    """Turns relative paths of a table into paths that stay in its folder, links resolved."""

    def __init__(self, root: str):
        self._root = os.path.realpath(root)
        self._parent = functools.cache(lambda x: os.path.realpath(os.path.join(self._root, x)))

    def path(self, relative: str, where: str) -> str:
        if not relative or "\0" in relative:  # no such file
            return ""
        head, name = os.path.split(relative)
        path = os.path.join(self._parent(head), name)
        target = os.path.realpath(path) if name == ".." or os.path.islink(path) else path
        if os.path.commonpath([self._root, target]) != self._root:
            raise UserError(f"{where}: '{relative}' is outside of the folder; use paths inside it")
        return target


# Layouts 2 and 3


def _class_rows(
    root: str, by_class: dict[str, list[str]], template: str, numbers: dict[str, int]
) -> Iterator[_Row]:
    _refuse_nested(root, [sub for sub, images in by_class.items() if not images])
    for sub, images in by_class.items():
        name = printable(sub).replace("_", " ")
        try:
            caption = template.format(name)
        except (IndexError, KeyError, ValueError, AttributeError) as e:
            raise UserError(
                f"caption_template: cannot be filled (got '{template}'); use one {{}}"
            ) from e
        fields: dict[str, int | str] = {"label": numbers[sub], "name": name}
        for image in images:
            path = os.path.join(root, sub, image)
            yield _Row(printable(f"{sub}/{image}"), path, _size(path), (caption,), fields)


def _flat_rows(root: str, images: list[str], texts: set[str]) -> Iterator[_Row]:
    beside = {image: os.path.splitext(image)[0] + ".txt" for image in images}
    if not texts.intersection(beside.values()):
        raise UserError(
            f"{root}: images without captions; add NAME.txt beside NAME.jpg, a captions.csv, or "
            "sub-folders named after classes"
        )
    for image in images:
        path, text = os.path.join(root, image), os.path.join(root, beside[image])
        yield _Row(printable(image), path, _size(path), (), {}, text)


def _refuse_nested(root: str, subs: list[str]) -> None:
    """DIR/train/cat/1.jpg: the user gave DIR, and 'train' is no class."""
    for sub in subs:
        deeper = os.path.join(root, sub)
        if any(_images(deeper, x) for x in _sub_folders(deeper)):
            raise UserError(f"{deeper}: holds folders of images, no images; give it as the path")


# Files


def _scan(root: str) -> list[os.DirEntry]:
    """Sorted, so that every file system gives the same order; hidden names are left out."""
    if files.is_remote(root) or root.startswith("file:"):
        raise UserError(f"{root}: only local folders can be read for now; copy the data here")
    try:
        with os.scandir(root) as entries:
            found = [x for x in entries if not x.name.startswith(".") and x.name != "__MACOSX"]
    except OSError as e:
        raise UserError(f"{root}: cannot be read as a folder ({e.strerror}); check it") from e
    return sorted(found, key=lambda x: x.name)


def _names(root: str) -> list[str]:
    return [x.name for x in _scan(root)]


def _sub_folders(root: str) -> list[str]:
    return [x.name for x in _scan(root) if x.is_dir()]


def _images(root: str, sub: str) -> list[str]:
    return [x for x in _names(os.path.join(root, sub)) if _suffix(x) in IMAGE_SUFFIXES]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _size(path: str) -> int:
    try:
        return os.path.getsize(path) if path else -1
    except OSError:
        return -1


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise BadRecord(f"{what} file: {e.strerror}") from e


def _captions(row: _Row) -> tuple[str, ...]:
    return clean_texts([_read(row.text_file, "caption")]) if row.text_file else row.texts
