"""Letters and their Unicode names: 20,199 grey 32x32 images of 1,672 names, without a download.

Every LATIN, GREEK and CYRILLIC character of 16 fonts that matplotlib ships, its name in lower case
as the caption ("latin small letter o with diaeresis"). Whole names are held out, so a score on
test or validation is zero-shot: neither the caption nor the picture was trained on, but the base
("latin small letter o") and each mark ("diaeresis") were, with others.

Rules, with sha(x) = the first 32 bits of SHA-256:
- test: names with " with " and sha(name) % 6 == 0. Dropped from the data set altogether: those
  whose base or a mark occurs in no name of train + validation, and those of which any picture is
  bit-identical to one of train + validation (which then has another name).
- validation: of the other names with " with " those with sha("validation:" + name) % 8 == 0,
  unless base, mark or picture fails the same test against train alone: such names go to train,
  all at once, until none is left. So 'train+validation' is every name outside test's share.
- Names inside one held-out split may share a picture (two pairs in test); both stay, since
  neither choice would be fairer, and no model can get both right. The metadata count them.

Pixels depend on FreeType and the fonts: the built set records versions and a digest.
Costs: about 6 s on one core, once (a third of it drawing); 25 MB of memory; 10 MB on disk.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from clip_jax.errors import UserError

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")
SPLITS = ("train", "validation", "test")
SIZE_PX = 32
_DRAWN_PX, _FONT_PX, _BASELINE_PX = 64, 46, 50  # drawn twice as large, then averaged
_FAINT = 60  # a picture without a brighter pixel is taken for empty


class Glyph(NamedTuple):
    """One image: pixels are SIZE_PX * SIZE_PX bytes, rows first, white ink on black."""

    name: str
    codepoint: int
    font: str
    pixels: bytes


def parts(name: str) -> tuple[str, list[str]]:
    """Base and marks: 'x with a and b' -> ('x', ['a', 'b'])."""
    base, _, marks = name.partition(" with ")
    return base, marks.split(" and ") if marks else []


def assign(pictures: Mapping[str, set[bytes]]) -> dict[str, str]:
    """Puts names into splits by the rules above.

    Args:
        pictures: the pixels of each name in all fonts.

    Returns:
        The split of each name; dropped names are absent.
    """
    composed = {n for n in pictures if " with " in n}
    test = {n for n in composed if _sha(n) % 6 == 0}
    seen = set(pictures) - test
    validation = {n for n in composed & seen if _sha("validation:" + n) % 8 == 0}
    while unfit := _unfit(validation, seen - validation, pictures):
        validation -= unfit  # train grows, which can make others unfit
    test -= _unfit(test, seen, pictures)
    names = {"train": seen - validation, "validation": validation, "test": test}
    return {n: split for split in SPLITS for n in names[split]}


def _sha(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def _unfit(
    held_out: Iterable[str], trained: Iterable[str], pictures: Mapping[str, set[bytes]]
) -> set[str]:
    """Held-out names with an untrained base or mark, or with a trained picture."""
    known = [parts(n) for n in trained]
    bases, marks = {b for b, _ in known}, {m for _, ms in known for m in ms}
    shown = set().union(*(pictures[n] for n in trained))

    def fits(name: str) -> bool:
        base, own = parts(name)
        return base in bases and marks.issuperset(own) and shown.isdisjoint(pictures[name])

    return {n for n in held_out if not fits(n)}


def render() -> list[Glyph]:
    """Draws every character, font by font, by code point.

    Raises:
        UserError: a font is missing from the installed matplotlib.
    """
    import matplotlib

    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return [glyph for font in FONTS for glyph in _render_font(folder, font)]


def _render_font(folder: str, name: str) -> Iterator[Glyph]:
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    path = os.path.join(folder, name + ".ttf")
    if not os.path.isfile(path):
        raise UserError(f"glyphs: matplotlib lacks a font (got no {path}); reinstall matplotlib")
    # The basic layout: the other one depends on libraries that may be absent.
    font = ImageFont.truetype(path, _FONT_PX, layout_engine=ImageFont.Layout.BASIC)
    with TTFont(path, lazy=True) as table:
        codepoints = sorted(table.getBestCmap() or ())
    for codepoint in codepoints:
        caption = _caption(codepoint)
        if caption and max(pixels := _draw(chr(codepoint), font)) >= _FAINT:
            yield Glyph(caption, codepoint, name, pixels)


def _caption(codepoint: int) -> str:
    """The name in lower case; empty for other scripts."""
    import unicodedata

    name = unicodedata.name(chr(codepoint), "")
    return name.lower() if name.startswith(SCRIPTS) else ""


def _draw(character: str, font: Any) -> bytes:
    """Pixels of one character, centred; one wider than the canvas is squeezed."""
    from PIL import Image, ImageDraw

    left, _, right, _ = font.getbbox(character, anchor="ls")
    width = max(_DRAWN_PX, right - left)
    image = Image.new("L", (width, _DRAWN_PX))
    x = (width - (right - left)) // 2 - left
    ImageDraw.Draw(image).text((x, _BASELINE_PX), character, fill=255, font=font, anchor="ls")
    return image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX).tobytes()


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Letters named by Unicode; records stand font by font, by code point."""

    VERSION = tfds.core.Version("1.0.0")  # another recipe is another version
    RELEASE_NOTES = {"1.0.0": "First version."}
    url_infos = None  # nothing to download; TFDS's own needs the package importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Latin, Greek and Cyrillic letters in 16 fonts with their Unicode names.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIZE_PX, SIZE_PX, 1), encoding_format="png"
                    ),
                    "caption": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "codepoint": tfds.features.Scalar(np.int64),
                    "font": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        glyphs = render()
        pictures: dict[str, set[bytes]] = {}
        for glyph in glyphs:
            pictures.setdefault(glyph.name, set()).add(glyph.pixels)
        splits = assign(pictures)
        notes: Any = self.info.metadata
        notes.update(_versions(), **_findings(glyphs, pictures, splits))
        return {
            split: self._generate_examples([g for g in glyphs if splits.get(g.name) == split])
            for split in SPLITS
        }

    def _generate_examples(self, glyphs: list[Glyph]) -> Iterator[Any]:
        from PIL import Image

        for i, glyph in enumerate(glyphs):
            png = io.BytesIO()  # arrays would need TensorFlow to be encoded
            Image.frombytes("L", (SIZE_PX, SIZE_PX), glyph.pixels).save(png, "png")
            png.seek(0)
            yield (
                i,
                {
                    "image": png,
                    "caption": glyph.name,
                    "name": glyph.name,
                    "codepoint": glyph.codepoint,
                    "font": glyph.font,
                },
            )


