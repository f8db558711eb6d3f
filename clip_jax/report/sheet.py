"""A contact sheet: the pictures that a search found, one file that needs no network and no script.

Costs: about 20 kB a picture.
"""

import base64
import dataclasses

from markupsafe import Markup

from clip_jax import files
from clip_jax.report.html import SMALL_PX, render
from clip_jax.report.text import clean


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is shown of an image.

    Attributes:
        jpeg: a JPEG file; empty if the image is gone.
        side: its longer side, pixels.
        path: where the image lies.
        caption: may be empty.
        similarity: cosine to what was looked for, -1..1.
    """

    jpeg: bytes
    side: int
    path: str
    caption: str
    similarity: float


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What the page shows.

    Attributes:
        text: that was looked for; empty if it was a picture.
        picture: that was looked for: its path as `path`; unused with a text.
        pictures: best first.
        num_images: among which they were found.
        facts: (label, value).
    """

    text: str
    picture: Picture
    pictures: list[Picture]
    num_images: int
    facts: list[tuple[str, str]]


def _image(picture: Picture) -> Markup:
    data = base64.b64encode(picture.jpeg).decode()
    kind = "small" if picture.side < SMALL_PX else "photo"
    tag = Markup('<img class="{}" src="data:image/jpeg;base64,{}" alt="{}">')
    return tag.format(kind, data, clean(picture.caption or picture.path))


def write_sheet(path: str, sheet: Sheet) -> None:
    """Writes the page whole."""
    page = render("sheet.html.j2", {"sheet": sheet}, {"image": _image})
    files.write_bytes(path, page.encode())
