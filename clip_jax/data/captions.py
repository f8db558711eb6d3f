"""Which caption of a pair is used, and which pairs of a batch belong together."""

import zlib

import numpy as np

from clip_jax.data.record import BadRecord, Example


def pick(texts: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the captions, at random when there are several."""
    return texts[0] if len(texts) == 1 else texts[int(rng.integers(len(texts)))]


def group_of(example: Example, caption: str, group_by: str) -> int:
    """Number in 0..2**31-1, equal for pairs that are positives of each other.

    Args:
        example: the pair.
        caption: the one that was picked.
        group_by: 'caption', or a field of the example. ('none' never comes here.)

    Raises:
        KeyError: the example has no such field.
    """
    value = caption if group_by == "caption" else example.fields[group_by]
    return zlib.crc32(str(value).encode("utf-8", "surrogatepass")) & 0x7FFFFFFF


def negatives_of(example: Example, fields: tuple[str, ...]) -> list[str]:
    """Its captions that are wrong for the image, one from each of `fields`.

    Raises:
        BadRecord: a field is missing or empty.
    """
    texts = [str(example.fields.get(name, "")).strip() for name in fields]
    for name, text in zip(fields, texts, strict=True):
        if not text:
            raise BadRecord(f"hard negative '{name}' missing or empty")
    return texts
