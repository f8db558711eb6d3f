"""One image with its captions as stored, and the pixels of an image file.

Axes: y, x = pixel rows and columns, c = channels.
Cost: decoding is Pillow's (a 500x375 JPEG takes about 0.6 ms of one core, outside the GIL).
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_PIXELS = 50_000_000
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")

# Pillow's classes by the first bytes. `Image.open` would also try dozens of other formats, and
# print its own warning about large images before we can ask for the size.
_READERS = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
)


class BadRecord(Exception):
    """A sample that cannot be used; the text says why. It is counted and replaced, never fatal."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A pair as stored.

    Attributes:
        key: name of the sample in its source, fit for printing.
        image: the image file, undecoded; not empty.
        texts: its captions, one or more; none is empty.
        fields: whatever else is known of it (label, name, ...).
    """

    key: str
    image: bytes
    texts: tuple[str, ...]
    fields: dict[str, int | str]


@dataclasses.dataclass(frozen=True)
class Place:
    """Which record it is, known without reading it.

    Attributes:
        key: name of the sample in its source, fit for printing.
        image: where its image lies: a path, TAR#KEY or DATA_SET#NUMBER; "" where nobody can say.
    """

    key: str
    image: str


def printable(name: str) -> str:
    """The name of a file as text; bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def checked(
    key: str, image: bytes, texts: tuple[str, ...], fields: dict[str, int | str]
) -> Example:
    """An Example. Raises BadRecord when the image or the caption is missing or empty."""
    if not image:
        raise BadRecord("image missing or empty")
    if not texts:
        raise BadRecord("caption missing or empty")
    return Example(key, image, texts, fields)


def clean_texts(raw: Iterable[Any]) -> tuple[str, ...]:
    """Captions from bytes or strings: UTF-8, without BOM, NUL and outer spaces; no empty ones."""
    texts = (x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in raw)
    clean = (x.replace("\ufeff", "").replace("\0", "").strip() for x in texts if isinstance(x, str))
    return tuple(x for x in clean if x)


def scalars(values: Mapping[Any, Any], *, without: str = "") -> dict[str, int | str]:
    """The integers (bools too) and strings among `values`, less the key `without`."""
    return {
        k: int(v) if isinstance(v, int) else v
        for k, v in values.items()
        if isinstance(k, str) and isinstance(v, int | str) and k != without
    }


def digest(*parts: Any) -> str:
    """Hex hash of plain values (numbers, strings, lists): the fingerprint of a source."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decodes the first frame of a JPEG, PNG, WebP, GIF or BMP file.

    The alpha channel is dropped, palettes and CMYK become RGB, 16 bits become the high 8; the
    EXIF orientation is not applied. All of this as OpenCLIP's `Image.open(...).convert("RGB")`.

    Args:
        data: the file.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).

    Returns:
        uint8 (y, x, c).

    Raises:
        BadRecord: an unknown format, a damaged or cut file, or more than MAX_PIXELS.
    """
    reader = next((cls for magic, cls in _READERS if data.startswith(magic)), None)
    if reader is None:
        raise BadRecord("image in no known format (JPEG, PNG, WebP, GIF, BMP)")
    try:
        with reader(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadRecord(f"image larger than {MAX_PIXELS // 1_000_000} megapixels")
            pixels = _pixels(image, "RGB" if channels == 3 else "L")
    except (BadRecord, MemoryError):
        raise
    except Exception as e:  # Pillow raises a dozen kinds on damaged files
        raise BadRecord("image damaged or cut") from e
    return pixels if channels == 3 else pixels[..., None]  # (y, x, c)


def _pixels(image: Image, mode: str) -> np.ndarray:
    """uint8 (y, x, 3) for mode RGB, (y, x) for L."""
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, which convert() clips at 255
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)  # (y, x)
        return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=2)
    # Pillow warns of the transparent colours that we drop on purpose.
    image.info.pop("transparency", None)
    return np.asarray(image.convert(mode))