def _versions() -> dict[str, str]:
    """What decides over the pixels and the names."""
    import unicodedata
    from importlib import metadata

    from PIL import features

    return {
        "pillow": metadata.version("pillow"),
        "freetype": str(features.version("freetype2")),
        "matplotlib": metadata.version("matplotlib"),
        "unicode": unicodedata.unidata_version,
    }


def _findings(
    glyphs: list[Glyph], pictures: Mapping[str, set[bytes]], splits: Mapping[str, str]
) -> dict[str, Any]:
    """Digests, and how many names of a held-out split share a picture with another of it."""
    test = sorted(n for n, split in splits.items() if split == "test")
    return {
        "pixels_sha256": hashlib.sha256(b"".join(g.pixels for g in glyphs)).hexdigest(),
        "test_names_sha256": hashlib.sha256("\n".join(test).encode()).hexdigest(),
        **{f"{split}_names_alike": _alike(split, pictures, splits) for split in SPLITS[1:]},
    }


def _alike(split: str, pictures: Mapping[str, set[bytes]], splits: Mapping[str, str]) -> int:
    owners: dict[bytes, set[str]] = {}
    for name, own in pictures.items():
        if splits.get(name) == split:
            for pixels in own:
                owners.setdefault(pixels, set()).add(name)
    return len(set().union(*(names for names in owners.values() if len(names) > 1)))
